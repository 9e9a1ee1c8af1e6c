"""The moving average of the weights, which is what a run gives away in the end.

The loop only asks for `update`, `whole` and `states`; how many averages there are, and how long, is decided here.
"""

import copy

import torch
from torch import Tensor, nn

from pixart.training.distributed import cut_like, local, whole


class Ema:
    """An exponential moving average of a model's parameters, kept in a copy of the model that can be run."""

    def __init__(self, model: nn.Module, *, decay: float):
        """Copies `model`, which must not be sharded yet; see `shard`."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.kept: dict[str, Tensor] = dict(self.model.named_parameters())

    def shard(self, model: nn.Module, *, main: bool) -> None:
        """Keep the average in shards from now on, as `model` is kept; only the main process can still run it."""
        self.kept = {name: cut_like(self.kept[name].detach(), p) for name, p in model.named_parameters()}
        if not main:
            self.model.to("meta")

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step`; early on the average is short, so that it forgets the beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(local(self.kept.values()), local(model.parameters()), 1 - decay)

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The averaged model, put together where it is kept in shards; then all processes must ask for it."""
        for name, parameter in self.model.named_parameters():
            if self.kept[name] is not parameter:
                value = whole(self.kept[name])
                if not parameter.is_meta:
                    parameter.copy_(value)
        return self.model

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps: `{name of the file: {name: tensor}}`. `ema` is the one that the next stage takes."""
        return {"ema": {**self.model.state_dict(), **self.kept}}

    def load_states(self, states: dict[str, dict[str, Tensor]]) -> None:
        """The counterpart of `states`, before `shard`. RuntimeError or KeyError where they are of another network."""
        self.model.load_state_dict(states["ema"])
