"""Moving averages of the weights: one that a run exports, and others to choose from afterwards.

How long an average should be is known only when the run is over (Karras et al., arXiv 2312.02696, section 3), so a run
can keep several side by side. `pixart export` writes a model of any of them.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixart.errors import UsageError
from pixart.model import adapters
from pixart.training.distribution import full_tensor, local, shard_like


@dataclass(frozen=True)
class EmaConfig:
    """The `decays` of the averages; the first is exported."""

    decays: tuple[float, ...] = (0.9999,)

    def __post_init__(self):
        if not all(0 <= decay < 1 for decay in self.decays) or not 0 < len(set(self.decays)) == len(self.decays):
            raise UsageError(f"ema: decays {self.decays} must be one or more from 0 to below 1, each another one.")

    def names(self) -> list[str]:
        """How the averages are called in checkpoints; the first one is `ema`."""
        return ["ema", *(f"ema-{decay:g}" for decay in self.decays[1:])]


class Ema:
    """The averages of a model's parameters. The first is kept in a copy of the model that can be run."""

    def __init__(self, model: nn.Module, config: EmaConfig):
        """Copies `model`, which must not be sharded yet; see `shard`. What an adapter stands on is shared."""
        names = set(adapters.kept(model))
        shared = {id(p): p for name, p in model.named_parameters() if name not in names}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        first = {name: p for name, p in self.model.named_parameters() if name in names}
        names = config.names()
        self.kept = {name: {key: p.detach().clone() for key, p in first.items()} for name in names[1:]}
        self.kept = {names[0]: first, **self.kept}
        self.decays = dict(zip(names, config.decays, strict=True))

    def shard(self, model: nn.Module, *, main: bool) -> None:
        """Keep the averages in shards from now on, as `model` is kept; only the main process can still run one."""
        parameters = dict(model.named_parameters())
        for kept in self.kept.values():
            kept.update({name: shard_like(value.detach(), parameters[name]) for name, value in kept.items()})
        if not main:
            self.model.to("meta")

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Average in the weights after step `step`, counted from 0; at first an average is short."""
        for name, kept in self.kept.items():
            weight = 1 - min(self.decays[name], (1 + step) / (10 + step))
            now = dict(model.named_parameters())
            torch._foreach_lerp_(local(kept.values()), local(now[name] for name in kept), weight)

    @torch.no_grad()
    def full_model(self) -> nn.Module:
        """The averaged model, gathered where it is kept in shards; then all processes must call it."""
        first = next(iter(self.kept.values()))
        parameters = dict(self.model.named_parameters())
        for name, value in first.items():
            parameter = parameters[name]
            if value is not parameter:
                value = full_tensor(value)
                if not parameter.is_meta:
                    parameter.copy_(value)
        return self.model

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps, by file: name -> tensor."""
        state, names = self.model.state_dict(), adapters.kept(self.model)
        return {name: {**{key: state[key] for key in names}, **kept} for name, kept in self.kept.items()}

    @torch.no_grad()
    def load_states(self, states: dict[str, dict[str, Tensor]]) -> None:
        """The counterpart of `states`, before `shard`. RuntimeError or KeyError where they are of another network."""
        for number, (name, kept) in enumerate(self.kept.items()):
            if number == 0:
                load_kept(self.model, states[name])
            else:
                for key, value in kept.items():
                    value.copy_(states[name][key])


def load_kept(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Fill a model from a checkpoint. RuntimeError where that is of another network."""
    names = adapters.kept(model)
    model.load_state_dict({name: t for name, t in model.state_dict().items() if name not in names} | state)
