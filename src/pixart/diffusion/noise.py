"""The noise of one image: a stream of its own, named by its seed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_SEED = 2**32 - 1  # what other tools that read our image files can hold


def noise_stream(seed: int, shape: tuple[int, int, int]) -> "Callable[[], np.ndarray]":
    """A function that gives standard normal float32 noise of shape (C, h, w), anew at each call, from one seed.

    Philox is counter-based and its stream is fixed by numpy's compatibility policy, so the same seed gives the same
    noise alone, in a batch, on every engine and device.
    """
    import numpy as np

    generator = np.random.Generator(np.random.Philox(seed))
    return lambda: generator.standard_normal(shape, dtype=np.float32)


def initial_noise(seed: int, shape: tuple[int, int, int]) -> "np.ndarray":
    """The noise that an image starts from: the first of `noise_stream`."""
    return noise_stream(seed, shape)()
