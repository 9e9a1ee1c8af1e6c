"""Images to start from, and masks: read with a limit, and fitted to the size that is generated."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pixart import images
from pixart.errors import UsageError, shown
from pixart.files import read_bytes
from pixart.pipeline.bins import fit
from pixart.pixels import on_white

MAX_BYTES = 512 << 20
FEATHER = 4  # pixels over which what was generated passes into the image around a mask
OVERLAP = 8  # pixels of an image that are generated anew at the border of what is added around it


@dataclass(frozen=True)
class ImageInput:
    """An image to start from, and where in it to generate: paths, which are read when they are used, or PIL images."""

    image: Any
    mask: Any | None
    outpaint: bool
    size: tuple[int, int]  # of the image, width and height

    @cached_property
    def sha256(self) -> str:
        """Of the image's pixels as they were given."""
        return hashlib.sha256(open_image(self.image, "image").tobytes()).hexdigest()

    def fills(self, height: int, width: int) -> bool:
        """Whether it leaves nothing to generate around it."""
        scale = min(1, width / self.size[0], height / self.size[1])
        return round(self.size[0] * scale) >= width and round(self.size[1] * scale) >= height

    def fitted(self, height: int, width: int, say: Callable[[str], None]) -> "FittedImage":
        """At the size that is generated: resized to cover it and cut in the middle, or laid into it for outpainting."""
        image = open_image(self.image, "image")
        if self.outpaint:
            return _laid_into(image, height, width, say)
        given = image.size
        if given != (width, height):
            say(f"The image of {given[0]} x {given[1]} pixels was resized and cut to {width} x {height}.")
        mask = None
        if self.mask is not None:
            mask = open_image(self.mask, "mask").convert("L")
            if mask.size != given:
                say(f"The mask of {mask.width} x {mask.height} pixels was resized to {given[0]} x {given[1]}.")
            mask = np.asarray(fit(mask.resize(given), height, width)) >= 128
        return FittedImage(np.asarray(fit(image, height, width)), mask)


@dataclass(frozen=True, eq=False)
class FittedImage:
    """`pixels` uint8 RGB (H, W, 3) of the size that is generated; `mask` bool (H, W), None: all of it."""

    pixels: np.ndarray
    mask: np.ndarray | None

    def latent_mask(self, factor: int) -> np.ndarray | None:
        """(1, 1, h, w) float32, 1 where any pixel of a latent cell is to be generated."""
        if self.mask is None:
            return None
        height, width = (side // factor for side in self.mask.shape)
        cells = self.mask.reshape(height, factor, width, factor).any(axis=(1, 3))
        return cells[None, None].astype(np.float32)

    @property
    def hashes(self) -> dict[str, str | None]:
        """SHA-256 of both, which name them in image metadata."""
        mask = None if self.mask is None else hashlib.sha256(self.mask.tobytes()).hexdigest()
        return {"sha256": hashlib.sha256(self.pixels.tobytes()).hexdigest(), "mask_sha256": mask}

    def pasted(self, generated: Any) -> Any:
        """The generated PIL image with the given pixels outside of the mask, bit by bit but for a soft border."""
        from PIL import Image, ImageFilter

        if self.mask is None:
            return generated
        mask = Image.fromarray(self.mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(FEATHER / 2))
        return Image.composite(generated, Image.fromarray(self.pixels), mask)


def _laid_into(image: Any, height: int, width: int, say: Callable[[str], None]) -> "FittedImage":
    if image.width > width or image.height > height:
        image = image.copy()
        image.thumbnail((width, height))
        say(f"The image was shrunk to {image.width} x {image.height} pixels.")
    top, left = (height - image.height) // 2, (width - image.width) // 2
    sides = ((top, height - image.height - top), (left, width - image.width - left))
    pixels = np.pad(np.asarray(image), (*sides, (0, 0)), mode="edge")
    mask = np.ones((height, width), bool)
    inner = [
        slice(low + OVERLAP * (low > 0), end - high - OVERLAP * (high > 0))
        for (low, high), end in zip(sides, mask.shape, strict=True)
    ]
    mask[inner[0], inner[1]] = False
    return FittedImage(pixels, mask)


def read_image_input(image: Any, mask: Any, outpaint: bool) -> ImageInput | None:
    """A checked input from paths or PIL images; None where there is no image.

    Raises:
        UsageError: a mask without image, a mask that is black, a file that cannot be read, or is too large.
    """
    if image is None:
        if mask is not None or outpaint:
            raise UsageError("A mask or outpainting needs the image that it is for; give the image, too.")
        return None
    if mask is not None and outpaint:
        raise UsageError("Outpainting makes its own mask; leave the mask or outpaint out.")
    if mask is not None and open_image(mask, "mask").convert("L").getextrema()[1] < 128:
        raise UsageError("The mask is black all over, so nothing would be generated; paint the place white.")
    return ImageInput(image, mask, outpaint, open_image(image, "image").size)


def open_image(source: Any, what: str) -> Any:
    """A path or PIL image as an upright RGB image, on white where it is transparent."""
    from PIL import Image

    if not isinstance(source, str | Path | Image.Image):
        raise UsageError(f"The {what} must be a path or a PIL image, not {type(source).__name__}.")
    if isinstance(source, Image.Image):
        if 0 in source.size:
            raise UsageError(f"The {what} has no pixels.")
        if source.mode in ("I", "F"):
            raise UsageError(f"The {what} holds numbers of 32 bits, whose white is not known; save it in 8 bits.")
    try:
        if isinstance(source, Image.Image):
            return on_white(source)
        return images.open_image(read_bytes(Path(source), MAX_BYTES)).image
    except Exception as error:  # an image of PIL may be decoded only now, and decoders raise nearly everything
        reason = shown(str(error) or type(error).__name__, 300).rstrip(".")
        raise UsageError(f"The {what} {shown(str(source), 200)} cannot be read: {reason}.") from None
