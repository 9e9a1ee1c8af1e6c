"""The noise that a picture starts from: one stream per picture, named by its seed."""

import numpy as np

MAX_SEED = 2**32 - 1  # what other tools that read our picture files can hold


def initial_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw standard normal float32 noise of shape (C, h, w) from the Philox stream of `seed`.

    Philox is counter-based and its stream is fixed by numpy's compatibility policy, so the same seed gives the same
    noise alone, in a batch, on every engine and device.
    """
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32)
