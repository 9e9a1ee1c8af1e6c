"""Rows of the global batch: which of them a process takes, and the random numbers that belong to each.

A step trains on one global batch. One process may take all of it, or in parts one after the other (accumulation), or
many processes may take a part each. Every random number of a step is a function of (seed, step, row of the global
batch), so what is computed does not depend on who computes it.
"""

from dataclasses import dataclass

import numpy as np

from pixart.errors import UsageError


@dataclass(frozen=True)
class MicrobatchSlice:
    """Part `part` of `parts` equal parts of a batch."""

    part: int = 0
    parts: int = 1

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch of `batch_size` that are this part. UsageError where it cannot be cut evenly."""
        if batch_size % self.parts:
            raise UsageError(
                f"A batch of {batch_size} cannot be cut into {self.parts} equal parts (processes times "
                "loop.accumulate). Give a batch_size that is a multiple, fewer processes or a smaller loop.accumulate."
            )
        size = batch_size // self.parts
        return range(self.part * size, (self.part + 1) * size)


ALL_ROWS = MicrobatchSlice()


class RowStreams:
    """A random stream for each row of a batch, with the two methods of numpy's Generator that training needs.

    The stream of a row is Philox with the key (seed, purpose) and the counter (0, number of the call, row, step): a
    counter-based generator can start anywhere, so a process that holds rows 64 to 127 draws what one that holds all
    rows draws there. Each call's shape begins with the number of rows.
    """

    def __init__(self, seed: int, step: int, rows: range, *, purpose: int = 0):
        """`purpose` keeps apart who draws at the same step: the batches are 1, the loss is 0."""
        self.rows, self.step, self.calls = rows, step, 0
        self.philox = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self.generator = np.random.Generator(self.philox)

    def random(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Uniform numbers in [0, 1), float64, of `shape` = (rows, ...)."""
        out = np.empty(shape)
        for row in self._each(out):
            self.generator.random(out=row)
        return out

    def standard_normal(self, shape: int | tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """Normal numbers of `shape` = (rows, ...)."""
        out = np.empty(shape, dtype)
        for row in self._each(out):
            self.generator.standard_normal(dtype=dtype, out=row)
        return out

    def _each(self, out: np.ndarray):
        """Row after row of `out`, each with the generator at the beginning of that row's stream for this call."""
        if len(out) != len(self.rows):
            raise ValueError(f"random numbers for {len(out)} rows were drawn for a batch of {len(self.rows)}")
        state = self.philox.state
        state["buffer_pos"], state["has_uint32"] = 4, 0  # nothing is left over from another row
        for row, values in zip(self.rows, out.reshape(len(out), -1), strict=True):
            state["state"]["counter"] = np.array([0, self.calls, row, self.step], dtype=np.uint64)
            self.philox.state = state
            yield values
        self.calls += 1
