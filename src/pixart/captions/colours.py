"""Colour names for pixels, from a small vocabulary that people use."""

import numpy as np

COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "tan", "black", "grey", "white"
)  # fmt: skip


def colour_fractions(rgb: np.ndarray) -> dict[str, float]:
    """Share of each colour name among the pixels `rgb` (n, 3) uint8, largest first; colours below 1% are left out."""
    if len(rgb) == 0:
        return {}
    share = np.bincount(colour_indices(rgb), minlength=len(COLOURS)) / len(rgb)
    return {COLOURS[i]: round(float(share[i]), 4) for i in np.argsort(-share, kind="stable") if share[i] >= 0.01}


def colour_indices(rgb: np.ndarray) -> np.ndarray:
    """For each of the pixels `rgb` (n, 3) uint8 the place in `COLOURS` of its name, (n,).

    The names are regions of OKLCH (Ottosson 2020), so that lightness separates brown from orange and pink from red.
    """
    lightness, chroma, hue = _oklch(rgb)
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


def _oklch(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value = rgb.astype(np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122, 0.2119, 0.0883], [0.5363, 0.6807, 0.2817], [0.0514, 0.1074, 0.6300]], dtype=np.float32
    )
    lab = np.cbrt(cones) @ np.array(
        [[0.2105, 1.9780, 0.0259], [0.7936, -2.4286, 0.7828], [-0.0041, 0.4506, -0.8087]], dtype=np.float32
    )
    return lab[:, 0], np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360


def named_colours(fractions: dict[str, float]) -> list[str]:
    """The one to three colours worth saying: each at least 12% of the object and a sixth of the leading colour."""
    leading = max(fractions.values(), default=0.0)
    return [name for name, share in fractions.items() if share >= max(0.12, leading / 6)][:3]
