"""What every part of this package means by an image on white, and by its edges."""

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # that are read; JPEG includes the phones' MPO
# What to do for each EXIF orientation (TIFF 6.0, tag 274), as numbers of Image.Transpose.
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


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
    """A PIL image of any mode as RGB, with white where it is transparent; of 16-bit grey, the high bytes."""
    from PIL import Image

    image = eight_bits(image)
    if not _may_be(image):
        return image.convert("RGB")
    rgba = _rgba(image)
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def orientation_of(image: "Image.Image") -> int:
    """EXIF's orientation. Only this entry is read: Pillow reads all, and many may point at the same megabytes."""
    data = image.info.get("exif")
    try:
        if not isinstance(data, bytes):  # a TIFF file's own folder, which Pillow has read to open it
            value = image.getexif().get(0x0112, 1) if image.format == "TIFF" else 1
        else:
            data = data.removeprefix(b"Exif\0\0")
            order = {b"II": "<", b"MM": ">"}[data[:2]]
            start = struct.unpack_from(order + "I", data, 4)[0]
            (count,) = struct.unpack_from(order + "H", data, start)
            entries = (struct.unpack_from(order + "HHIH", data, start + 2 + 12 * n) for n in range(count))
            value = next((value for tag, kind, _, value in entries if (tag, kind) == (0x0112, 3)), 1)
    except Exception:  # EXIF written badly: the pixels are fine, and nothing says that they are rotated
        return 1
    return value if value in UPRIGHT else 1


def upright(image: "Image.Image") -> "Image.Image":
    """A PIL image, turned as its EXIF orientation says."""
    image.load()  # which turns TIFF by itself
    turn = orientation_of(image)
    return image.transpose(UPRIGHT[turn]) if turn > 1 else image


def eight_bits(image: "Image.Image") -> "Image.Image":
    """Of 16-bit grey the high bytes, where Pillow would make all that is not nearly black white; else the image."""
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _may_be(image: "Image.Image") -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _rgba(image: "Image.Image") -> "Image.Image":
    # Pillow turns premultiplied grey only into its plain form.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
