"""Adapters (LoRA, DoRA, LoHa, LoKr) on named linear and convolutional layers of a network, several at once.

A layer keeps its class and the names of its weights; what adapters add comes from a hook behind its forward. So they go
onto a layer however it stores its weights, and leave it as it was.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart.errors import PixArtError
from pixart.model.deltas import MAGNITUDE, Delta, changed, matrix, merged

ADAPTERS = "adapters"  # the name of an adapted layer's list of changes
Layers = Mapping[str, Sequence[Delta]]  # by the names of the layers


class Change(nn.Module):
    """What one adapter adds to some rows of one layer's output; its tensors are parameters, not trained at first."""

    def __init__(self, delta: Delta, strength: float = 1.0, dropout: float = 0.0):
        super().__init__()
        self.start, self.stop, self.scale = delta.start, delta.stop, delta.scale
        self.strength, self.dropout = strength, dropout
        for name, tensor in delta.tensors.items():
            self.register_parameter(name, nn.Parameter(torch.as_tensor(tensor), requires_grad=False))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def delta(self) -> Delta:
        """A copy of it in fp32; the strength is not in it."""
        return Delta(self.start, self.stop, {n: t.detach().float() for n, t in self.tensors.items()}, self.scale)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """The layer's input -> what is added to the rows `start` to `stop` of its output."""
        x, tensors = F.dropout(x, self.dropout, self.training), self.tensors
        if tensors.keys() == {"lora_A", "lora_B"}:
            down = _product(x, tensors["lora_A"], layer)
            up = tensors["lora_B"].to(x)
            return self.scale * (F.conv2d(down, up[:, :, None, None]) if _is_conv(layer) else F.linear(down, up))
        if MAGNITUDE not in tensors:
            return _product(x, self.scale * matrix(tensors), layer)
        weight = layer.weight[self.start : self.stop].detach().flatten(1).to(tensors[MAGNITUDE])
        return _product(x, changed(weight, tensors, self.scale, Tensor.detach) - weight, layer)


def attach(model: nn.Module, layers: Layers, strength: float = 1.0, dropout: float = 0.0) -> list[Change]:
    """Put an adapter onto layers of `model`, beside those that are there; returns its parts.

    Raises:
        KeyError: there is no such layer.
        PixArtError: DoRA of a layer that has its weight in 8 bits or in a file.
    """
    modules, made = dict(model.named_modules()), []
    for name, deltas in layers.items():
        if modules[name].weight is None and any(MAGNITUDE in delta.tensors for delta in deltas):
            raise PixArtError(f"DoRA changes {name}, whose weight is kept in 8 bits or in a file; load it as it is.")
    for name, deltas in layers.items():
        layer = modules[name]
        if not hasattr(layer, ADAPTERS):
            setattr(layer, ADAPTERS, nn.ModuleList())
            layer.register_forward_hook(_add)
        for delta in deltas:
            change = Change(delta, strength, dropout).to(next(chain(layer.parameters(), layer.buffers())).device)
            getattr(layer, ADAPTERS).append(change)
            made.append(change)
    return made


def detach(model: nn.Module) -> None:
    """Take all adapters off."""
    for layer in adapted(model).values():
        setattr(layer, ADAPTERS, nn.ModuleList())


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` with adapters on them, by name."""
    return {name: layer for name, layer in model.named_modules() if len(getattr(layer, ADAPTERS, ()))}


def kept(model: nn.Module) -> list[str]:
    """The names in the state dict of what a checkpoint keeps: all, or only what an adapter has added."""
    names = list(model.state_dict())
    return [name for name in names if f".{ADAPTERS}." in name] or names


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Write all adapters into the weights, in the dtype of those, and take them off."""
    for layer in adapted(model).values():
        layer.weight.copy_(merged(layer.weight.float(), [(c.delta(), c.strength) for c in getattr(layer, ADAPTERS)]))
    detach(model)


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x, axis = inputs[0].to(output.dtype), 1 if _is_conv(layer) else -1
    for change in getattr(layer, ADAPTERS):
        rows = output.narrow(axis, change.start, change.stop - change.start)
        rows.add_(change(x, layer).to(output.dtype), alpha=change.strength)
    return output


def _is_conv(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def _product(x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
    """The layer's operation with another weight (rows, in·k·k) and no bias."""
    weight = weight.to(x)
    if not _is_conv(layer):
        return F.linear(x, weight)
    kernel = weight.view(len(weight), -1, *layer.kernel_size)
    return F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
