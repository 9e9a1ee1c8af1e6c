"""Images to start from, and masks: read with a limit, and fitted to the size that is generated."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixart.errors import UsageError, shown
from pixart.pipeline.bins import fit

MAX_PIXELS = 100_000_000
FEATHER = 4  # pixels over which what was generated passes into the image around a mask
OVERLAP = 8  # pixels of an image that are generated anew at the border of what is added around it


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image to start from, and where in it to generate; both of any size, RGB and L (white: generate)."""

    image: Any
    mask: Any | None = None
    outpaint: bool = False

    def fitted(self, height: int, width: int, say: Callable[[str], None]) -> "FittedImage":
        """At the size that is generated: resized to cover it and cut in the middle, or laid into it for outpainting."""
        if self.outpaint:
            return self._laid_into(height, width, say)
        given, size = self.image.size, (width, height)
        if given != size:
            say(f"The image of {given[0]} x {given[1]} pixels was resized and cut to {width} x {height}.")
        mask = self.mask
        if mask is not None:
            if mask.size != given:
                say(f"The mask of {mask.size[0]} x {mask.size[1]} pixels was resized to {given[0]} x {given[1]}.")
            mask = np.asarray(fit(mask.resize(given), height, width)) >= 128
        return FittedImage(np.asarray(fit(self.image, height, width)), mask)

    def _laid_into(self, height: int, width: int, say: Callable[[str], None]) -> "FittedImage":
        image = self.image
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


def read_image_input(image: Any, mask: Any, outpaint: bool) -> ImageInput | None:
    """From paths or PIL images; None where there is no image.

    Raises:
        UsageError: a mask without image, a mask that is black, a file that cannot be read, or is too large.
    """
    if image is None:
        if mask is not None or outpaint:
            raise UsageError("A mask or outpainting needs the image that it is for; give --image too.")
        return None
    if mask is not None and outpaint:
        raise UsageError("Outpainting makes its own mask; leave --mask or --outpaint out.")
    if mask is not None:
        mask = open_image(mask, "mask").convert("L")
        if mask.getextrema()[1] < 128:
            raise UsageError("The mask is black all over, so nothing would be generated; paint the place white.")
    return ImageInput(open_image(image, "image"), mask, outpaint)


def open_image(source: Any, what: str) -> Any:
    """A path or PIL image as an upright RGB image, on white where it is transparent."""
    from PIL import Image, ImageOps

    from pixart.pipeline.image_files import on_white

    if isinstance(source, Image.Image):
        return on_white(source)
    if not isinstance(source, str | Path):
        raise UsageError(f"The {what} must be a path or a PIL image, not {type(source).__name__}.")
    name = shown(str(source), 200)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about bombs, and about damaged EXIF
            with Image.open(source) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    size = f"{opened.width} x {opened.height}"
                    raise UsageError(f"The {what} {name} has {size} pixels; at most {MAX_PIXELS:,} are read.")
                return on_white(ImageOps.exif_transpose(opened))
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"There is no file {name}; give the {what}.") from None
    except Exception as error:  # decoders fed with bad bytes raise nearly everything
        reason = shown(str(error) or type(error).__name__, 200)
        raise UsageError(f"The {what} {name} cannot be read: {reason}.") from None
