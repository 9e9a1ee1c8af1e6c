"""The moving average of the weights, which is what a run gives away in the end.

The loop only asks for `update`, `model` and `states`; how many averages there are, and how long, is decided here.
"""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model's parameters, kept in a copy of the model that can be run."""

    def __init__(self, model: nn.Module, *, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step`; early on the average is short, so that it forgets the beginning."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps: `{name of the file: {name: tensor}}`. `ema` is the one that the next stage takes."""
        return {"ema": self.model.state_dict()}

    def load_states(self, states: dict[str, dict[str, Tensor]]) -> None:
        """The counterpart of `states`. RuntimeError or KeyError where they are of another network."""
        self.model.load_state_dict(states["ema"])
