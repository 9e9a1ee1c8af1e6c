"""Features that nobody trained, so that no model can be fitted to them: colours, edges, textures, 1,024 numbers.

A 16 x 16 thumbnail in CIELAB (which colours are where), a histogram of gradient directions on a 4 x 4 grid (which edges
are where, after Dalal and Triggs, CVPR 2005, section 6, with one normalisation for the image, so that a soft image is
not nearest to whatever has faint edges), and the mean and deviation of what 64 random filters see (random convolutions
tell textures apart: Saxe et al., ICML 2011). Each part is divided by its mean distance between two training images of
the emoji data, so that all three matter equally.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from emojis.colours import cielab
from pixart.pixels import on_white

THUMBNAIL = 16  # pixels a side
EDGES = 64  # pixels a side of the grey copy that gradients are taken of, and of the copy that the filters see
CELLS = 4  # a side
ORIENTATIONS = 8
FILTERS, SIDE = 64, 5  # how many, and their side in pixels
SCALES = (766.5, 1.013, 1.344)  # the mean distances between two of 2,000 training images


def plain(images: Sequence[Image.Image]) -> np.ndarray:
    """(N, 1024) float32; images may differ in size."""
    rows = np.zeros((len(images), 768 + 128 + 2 * FILTERS), np.float32)
    for row, image in zip(rows, images, strict=True):
        image = on_white(image)
        parts = thumbnail(image), gradient_histogram(image), textures(image)
        row[:] = np.concatenate([part / scale for part, scale in zip(parts, SCALES, strict=True)])
    return rows


def thumbnail(image: Image.Image) -> np.ndarray:
    """The image at 16 x 16 in CIELAB, flat: (768,)."""
    return cielab(np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))).ravel()


def gradient_histogram(image: Image.Image) -> np.ndarray:
    """Gradient strength by cell and direction, flat and of length 1 (0 for an even image): (4 * 4 * 8,).

    Directions are taken without sign (an edge from dark to light equals its reverse); bins are centred on 0, 22.5, ...
    degrees, so that the many upright and level edges do not fall on the border of two bins.
    """
    grey = np.asarray(image.convert("L").resize((EDGES, EDGES), Image.Resampling.BOX), dtype=float)
    down, right = np.gradient(grey)
    angle = np.arctan2(down, right) * ORIENTATIONS / np.pi
    orientation = np.round(angle).astype(int) % ORIENTATIONS
    row, column = np.indices(grey.shape) * CELLS // EDGES
    place = (row * CELLS + column) * ORIENTATIONS + orientation
    histogram = np.bincount(place.ravel(), np.hypot(down, right).ravel(), CELLS**2 * ORIENTATIONS)
    return histogram / max(np.linalg.norm(histogram), 1e-9)


def textures(image: Image.Image) -> np.ndarray:
    """Mean and deviation over the image of what each filter sees of it, rectified: (2 * 64,)."""
    small = np.asarray(image.resize((EDGES, EDGES), Image.Resampling.BOX), np.float32) / 127.5 - 1
    windows = np.lib.stride_tricks.sliding_window_view(small, (SIDE, SIDE), axis=(0, 1))  # (60, 60, 3, 5, 5)
    seen = np.maximum(windows.reshape(-1, 3 * SIDE * SIDE) @ _filters(), 0)
    return np.concatenate([seen.mean(axis=0), seen.std(axis=0)])


@functools.cache
def _filters() -> np.ndarray:
    """(75, 64): normal numbers of a fixed seed, each filter with mean 0 and length 1."""
    filters = np.random.Generator(np.random.Philox(7)).standard_normal((3 * SIDE * SIDE, FILTERS)).astype(np.float32)
    filters -= filters.mean(axis=0)
    return filters / np.linalg.norm(filters, axis=0)
