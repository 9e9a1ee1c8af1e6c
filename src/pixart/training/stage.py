"""What every kind of recipe brings to the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixart.training.samples import Sampler


@dataclass(frozen=True)
class Stage:
    """`finish(ema)` writes what the run is for into the run folder, and returns its path."""

    model: torch.nn.Module
    loss: Callable[[torch.nn.Module, dict], Tensor]
    batches: Callable[[int], dict]
    evaluate: Callable[[torch.nn.Module, int], dict[str, float]]
    finish: Callable[[torch.nn.Module], Path]
    sampler: Sampler | None = None
