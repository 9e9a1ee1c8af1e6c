"""Batches over buckets: never two shapes in one batch, no image lost, and batch k a pure function of seed and k.

`assignment` is (N,) integers everywhere: the bucket of each image.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixart.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """Images of one bucket: `indices` (B,) int64 into the data set."""

    bucket: int
    indices: np.ndarray


def in_order(assignment: Sequence[int] | np.ndarray, batch_size: int) -> list[Batch]:
    """Every image exactly once, bucket by bucket, in the order of the data set; a bucket's last batch may be smaller.

    For what is done once per image, such as extraction and evaluation.
    """
    members = _members(assignment, batch_size)
    return [
        Batch(bucket, indices[start : start + batch_size])
        for bucket, indices in members.items()
        for start in range(0, len(indices), batch_size)
    ]


class EpochBatches:
    """Training batches without replacement: `batches(step)` is always full.

    Each bucket is an endless stream: all its images in a random order, then all of them in another order, and so on.
    A batch is the next `batch_size` of a stream, so a bucket's last images of one pass share a batch with the first
    of the next pass instead of being lost or making a small batch. After k batches of a bucket with n images each of
    them was seen floor(k B / n) or ceil(k B / n) times. A bucket smaller than the batch fills one only every few
    epochs, and then holds images twice.

    Epoch e has the batches whose last image falls into it; their order is shuffled over all buckets. Everything
    follows from the seed and the step: the data position of a run is its step. Orders are remembered (8 bytes an
    image), which only saves time.
    """

    def __init__(self, assignment: Sequence[int] | np.ndarray, batch_size: int, seed: int):
        """Raises UsageError for no images, a batch size below 1 or a negative bucket."""
        self.members = _members(assignment, batch_size)
        self.batch_size, self.seed = batch_size, seed
        self.count = sum(len(indices) for indices in self.members.values())
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def steps_before(self, epoch: int) -> int:
        """Number of batches in the epochs 0 to epoch - 1."""
        return sum(epoch * len(indices) // self.batch_size for indices in self.members.values())

    def epoch_of(self, step: int) -> int:
        """The epoch that a step is in."""
        most = (step + len(self.members)) * self.batch_size // self.count + 2
        return bisect.bisect_right(range(most), step, key=self.steps_before) - 1

    def __call__(self, step: int) -> Batch:
        if step < 0:
            raise UsageError(f"The number of a batch is 0 or more, not {step}.")
        epoch = self.epoch_of(step)
        buckets, turns = self._plan(epoch)
        position = step - self.steps_before(epoch)
        bucket, turn = int(buckets[position]), int(turns[position])
        return Batch(bucket, self._stream(bucket, turn * self.batch_size))

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The bucket of each batch of an epoch, and which batch of its bucket's stream it is."""
        if self._epoch is None or self._epoch[0] != epoch:
            buckets, turns = [], []
            for bucket, indices in self.members.items():
                first, last = (e * len(indices) // self.batch_size for e in (epoch, epoch + 1))
                buckets.append(np.full(last - first, bucket, dtype=np.int64))
                turns.append(np.arange(first, last, dtype=np.int64))
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(sum(map(len, turns)))
            self._epoch = epoch, np.concatenate(buckets)[order], np.concatenate(turns)[order]
        return self._epoch[1], self._epoch[2]

    def _stream(self, bucket: int, start: int) -> np.ndarray:
        """Images start to start + batch_size of a bucket's stream."""
        passes, places = np.divmod(np.arange(start, start + self.batch_size), len(self.members[bucket]))
        out = np.empty(self.batch_size, dtype=np.int64)
        for number in np.unique(passes).tolist():
            here = passes == number
            out[here] = self._order(bucket, number)[places[here]]
        return out

    def _order(self, bucket: int, number: int) -> np.ndarray:
        """The images of a bucket in the order of a pass; those of neighbouring passes are kept, which saves time."""
        if (bucket, number) not in self._orders:
            for far in [key for key in self._orders if key[0] == bucket and abs(key[1] - number) > 1]:
                del self._orders[far]
            rng = np.random.default_rng([self.seed, 0, bucket, number])
            self._orders[bucket, number] = rng.permutation(self.members[bucket])
        return self._orders[bucket, number]


class WeightedBatches:
    """Training batches with replacement: `batches(step)` chooses a bucket by its weight, then images by theirs.

    So each image comes as often as its weight says, whatever its bucket, and a bucket smaller than the batch
    repeats images. Each step has a generator of its own, from the seed and the step.
    """

    def __init__(
        self, assignment: Sequence[int] | np.ndarray, batch_size: int, seed: int, weights: Sequence[float] | np.ndarray
    ):
        """`weights` (N,), not negative. Raises UsageError for weights that do not fit or sum to 0."""
        self.members = _members(assignment, batch_size)
        self.batch_size, self.seed = batch_size, seed
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != np.shape(assignment) or not np.isfinite(weights).all() or (weights < 0).any():
            raise UsageError(f"Weights of images must be {np.shape(assignment)[0]} numbers of 0 or more.")
        self.buckets = [bucket for bucket, indices in self.members.items() if weights[indices].sum() > 0]
        if not self.buckets:
            raise UsageError("All images have the weight 0; give at least one a weight above 0.")
        self.cumulative = {bucket: np.cumsum(weights[self.members[bucket]]) for bucket in self.buckets}
        self.bucket_cumulative = np.cumsum([self.cumulative[bucket][-1] for bucket in self.buckets])

    def __call__(self, step: int) -> Batch:
        if step < 0:
            raise UsageError(f"The number of a batch is 0 or more, not {step}.")
        rng = np.random.default_rng([self.seed, step])
        bucket = self.buckets[int(_choose(self.bucket_cumulative, rng.random(1))[0])]
        return Batch(bucket, self.members[bucket][_choose(self.cumulative[bucket], rng.random(self.batch_size))])


def _choose(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices by weight from uniform numbers in [0, 1); never one of weight 0, nor past the end by rounding."""
    last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))
    return np.minimum(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), last)


def _members(assignment: Sequence[int] | np.ndarray, batch_size: int) -> dict[int, np.ndarray]:
    """Bucket -> its images in order, by rising bucket."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"A batch needs at least 1 image, not {batch_size!r}.")
    assignment = np.asarray(assignment)
    if assignment.ndim != 1 or not len(assignment):
        raise UsageError("There are no images to make batches of.")
    if not np.issubdtype(assignment.dtype, np.integer) or assignment.min() < 0:
        raise UsageError("Buckets are numbered from 0.")
    order = np.argsort(assignment, kind="stable")
    buckets, starts = np.unique(assignment[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {int(bucket): part for bucket, part in zip(buckets, parts, strict=True)}
