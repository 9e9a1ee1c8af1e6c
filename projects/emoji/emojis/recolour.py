"""Turning the leading colour of an image on white to another one, so that a blue apple can be shown.

In OKLab the hue is turned, chroma scaled, and lightness bent so that the leading colour lands where
the new name lives; black stays black and white white, and so do the borders towards both, outlines and highlights.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from emojis.colours import COLOURS, colour_fractions, colour_indices, object_pixels, oklab, oklab_to_linear

# Lightness, chroma and hue (degrees) where people and icon sets have these names.
ANCHORS = {
    "red": (0.60, 0.21, 26.0),
    "orange": (0.74, 0.17, 57.0),
    "yellow": (0.87, 0.165, 92.0),
    "green": (0.66, 0.17, 146.0),
    "blue": (0.60, 0.165, 254.0),
    "purple": (0.54, 0.18, 303.0),
    "pink": (0.76, 0.135, 356.0),
    "brown": (0.47, 0.085, 52.0),
}
NEUTRAL = ("black", "grey", "white")
_PLACES = np.array([65536, 256, 1], dtype=np.uint32)


@dataclass(frozen=True)
class Leading:
    """The chromatic colour that most of an object has: its name, and its typical lightness, chroma and hue in degrees.

    `share` of the object would change with it, `other` of the object has chromatic colours that would not.
    """

    name: str
    lightness: float
    chroma: float
    hue: float
    share: float
    other: float


def leading(image: Image.Image) -> Leading | None:
    """What the leading chromatic colour of an image on white is; None where there is none."""
    pixels = object_pixels(image)
    fractions = {name: share for name, share in colour_fractions(pixels).items() if name not in NEUTRAL}
    if not fractions:
        return None
    name = next(iter(fractions))
    lab = oklab(pixels)
    lightness, along, across = np.median(lab[colour_indices(pixels) == COLOURS.index(name)], axis=0)
    chroma, hue = float(np.hypot(along, across)), float(np.degrees(np.arctan2(across, along)) % 360)
    changed = _weight(lab, chroma, hue) > 0.5
    vivid = np.hypot(lab[:, 1], lab[:, 2]) > 0.05
    return Leading(name, float(lightness), chroma, hue, float(changed.mean()), float((vivid & ~changed).mean()))


def recoloured(image: Image.Image, found: Leading, anchor: tuple[float, float, float]) -> Image.Image:
    """A copy of an RGB image on white, its leading colour turned to `anchor` (lightness, chroma, hue in degrees)."""
    to_lightness, to_chroma, to_hue = anchor
    pixels = np.asarray(image.convert("RGB"))
    # Each distinct colour once: most images have a few hundred.
    codes, back = np.unique(pixels.reshape(-1, 3).astype(np.uint32) @ _PLACES, return_inverse=True)
    rgb = (codes[:, None] // _PLACES % 256).astype(np.uint8)
    lab = oklab(rgb)
    weight = _weight(lab, found.chroma, found.hue)[:, None]
    bent = np.interp(lab[:, 0], (0, found.lightness, 1), (0, to_lightness, 1))
    # Shadows of yellow are amber, not olive; those of orange are redder.
    turn = 30 * np.clip((to_lightness - bent) / 0.4, 0, 1) if 50 <= to_hue <= 100 and to_chroma > 0.12 else 0
    hue = np.radians(to_hue + 0.4 * _away(lab, found.hue) - turn)
    chroma = np.hypot(lab[:, 1], lab[:, 2]) * to_chroma / found.chroma
    new = np.stack([bent, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    out = np.where(weight > 0, _inside(lab + weight * (new - lab)), rgb).astype(np.uint8)
    return Image.fromarray(out[back].reshape(pixels.shape))


def _away(lab: np.ndarray, hue: float) -> np.ndarray:
    """How many degrees each pixel is from `hue`, -180 to 180."""
    return (np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) - hue + 180) % 360 - 180


def _weight(lab: np.ndarray, chroma: float, hue: float) -> np.ndarray:
    """How far each pixel (n, 3) belongs to the leading colour, 0 to 1.

    Vivid pixels may be further away in hue than pale ones: shading shifts hues, and a stem is not the apple.
    """
    of = np.hypot(lab[:, 1], lab[:, 2])
    away, vivid = np.abs(_away(lab, hue)), _smooth(of / chroma, 0.3, 0.7)
    return (1 - _smooth(away, 20 + 18 * vivid, 30 + 24 * vivid)) * _smooth(of, 0.006, 0.02)


def _smooth(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    at = np.clip((x - low) / (high - low), 0, 1)
    return at * at * (3 - 2 * at)


def _inside(lab: np.ndarray) -> np.ndarray:
    """(n, 3) uint8; colours that no screen has lose chroma, not lightness or hue, until one has them."""
    low, high, scale = np.zeros(len(lab), np.float32), *np.ones((2, len(lab)), np.float32)
    for _ in range(8):
        linear = oklab_to_linear(lab * np.stack([np.ones_like(scale), scale, scale], axis=1))
        fits = ((linear >= -0.002) & (linear <= 1.002)).all(axis=1)
        low, high = np.where(fits, scale, low), np.where(fits, high, scale)
        scale = (low + high) / 2
    linear = np.clip(oklab_to_linear(lab * np.stack([np.ones_like(scale), scale, scale], axis=1)), 0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(value * 255)
