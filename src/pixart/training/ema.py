"""The moving averages of the weights: one that a run gives away in the end, and others to choose from afterwards.

How long an average should be is known only when the run is over (Karras et al., arXiv 2312.02696, section 3). So a run
can keep several lengths side by side (`loop.ema_decays`), and `pixart ema` compares them and writes the chosen one.
The loop only asks for `update`, `whole` and `states`.
"""

import copy

import torch
from torch import Tensor, nn

from pixart.training.distributed import cut_like, local, whole


class Ema:
    """Exponential moving averages of a model's parameters. The first is kept in a copy of the model that can be run."""

    def __init__(self, model: nn.Module, *, decay: float, others: tuple[float, ...] = ()):
        """Copies `model`, which must not be sharded yet; see `shard`. `others` are the decays of further averages."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        first = dict(self.model.named_parameters())
        self.kept: dict[float, dict[str, Tensor]] = {decay: first}
        self.decay = decay
        for other in others:
            self.kept[other] = {name: p.detach().clone() for name, p in first.items()}

    def shard(self, model: nn.Module, *, main: bool) -> None:
        """Keep the averages in shards from now on, as `model` is kept; only the main process can still run one."""
        parameters = dict(model.named_parameters())
        for kept in self.kept.values():
            kept.update({name: cut_like(value.detach(), parameters[name]) for name, value in kept.items()})
        if not main:
            self.model.to("meta")

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step`; early on an average is short, so that it forgets the beginning."""
        for decay, kept in self.kept.items():
            weight = 1 - min(decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(local(kept.values()), local(model.parameters()), weight)

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The averaged model, put together where it is kept in shards; then all processes must ask for it."""
        for name, parameter in self.model.named_parameters():
            value = self.kept[self.decay][name]
            if value is not parameter:
                value = whole(value)
                if not parameter.is_meta:
                    parameter.copy_(value)
        return self.model

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps: `{name of the file: {name: tensor}}`. `ema` is the one that the next stage takes."""
        buffers = self.model.state_dict()
        return {self._file(decay): {**buffers, **kept} for decay, kept in self.kept.items()}

    @torch.no_grad()
    def load_states(self, states: dict[str, dict[str, Tensor]]) -> None:
        """The counterpart of `states`, before `shard`. RuntimeError or KeyError where they are of another network."""
        for decay, kept in self.kept.items():
            state = states[self._file(decay)]
            if decay == self.decay:
                self.model.load_state_dict(state)
            else:
                for name, value in kept.items():
                    value.copy_(state[name])

    def _file(self, decay: float) -> str:
        return file_of(decay, first=decay == self.decay)


def file_of(decay: float, *, first: bool) -> str:
    """The name, without its ending, of the checkpoint's file that holds the average of this decay."""
    return "ema" if first else f"ema-{decay:g}"
