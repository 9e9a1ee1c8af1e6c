"""Features that nobody trained, so that no model can be fitted to them: colours, edges, textures, 1,024 numbers.

A thumbnail in CIELAB and a histogram of gradients (nearest.py), and the mean and deviation of what 64 random filters
see (random convolutions tell textures apart: Saxe et al., ICML 2011). Each part is divided by its mean distance between
two training pictures of the emoji data, so that all three matter equally.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pixart.captions.colours import colour_fractions, named_colours
from pixart.evaluation.judge import on_white
from pixart.evaluation.nearest import gradient_histogram, thumbnail

FILTERS, SIDE = 64, 5  # how many, and their side in pixels
LOOKED_AT = 64  # pixels a side, at which the filters look and colours are counted
BACKGROUND = 40  # how far from white, as the largest difference of a channel, the background may be
# The mean distance between two of 2,000 training pictures (benchmarks/judge_reference.py --scales).
SCALES = (766.5, 1.013, 1.344)


def plain(images: Sequence[Image.Image]) -> np.ndarray:
    """(N, 1024) float32; pictures may differ in size."""
    rows = np.zeros((len(images), 768 + 128 + 2 * FILTERS), np.float32)
    for row, image in zip(rows, images, strict=True):
        row[:] = np.concatenate([part / scale for part, scale in zip(parts(image), SCALES, strict=True)])
    return rows


def parts(image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thumbnail (768,), gradients (128,) and textures (128,), before they are scaled."""
    image = on_white(image)
    return thumbnail(image), gradient_histogram(image), textures(image)


def textures(image: Image.Image) -> np.ndarray:
    """Mean and deviation over the picture of what each filter sees of it, rectified: (2 * 64,)."""
    small = np.asarray(image.resize((LOOKED_AT, LOOKED_AT), Image.Resampling.BOX), np.float32) / 127.5 - 1
    windows = np.lib.stride_tricks.sliding_window_view(small, (SIDE, SIDE), axis=(0, 1))  # (60, 60, 3, 5, 5)
    seen = np.maximum(windows.reshape(-1, 3 * SIDE * SIDE) @ _filters(), 0)
    return np.concatenate([seen.mean(axis=0), seen.std(axis=0)])


@functools.cache
def _filters() -> np.ndarray:
    """(75, 64): normal numbers of a fixed seed, each filter with mean 0 and length 1."""
    filters = np.random.Generator(np.random.Philox(7)).standard_normal((3 * SIDE * SIDE, FILTERS)).astype(np.float32)
    filters -= filters.mean(axis=0)
    return filters / np.linalg.norm(filters, axis=0)


def leading_colour(image: Image.Image) -> str | None:
    """The name of the colour that most of the object has, by captions/colours.py; None for an empty picture.

    The object is what the background, white from the border inwards, leaves.
    """
    from PIL import ImageDraw

    rgb = on_white(image).resize((LOOKED_AT, LOOKED_AT), Image.Resampling.BOX)
    # A border of white, so that one flood from the corner reaches the background on all sides.
    framed = Image.new("RGB", (rgb.width + 2, rgb.height + 2), "white")
    framed.paste(rgb, (1, 1))
    flooded = framed.copy()
    ImageDraw.floodfill(flooded, (0, 0), (255, 0, 254), thresh=BACKGROUND)
    pixels, filled = np.asarray(framed), np.asarray(flooded)
    background = (filled == (255, 0, 254)).all(axis=2)
    names = named_colours(colour_fractions(pixels[~background]))
    return names[0] if names else None
