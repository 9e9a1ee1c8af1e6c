"""Bytes to an RGB picture, safely: an allow-list of decoders, limits, and one way for every colour mode."""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pixart.data.pairs import ImageProblem, printable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; the number from which Pillow, too, speaks of a bomb
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # JPEG includes the phones' MPO
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))
# Endings of pictures that are not read: they are reported, where other files are only counted.
UNREAD_EXTENSIONS = frozenset(
    (".svg", ".pdf", ".eps", ".psd", ".heic", ".heif", ".jxl", ".jp2", ".ico", ".tga", ".exr", ".hdr", ".dng", ".raw")
)
_READ_HERE = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are read."
_PNG = b"\x89PNG\r\n\x1a\n"
_STARTS = (
    (0, b"\x89PNG\r\n", "a PNG"),
    (0, b"\xff\xd8\xff", "a JPEG"),
    (0, b"GIF8", "a GIF"),
    (0, b"RIFF", "a WebP"),
    (4, b"ftypavi", "an AVIF"),
)
_OTHERS = (  # first bytes of what people rename to .png, so that the refusal can say what it is
    (b"%PDF", "a PDF document"),
    (b"%!PS", "an EPS or PostScript document"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"\x00\x00\x01\x00", "an icon file (ICO)"),
    (b"\x80\x04", "a Python pickle"),
)


@dataclass(frozen=True)
class Opened:
    """A picture as RGB, upright, on white, and what it was before.

    `format` is Pillow's name (PNG, JPEG, ...), `mode` the colour mode as stored, `alpha` whether any pixel was not
    fully opaque, `orientation` the EXIF orientation 1 to 8 that has been applied (1: nothing to do), `animated` whether
    there were more frames than the first, which is taken. `icc` tells of a colour profile, which is not applied.
    """

    image: "Image.Image"
    format: str
    mode: str
    alpha: bool
    orientation: int
    animated: bool
    icc: bool


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """The picture in `data`; `Opened.image` has mode RGB and the size after EXIF rotation.

    `max_pixels` above 178,956,970 does not help: there Pillow itself refuses. 16-bit grey keeps its high byte; floats
    must lie within 0 and 1. Raises ImageProblem for anything else: empty, format (not a picture that is read here: says
    what it is instead), bomb (more than `max_pixels`, or a text chunk that unpacks to megabytes), truncated, broken,
    mode (pixels whose range nobody can know).
    """
    from PIL import Image

    if not data:
        raise ImageProblem("empty", "The picture has no bytes.")
    _quiet_pillow()
    try:
        profile = None
        if data.startswith(_PNG):
            data, profile = _without_profile(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            if image.format == "PNG":
                _check_sums(data)
            orientation = _orientation(image)
            hidden = _hidden_colour(image, data)
            image.load()  # the first frame
            rgb, alpha = on_white(image, hidden)
            left = _orientation(image)  # 1 if Pillow has turned it already, as it does with TIFF
            if left > 1:
                rgb = rgb.transpose(_UPRIGHT[left])
            return Opened(
                image=rgb,
                format=image.format or "?",
                mode=image.mode,
                alpha=alpha,
                orientation=orientation,
                animated=bool(getattr(image, "is_animated", False)),
                icc=bool(profile or image.info.get("icc_profile")),
            )
    except ImageProblem:
        raise
    except Image.UnidentifiedImageError:
        begins = next((name for at, first, name in _STARTS if data.startswith(first, at)), None)
        if begins is not None:
            raise ImageProblem("broken", f"This begins as {begins}, but its header is damaged.") from None
        raise ImageProblem("format", f"This is {_what_it_is(data)}; {_READ_HERE}") from None
    except Image.DecompressionBombError:
        raise ImageProblem("bomb", "The picture claims more than 178,956,970 pixels.") from None
    except Exception as error:  # decoders fed with bad bytes raise nearly everything: struct.error, KeyError, ...
        raise _from_decoder(error) from None


@cache
def _quiet_pillow() -> None:
    """Its warnings (bombs, damaged EXIF) come without a name of the file, on top of what is said here."""
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


# What to do for each EXIF orientation (TIFF 6.0, tag 274), as numbers of Image.Transpose.
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def _orientation(image: "Image.Image") -> int:
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
    return value if value in _UPRIGHT else 1


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageProblem("bomb", f"The picture claims {width} x {height} pixels; at most {max_pixels:,} are decoded.")
    if width < 1 or height < 1:
        raise ImageProblem("broken", f"The picture claims {width} x {height} pixels.")


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


def _check_sums(data: bytes) -> None:
    """Refuse a PNG whose critical chunks do not have their CRC, which Pillow does not look at in pixels."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            raise ImageProblem("truncated", "The picture ends too early (within a PNG chunk).")
        name = data[at + 4 : at + 8]
        if name[:1].isupper() and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageProblem(
                "broken", f"The picture is damaged: a wrong check sum in {printable(name.decode('latin-1'))}."
            )
        if name == b"IEND":
            return
        at = end + 4
    raise ImageProblem("truncated", "The picture ends too early (a PNG without its end).")


def _from_decoder(error: Exception) -> ImageProblem:
    text = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
    if "MAX_TEXT" in text:
        return ImageProblem("bomb", "A text chunk of the picture unpacks to more than is allowed.")
    if isinstance(error, MemoryError):
        return ImageProblem("bomb", "The picture needs more memory than there is.")
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return ImageProblem("truncated", f"The picture ends too early ({text}).")
    return ImageProblem("broken", f"The picture cannot be decoded ({text}).")


def _what_it_is(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in data[:4096].lower():
        return "an SVG drawing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if data[4:8] == b"ftyp":
        return f"a file of type {printable(data[8:12].decode('ascii', 'replace').strip())} (HEIC or a video)"
    for first, name in _OTHERS:
        if data.startswith(first):
            return name
    return "no picture that is known here"


def on_white(image: "Image.Image", hidden: "np.ndarray | None" = None) -> tuple["Image.Image", bool]:
    """The image as RGB, with white where it is transparent (or `hidden`, (height, width)), and whether it is anywhere.

    The one definition of "on white". Raises ImageProblem (mode) for pixels whose range nobody can know.
    """
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(image)
    if hidden is not None:
        rgb = image.convert("RGB")
        rgb.paste("white", mask=Image.fromarray(hidden.astype(np.uint8) * 255))
        return rgb, bool(hidden.any())
    if image.mode == "La":  # Pillow turns premultiplied grey only into its plain form
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opacity = rgba.getchannel("A")
        if opacity.getextrema()[0] == 255:
            return rgba.convert("RGB"), False
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=opacity)
        return white, True
    if image.mode == "LAB":
        raise ImageProblem("mode", "The colours are stored as LAB, which is not read here; save it as RGB.")
    return (image.copy() if image.mode == "RGB" else image.convert("RGB")), False


def _from_numbers(image: "Image.Image") -> tuple["Image.Image", bool]:
    """Grey pictures of 16-bit or 32-bit integers, or of floats."""
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
