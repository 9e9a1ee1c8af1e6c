"""Bytes to an RGB picture, safely: an allow-list of decoders, limits, and one way for every colour mode."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixart.data.pairs import ImageProblem

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; the number from which Pillow, too, speaks of a bomb


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

    Raises ImageProblem for anything else: empty, format (not a picture that is read here: says what it is instead),
    bomb (more than `max_pixels`, or a text chunk that unpacks to megabytes), truncated, broken, mode.
    """
    raise ImageProblem("broken", "The readers are being written.")
