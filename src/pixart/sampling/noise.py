"""The noise that a picture starts from: one stream per picture, named by its seed."""

from collections.abc import Callable

import numpy as np

MAX_SEED = 2**32 - 1  # what other tools that read our picture files can hold


def initial_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The noise that a picture starts from: the first draw of `noise_stream`."""
    return noise_stream(seed, shape)()


def noise_stream(seed: int, shape: tuple[int, int, int]) -> Callable[[], np.ndarray]:
    """A function that draws standard normal float32 noise of shape (C, h, w), anew at each call, from one seed.

    Philox is counter-based and its stream is fixed by numpy's compatibility policy, so the same seed gives the same
    noise alone, in a batch, on every engine and device.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    return lambda: generator.standard_normal(shape, dtype=np.float32)
