"""An image of something on white -> the thing alone, on nothing: RGBA, as stickers need it.

The shipped model generates on white, so what is white and reaches the border is ground. At the thing's edge a pixel is
a mixture, `alpha · colour + (1 - alpha) · white`; the colour is taken from just inside, and alpha follows. White that
does not reach the border, an eye or a window, stays.
"""

import numpy as np
from PIL import Image

NEAR_WHITE = 12  # a channel may be so far below 255 and still be ground: a decoder does not give exact white
EDGE = 3  # pixels from the ground inwards that may be mixtures
LEAST = 0.02  # alpha below which a pixel is ground
PALEST = 225  # of the border's median colour, every channel: what is darker is no white ground with a tint


def cut_out(image: Image.Image) -> Image.Image:
    """An RGB image on white -> RGBA of the same size, colours not premultiplied.

    An image without white at its border comes back opaque. Where a thing without an outline is itself white, it
    cannot be distinguished from the ground.
    """
    pixels = _whitened(np.asarray(image.convert("RGB")).astype(np.float32))
    ground = _reached(pixels.min(axis=2) >= 255 - NEAR_WHITE)
    inner = ~_grown(ground, EDGE)
    colour, known = _spread(pixels, inner, EDGE + 1)
    below, full = 255 - pixels, 255 - colour  # how far from white a pixel is, and its colour
    strength = (full * full).sum(axis=2)
    alpha = (below * full).sum(axis=2) / np.maximum(strength, 1)
    # Thin lines have no inside to take a colour from, and on a light thing white says nothing: they stay as they are.
    alpha = np.where(known & (strength > 30**2), alpha.clip(0, 1), 1.0)
    alpha = np.where(inner, 1.0, alpha)
    alpha[ground | (alpha < LEAST)] = 0
    unmixed = 255 - below / np.maximum(alpha, LEAST)[..., None]
    rgba = np.dstack([np.where(alpha[..., None] > 0, unmixed.clip(0, 255), 255), alpha * 255])
    return Image.fromarray(np.rint(rgba).astype(np.uint8), "RGBA")


def _whitened(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) with the tint taken back that a model may leave on its white, as the border shows it."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    return (pixels * (255 / ground)).clip(0, 255) if ground.min() >= PALEST else pixels


def _reached(white: np.ndarray) -> np.ndarray:
    """The part of a mask (H, W) that is joined to the border, by sides."""
    reached = np.zeros_like(white)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        reached[edge] = white[edge]
    while True:
        more = _grown(reached, 1) & white
        if (more == reached).all():
            return reached
        reached = more


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask and all that lies within so many steps of it, by sides."""
    for _ in range(steps):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def _spread(pixels: np.ndarray, known: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) of the known pixels, carried outwards: each next pixel has the mean of its known neighbours."""
    colour, known = pixels * known[..., None], known.copy()
    for _ in range(steps):
        total, count = np.zeros_like(colour), np.zeros(known.shape, np.float32)
        for axis in (0, 1):
            for step in (1, -1):
                near, there = np.roll(colour, step, axis), np.roll(known, step, axis)
                rim = np.s_[0 if step == 1 else -1] if axis == 0 else np.s_[:, 0 if step == 1 else -1]
                there[rim] = False  # what was rolled around
                total += near * there[..., None]
                count += there
        new = ~known & (count > 0)
        colour[new] = total[new] / count[new][:, None]
        known |= new
    return colour, known
