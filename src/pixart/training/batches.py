"""Batches by number: batch k is a pure function of the seed and k, so the data position of a run is its step."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pixart.data.bucket_batches import EpochBatches, WeightedBatches
from pixart.errors import PixArtError, UsageError
from pixart.training.rows import ALL_ROWS, MicrobatchSlice, RowStreams

PREFETCHED = 2  # batches that each worker keeps ready


@dataclass(frozen=True)
class Phase:
    """`steps` steps on batches of `batch_size` images, over all processes.

    Tasks on latents name their `features`, a folder of `pixart data extract`, which has its own base size; a ControlNet
    also its `conditions`, the features of condition images of the same names. Tasks on pixels give the base `size` in
    pixels, and `crop`, the side of random squares taken from each image.
    """

    steps: int
    batch_size: int
    features: Path | None = None
    conditions: Path | None = None
    size: int | None = None
    crop: int | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "size", "crop"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**40:
                raise UsageError(f"A phase needs {name} of at least 1, not {value}.")
        if (self.size or 0) % 16 or (self.crop or 0) % 16 or (self.size and self.crop and self.crop > self.size):
            raise UsageError(f"Size {self.size} and crop {self.crop} must be multiples of 16, the crop not the larger.")


@dataclass(frozen=True)
class Source:
    """The rows that a phase trains on.

    `rows` (N,) numbers in a data set; `bucket` and `weight` (N,) of each: all rows of a batch are of one bucket, and
    rows are drawn by weight, or each once an epoch where all weights are equal. `read(rows, rng)` gives a batch, a
    dictionary of tensors and lists by row, with `keys`; it may run in another process. `fingerprint` changes with the
    data.
    """

    rows: np.ndarray
    bucket: np.ndarray
    weight: np.ndarray
    read: Callable[[np.ndarray, RowStreams], dict[str, Any]]
    fingerprint: str


class Batches(Dataset):
    """`batches[step, part]`: those rows of the batch of a step, with `count`, their number."""

    def __init__(self, phases: Sequence[Phase], sources: Sequence[Source], seed: int):
        """Raises UsageError where there is nothing to train on."""
        self.phases, self.sources, self.seed = phases, sources, seed
        self.choosers = [self._chooser(*pair, seed) for pair in zip(phases, sources, strict=True)]

    @staticmethod
    def _chooser(phase: Phase, source: Source, seed: int) -> EpochBatches | WeightedBatches:
        if (source.weight == source.weight[:1]).all():
            return EpochBatches(source.bucket, phase.batch_size, seed)
        return WeightedBatches(source.bucket, phase.batch_size, seed, source.weight)

    def __getitem__(self, where: tuple[int, MicrobatchSlice]) -> dict[str, Any]:
        step, part = where
        number, first = self._phase_of(step)
        rows = part.rows(self.phases[number].batch_size)
        rng = RowStreams(self.seed, step, rows, purpose=1)
        source = self.sources[number]
        chosen = source.rows[self.choosers[number](step - first).indices[rows]]
        return {**source.read(chosen, rng), "count": len(rows)}

    def __call__(self, step: int, part: MicrobatchSlice = ALL_ROWS) -> dict[str, Any]:
        return self[step, part]

    def _phase_of(self, step: int) -> tuple[int, int]:
        """The phase of a step, and the phase's own first step."""
        number = first = 0
        while number < len(self.phases) - 1 and step >= first + self.phases[number].steps:
            first += self.phases[number].steps
            number += 1
        return number, first


class Loader:
    """An iterator over steps: each gives its parts one after the other, read ahead by `workers` processes.

    With a GPU the tensors are in pinned memory, from which they are copied while the GPU computes.
    """

    def __init__(
        self, batches: Any, steps: range, parts: Sequence[MicrobatchSlice], *, workers: int = 0, pinned: bool = False
    ):
        """`batches[step, part]` as `Batches` gives them."""
        ahead = {"prefetch_factor": PREFETCHED, "worker_init_fn": _leave_signals} if workers else {}
        places = _Places(steps, parts)
        self.loader = DataLoader(
            _Failures(batches), batch_size=None, sampler=places, num_workers=workers, pin_memory=pinned, **ahead
        )

    def __iter__(self) -> Iterator[Any]:
        """Each item is a batch. PixArtError where one could not be read."""
        for batch in self.loader:
            if "failure" in batch:
                raise PixArtError(batch["failure"])
            yield batch


class _Places:
    """(step, part) in order, without a list of millions."""

    def __init__(self, steps: range, parts: Sequence[MicrobatchSlice]):
        self.steps, self.parts = steps, parts

    def __iter__(self) -> Iterator[tuple[int, MicrobatchSlice]]:
        return ((step, part) for step in self.steps for part in self.parts)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


class _Failures(Dataset):
    """Hands a sentence over from a worker, where torch would hand over a traceback."""

    def __init__(self, batches: Any):
        self.batches = batches

    def __getitem__(self, where: tuple[int, MicrobatchSlice]) -> dict[str, Any]:
        try:
            return self.batches[where]
        except PixArtError as error:
            return {"failure": str(error)}


def _leave_signals(_: int) -> None:
    """A signal to all processes is the trainer's to answer; a worker ends with it."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
