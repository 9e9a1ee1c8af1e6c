"""What a task is: one thing that is trained, in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pixart.training.batches import Phase, Source
from pixart.training.recipe import Recipe

Loss = Callable[[torch.nn.Module, dict[str, Any]], Tensor]


class Task(Protocol):
    """A dataclass whose fields are the recipe's table of its name, with five methods.

    `build` comes first and may keep on the task what the others need: data, frozen networks, encoders. Nothing of it
    may depend on what a step before has done, so that a run that was killed goes on as if nothing had happened.
    """

    def build(self, recipe: Recipe, device: torch.device) -> torch.nn.Module:
        """Open data and networks; returns what is trained, fresh or from its start, in fp32.

        Raises PixArtError or UsageError where something is missing or does not fit.
        """
        ...

    def source(self, phase: Phase) -> Source:
        """The rows that a phase trains on."""
        ...

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """The loss of each row of a batch, (B,). Calls `model` and nothing of its parts.

        `batch` is what the source gave, on the device, with `rng`, the random streams of its rows (rows.py): all
        random numbers come from it. `batch["levels"]` (B,) may be set to the noise levels, for reports.
        """
        ...

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics of the averaged model on images that are not trained on, always the same ones."""
        ...

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        """Write what the run is for into `folder`, the run folder or another; returns its path there."""
        ...
