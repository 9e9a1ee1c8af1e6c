"""Icons to square images on white, with the measurements that captions and the search for duplicates need."""

import hashlib
import importlib.util
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from emojis.colours import colour_fractions
from emojis.icon_sets import Icon
from pixart.errors import PixArtError

THUMBNAIL = 16


@dataclass(frozen=True)
class Rendered:
    """What one icon became. `error` is None, or one line and then there is no file and nothing else.

    `colours` are shares of colour names on the object (where alpha is over one half); `thumbnail` is
    (16, 16, 3) uint8 RGB.
    """

    error: str | None
    pixel_hash: str = ""
    colours: dict[str, float] | None = None
    thumbnail: np.ndarray | None = None


def render_all(icons: list[Icon], paths: list[Path], size: int) -> Iterator[Rendered]:
    """Renders each icon to its path (PNG, size x size, RGB), in order. resvg holds the GIL, so in processes.

    Raises PixArtError where a process was ended from outside, such as by a lack of memory.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise PixArtError("This needs resvg_py: pip install -r projects/emoji/requirements.txt")
    try:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(render, icons, paths, repeat(size), chunksize=32)
    except BrokenProcessPool:
        raise PixArtError("A process that rendered icons was ended; check that there is memory left.") from None


def render(icon: Icon, path: Path, size: int) -> Rendered:
    """Renders one icon; a failure is returned, not raised, because one bad icon harms only itself."""
    try:
        image = _rgba(icon, size)
    except (ValueError, OSError) as error:
        return Rendered(error=str(error).splitlines()[0] if str(error) else type(error).__name__)
    rgba = np.asarray(image)
    object_pixels = rgba[rgba[..., 3] > 127][:, :3]
    if len(object_pixels) == 0:
        return Rendered(error="the image is empty")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    flat.save(path, format="PNG")
    return Rendered(
        error=None,
        pixel_hash=hashlib.sha256(flat.tobytes()).hexdigest(),
        colours=colour_fractions(object_pixels),
        thumbnail=np.asarray(flat.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
    )


def _rgba(icon: Icon, size: int) -> Image.Image:
    """The icon as RGBA, size x size, centred, its own proportions kept."""
    if icon.svg is not None:
        import resvg_py

        svg = icon.svg.replace("SIZE", str(size))
        with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))) as image:
            return image.convert("RGBA")
    with Image.open(icon.bitmap) as image:
        rgba = image.convert("RGBA")
    scale = size / max(rgba.size)
    shape = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    # Premultiplied while resizing: the colour of invisible pixels must not bleed into the edge.
    rgba = rgba.convert("RGBa").resize(shape, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    square.paste(rgba, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square
