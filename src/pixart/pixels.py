"""What every part of this package means by an image on white, and by its edges."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def canny(pixels: np.ndarray) -> np.ndarray:
    """Edges of uint8 RGB (H, W, 3) by Canny's detector, white on black in three equal channels, as ControlNets are
    commonly trained on them: OpenCV's, with the thresholds 100 and 200.
    """
    import cv2

    return cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 100, 200)[:, :, None].repeat(3, axis=2)


def is_transparent(image: "Image.Image") -> bool:
    """Whether any pixel is not fully opaque."""
    opacity = opacity_of(image)
    return opacity is not None and opacity.getextrema()[0] < 255


def opacity_of(image: "Image.Image") -> "Image.Image | None":
    """The alpha channel of a PIL image of any mode, mode L; None where it can have none."""
    return _rgba(image).getchannel("A") if _may_be(image) else None


def on_white(image: "Image.Image") -> "Image.Image":
    """A PIL image of any mode as RGB, with white where it is transparent."""
    from PIL import Image

    if not _may_be(image):
        return image.convert("RGB")
    rgba = _rgba(image)
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _may_be(image: "Image.Image") -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _rgba(image: "Image.Image") -> "Image.Image":
    # Pillow turns premultiplied grey only into its plain form.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
