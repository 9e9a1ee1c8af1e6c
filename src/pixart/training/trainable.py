"""What is trained of a network: all weights, some of them, or an adapter beside them. An option of every task."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from pixart.checkpoints.adapters import parts_of
from pixart.errors import UsageError
from pixart.model.adapters import attach
from pixart.model.deltas import MAGNITUDE, Delta

Method = Literal["full", "lora", "dora", "lokr", "loha"]


@dataclass(frozen=True)
class Trainable:
    """`method` full: the weights, all or those whose names match `parameters`, such as "blocks.*.attn.*".

    The others train an adapter of `rank` on `layers`, patterns of names as well, and leave the weights as they are:
    LoRA, DoRA, LoKr or LoHa. `alpha` over the rank scales it (None: the rank, so 1), with `rslora` over the rank's
    root. `dropout` is of the layers' inputs. `factor`: about how large LoKr's first factor is.
    """

    parameters: tuple[str, ...] = ()
    method: Method = "full"
    layers: tuple[str, ...] = ("blocks.*",)
    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    factor: int = 8

    def __post_init__(self):
        if not 1 <= self.rank <= 4096 or not 1 <= self.factor <= 4096 or not 0 <= self.dropout < 1:
            raise UsageError(
                f"trainable: rank {self.rank} and factor {self.factor} must be from 1 to 4,096, dropout {self.dropout} "
                "from 0 to below 1."
            )
        if self.alpha is not None and not 0 < self.alpha <= 1e6:
            raise UsageError(f"trainable: alpha {self.alpha} must be above 0 and at most a million.")
        if self.parameters and self.method != "full":
            raise UsageError("trainable: parameters are for the method full; an adapter takes layers.")

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / (math.sqrt(self.rank) if self.rslora else self.rank)


def apply(model: nn.Module, trainable: Trainable) -> None:
    """Freeze what is not trained, and put the adapter on. Raises UsageError for a pattern that matches nothing."""
    if trainable.method == "full":
        if trainable.parameters:
            chosen = _matching([n for n, p in model.named_parameters() if p.requires_grad], trainable.parameters)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in chosen)
        return
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    chosen = _matching(list(layers), trainable.layers)
    model.requires_grad_(False)
    deltas = {name: _fresh(layers[name].weight.detach().flatten(1), parts_of(name), trainable) for name in chosen}
    for change in attach(model, deltas, dropout=trainable.dropout):
        change.requires_grad_(True)


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"trainable: nothing is called {pattern!r}; the first ones are {', '.join(names[:5])}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _fresh(weight: Tensor, parts: int, trainable: Trainable) -> list[Delta]:
    """A change of a layer, or of each of its parts, that changes nothing at first."""
    rows = len(weight) // parts
    return [_fresh_part(weight[i * rows : (i + 1) * rows], i * rows, trainable) for i in range(parts)]


def _fresh_part(weight: Tensor, start: int, trainable: Trainable) -> Delta:
    """Random numbers as PEFT and LyCORIS have them, so that learning rates mean the same."""
    (rows, columns), rank = weight.shape, trainable.rank
    scale = trainable.scale

    def uniform(*shape: int) -> Tensor:
        return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))

    if trainable.method in ("lora", "dora"):
        tensors = {"lora_A": uniform(rank, columns), "lora_B": torch.zeros(rows, rank)}
        if trainable.method == "dora":
            tensors[MAGNITUDE] = weight.norm(dim=1, keepdim=True).cpu()
    elif trainable.method == "loha":
        tensors = {
            "hada_w1_a": 0.1 * torch.randn(rows, rank),
            "hada_w1_b": torch.randn(rank, columns),
            "hada_w2_a": torch.zeros(rows, rank),
            "hada_w2_b": torch.randn(rank, columns),
        }
    else:
        out, into = (max(d for d in range(1, trainable.factor + 1) if size % d == 0) for size in (rows, columns))
        tensors = {"lokr_w1": uniform(out, into)}
        if rank < max(rows // out, columns // into) / 2:
            tensors |= {"lokr_w2_a": uniform(rows // out, rank), "lokr_w2_b": torch.zeros(rank, columns // into)}
        else:
            tensors["lokr_w2"], scale = torch.zeros(rows // out, columns // into), 1.0
    return Delta(start, start + rows, tensors, scale)
