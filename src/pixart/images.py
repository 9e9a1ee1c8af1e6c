"""Bytes to an RGB image, safely: an allow-list of decoders, limits, and one way for every colour mode."""

import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pixart.errors import PixArtError
from pixart.pixels import FORMATS, UPRIGHT, is_transparent, on_white, opacity_of, orientation_of

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # 0.3 GB as RGB; a little over the number from which Pillow warns of a bomb
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))
# Endings of images that are not read: they are reported, where other files are only counted.
UNREAD_EXTENSIONS = frozenset(
    (".svg", ".pdf", ".eps", ".psd", ".heic", ".heif", ".jxl", ".jp2", ".ico", ".tga", ".exr", ".hdr", ".dng", ".raw")
)
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageProblem(PixArtError):
    """One image cannot be read or used. `kind` is a short fixed word for counting, `reason` a sentence for people."""

    def __init__(self, kind: str, reason: str):
        reason = printable(reason)
        super().__init__(kind, reason)  # both stand in args, so that it travels between processes
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def printable(text: str) -> str:
    """`text` with control, format and surrogate characters written as escapes, so that it is one harmless line."""
    if text.isprintable():
        return text
    # Zero-width joiners are not printable for Python, but emoji are made with them.
    return "".join(c if c.isprintable() or c == "\u200d" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Opened:
    """An image as RGB, upright, on white, and what it was before.

    `format` is Pillow's name (PNG, JPEG, ...), `mode` the colour mode as stored, `alpha` whether any pixel was not
    fully opaque and `opacity` then its alpha channel (mode L, upright), `orientation` the EXIF orientation 1 to 8 that
    has been applied (1: nothing to do), `animated` whether there were more frames than the first, which is taken. `icc`
    tells of a colour profile, which is not applied.
    """

    image: "Image.Image"
    format: str
    mode: str
    alpha: bool
    orientation: int
    animated: bool
    icc: bool
    opacity: "Image.Image | None" = None


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """The image in `data`; `Opened.image` has mode RGB and the size after EXIF rotation.

    `max_pixels` above 178,956,970 does not help: there Pillow itself refuses. 16-bit grey keeps its high byte; floats
    must lie within 0 and 1. Raises ImageProblem for anything else: empty, format (not an image that is read here: says
    what it is instead), bomb (more than `max_pixels`, or a text chunk that unpacks to megabytes), truncated, broken,
    mode (pixels whose range nobody can know).
    """
    from PIL import Image

    if not data:
        raise ImageProblem("empty", "The image has no bytes.")
    _quiet_pillow()
    try:
        profile = None
        if data.startswith(_PNG):
            data, profile = _without_profile(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            if image.format == "PNG":  # whose checksums Pillow does not look at when it decodes
                with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
                    copy.verify()
            orientation = orientation_of(image)
            hidden = _hidden_colour(image, data)
            image.load()  # the first frame
            rgb, alpha = _rgb(image, hidden)
            opacity = opacity_of(image) if alpha else None
            left = orientation_of(image)  # 1 if Pillow has turned it already, as it does with TIFF
            if left > 1:
                rgb = rgb.transpose(UPRIGHT[left])
                opacity = opacity and opacity.transpose(UPRIGHT[left])
            return Opened(
                image=rgb,
                format=image.format or "?",
                mode=image.mode,
                alpha=alpha,
                orientation=orientation,
                animated=bool(getattr(image, "is_animated", False)),
                icc=bool(profile or image.info.get("icc_profile")),
                opacity=opacity,
            )
    except ImageProblem:
        raise
    except Image.UnidentifiedImageError:
        begun = [name for name in FORMATS if Image.OPEN[name][1](data[:16]) is True]
        if begun:
            raise ImageProblem("broken", f"This begins as {begun[0]}, but its header is damaged.") from None
        start = data[:12].decode("ascii", "backslashreplace")
        raise ImageProblem("format", f'This begins with "{start}" and is none of {", ".join(FORMATS)}.') from None
    except Image.DecompressionBombError:
        most = min(max_pixels, 2 * Image.MAX_IMAGE_PIXELS)
        raise ImageProblem("bomb", f"The image claims too many pixels; at most {most:,} are decoded.") from None
    except Exception as error:  # decoders fed with bad bytes raise nearly everything: struct.error, KeyError, ...
        raise _from_decoder(error) from None


@cache
def _quiet_pillow() -> None:
    """Its warnings (bombs, damaged EXIF) come without a name of the file, on top of what is said here."""
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageProblem("bomb", f"The image claims {width} x {height} pixels; at most {max_pixels:,} are decoded.")
    if width < 1 or height < 1:
        raise ImageProblem("broken", f"The image claims {width} x {height} pixels.")


def _without_profile(data: bytes) -> tuple[bytes, bool]:
    """A PNG without its colour profile, and whether it had one.

    It is not applied, and Pillow refuses the whole image where it unpacks to more than a megabyte, as printers' do.
    """
    at = len(_PNG)
    while at + 12 <= len(data) and data[at + 4 : at + 8] not in (b"IDAT", b"IEND"):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"iCCP":
            return data[:at] + data[end:], True
        at = end
    return data, False


def _hidden_colour(image: "Image.Image", data: bytes) -> "np.ndarray | None":
    """Where the pixels of a PNG have the one colour that its tRNS chunk makes transparent, (height, width).

    Only for the depths at which Pillow compares that colour with scaled pixels, and so finds none of them: grey of 2
    and 4 bits, and RGB of 16. Call it before `image.load()`.
    """
    from PIL import Image

    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None or image.mode not in ("L", "RGB"):
        return None
    depth = data[24]  # in the IHDR chunk, which is the first
    if image.mode == "L" and depth in (2, 4):
        del image.info["transparency"]
        return np.asarray(image) == colour * (255 // (2**depth - 1))
    if image.mode == "RGB" and depth == 16:
        del image.info["transparency"]
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            # Pillow keeps the high byte of each number; read with the bytes swapped, it keeps the low one.
            low.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in low.tile]
            bytes_ = (np.asarray(image).astype(np.int64) << 8) | np.asarray(low)
        return (bytes_ == np.asarray(colour)).all(axis=-1)
    return None


def _from_decoder(error: Exception) -> ImageProblem:
    text = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
    if "MAX_TEXT" in text:
        return ImageProblem("bomb", "A text chunk of the image unpacks to more than is allowed.")
    if isinstance(error, MemoryError):
        return ImageProblem("bomb", "The image needs more memory than there is.")
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return ImageProblem("truncated", f"The image ends too early ({text}).")
    return ImageProblem("broken", f"The image cannot be decoded ({text}).")


def _rgb(image: "Image.Image", hidden: "np.ndarray | None") -> tuple["Image.Image", bool]:
    """The image as RGB on white (also where it is `hidden`, (height, width)), and whether it was transparent anywhere.

    Raises ImageProblem (mode) for pixels whose range nobody can know.
    """
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(image)
    if image.mode == "LAB":
        raise ImageProblem("mode", "The colours are stored as LAB, which is not read here; save it as RGB.")
    rgb, transparent = on_white(image), is_transparent(image)
    if hidden is not None:
        rgb.paste("white", mask=Image.fromarray(hidden.astype(np.uint8) * 255))
        transparent = bool(hidden.any())
    return rgb, transparent


def _from_numbers(image: "Image.Image") -> tuple["Image.Image", bool]:
    """Grey images of 16-bit or 32-bit integers, or of floats."""
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageProblem("mode", "The pixels are floats outside 0 to 1, so white is not known; save as 8 bit.")
        grey = np.rint(values * 255)
    elif image.mode == "I" and image.format != "PNG":  # in a PNG they are 16-bit values, in a TIFF anything
        raise ImageProblem("mode", "The pixels are 32-bit or signed integers, so white is not known; save as 8 bit.")
    else:
        grey = values.astype(np.int64) >> 8  # the high byte, as Pillow does for 16-bit colour
    transparent = image.info.get("transparency")
    holes = values == transparent if isinstance(transparent, int) else np.zeros_like(values, bool)
    grey = np.where(holes, 255, grey).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB"), bool(holes.any())
