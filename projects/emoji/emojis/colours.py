"""Colour spaces, and names for colours from a small vocabulary that people use."""

import numpy as np
from PIL import Image

from pixart.pixels import on_white

COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "tan", "black", "grey", "white"
)  # fmt: skip
SMALL = 64  # pixels a side of the copy on which colours are counted
BACKGROUND = 40  # how far from white, summed over the channels, the background may be

# Linear sRGB to CIE XYZ with the D65 white, IEC 61966-2-1.
_RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# Linear sRGB to the cone responses, and their cube roots to OKLab (Ottosson 2020).
_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], dtype=np.float32,
)  # fmt: skip
_TO_OKLAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], dtype=np.float32,
)  # fmt: skip


def to_linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 (...) to linear light in 0..1, float32 (IEC 61966-2-1)."""
    value = np.asarray(rgb, np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 (..., 3) to CIELAB (..., 3): L* in 0..100, a* and b* about -110..110 (CIE 15, section 8.2.1).

    The reference white is the one that the matrix gives to (255, 255, 255), so that every grey has a* = b* = 0.
    """
    ratio = to_linear(rgb) @ _RGB_TO_XYZ.T / _RGB_TO_XYZ.sum(axis=1)
    edge = 6 / 29
    f = np.where(ratio > edge**3, np.cbrt(ratio), ratio / (3 * edge**2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 (n, 3) to OKLab (n, 3)."""
    return np.cbrt(to_linear(rgb) @ _TO_CONES.T) @ _TO_OKLAB.T


def oklab_to_linear(lab: np.ndarray) -> np.ndarray:
    """OKLab (n, 3) to linear sRGB (n, 3), beyond 0..1 where no screen has the colour."""
    return (lab @ np.linalg.inv(_TO_OKLAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T


def colour_indices(rgb: np.ndarray) -> np.ndarray:
    """For each of the pixels `rgb` (n, 3) uint8 the place in `COLOURS` of its name, (n,).

    The names are regions of OKLCH, so that lightness separates brown from orange and pink from red.
    """
    lab = oklab(rgb)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    index = {name: i for i, name in enumerate(COLOURS)}
    names = np.full(len(rgb), index["purple"])
    for low, high, name in ((115, 170, "green"), (170, 215, "teal"), (215, 285, "blue"), (285, 330, "purple")):
        names[(hue >= low) & (hue < high)] = index[name]
    rosy = (hue >= 330) | (hue < 15)
    names[rosy] = np.where(lightness[rosy] > 0.55, index["pink"], index["red"])
    reddish = (hue >= 15) & (hue < 40)
    names[reddish] = index["red"]
    names[reddish & (lightness >= 0.74)] = index["pink"]
    names[reddish & (chroma < 0.11) & (lightness < 0.74)] = index["brown"]
    amber = (hue >= 40) & (hue < 75)
    names[amber] = index["tan"]
    names[amber & (lightness < 0.6)] = index["brown"]
    names[amber & (chroma > 0.125) & (lightness >= 0.6)] = index["orange"]
    names[amber & (chroma > 0.12) & (lightness >= 0.79) & (hue >= 68)] = index["yellow"]
    golden = (hue >= 75) & (hue < 115)
    names[golden] = index["tan"]
    names[golden & (lightness < 0.62)] = index["brown"]
    names[golden & (chroma > 0.1) & (lightness >= 0.62)] = index["yellow"]
    neutral = (chroma < 0.03) | ((lightness < 0.28) & (chroma < 0.06))
    names[neutral] = index["grey"]
    names[neutral & (lightness < 0.38)] = index["black"]
    names[neutral & (lightness > 0.88)] = index["white"]
    return names


def colour_fractions(rgb: np.ndarray) -> dict[str, float]:
    """Share of each colour name among the pixels `rgb` (n, 3) uint8, largest first; colours below 1% are left out."""
    if len(rgb) == 0:
        return {}
    share = np.bincount(colour_indices(rgb), minlength=len(COLOURS)) / len(rgb)
    return {COLOURS[i]: round(float(share[i]), 4) for i in np.argsort(-share, kind="stable") if share[i] >= 0.01}


def named_colours(fractions: dict[str, float]) -> list[str]:
    """The one to three colours worth naming: each at least 12% of the object and a sixth of the leading colour."""
    leading = max(fractions.values(), default=0.0)
    return [name for name, share in fractions.items() if share >= max(0.12, leading / 6)][:3]


def object_pixels(image: Image.Image) -> np.ndarray:
    """The pixels (n, 3) of a 64-px copy that the background, white from the border inwards, leaves."""
    rgb = np.asarray(on_white(image).resize((SMALL, SMALL), Image.Resampling.BOX))
    white = np.pad((255 - rgb.astype(int)).sum(axis=2) <= BACKGROUND, 1, constant_values=True)
    background, more = np.zeros_like(white), np.pad(np.zeros(rgb.shape[:2], bool), 1, constant_values=True)
    while (more != background).any():  # from the frame inwards, by sides
        background, more = more, more.copy()
        for to, by in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
            more[to] |= background[by]
            more[:, to] |= background[:, by]
        more &= white
    return rgb[~background[1:-1, 1:-1]]


def leading_colour(image: Image.Image) -> tuple[str | None, float]:
    """The name of the colour that most of the object has, and its share; (None, 0) for an empty image."""
    return next(iter(colour_fractions(object_pixels(image)).items()), (None, 0.0))
