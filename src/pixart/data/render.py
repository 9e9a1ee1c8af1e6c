"""Drawings to square pictures on white, with the figures that captions and the search for duplicates need."""

import hashlib
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

from pixart.captions.colours import colour_fractions
from pixart.data.icon_sets import Drawing
from pixart.errors import PixArtError

THUMBNAIL = 16
CHUNK = 32  # drawings that a process takes at a time
CRASHED = "the process that drew it ended"
MAX_CRASHES = 10


@dataclass(frozen=True)
class Rendered:
    """What one drawing became. `error` is None, or one line and then there is no file and no figure.

    `colours` are shares of colour names on the object (where alpha is over one half); `thumbnail` is
    (16, 16, 3) uint8 RGB; `distinct_colours` counts colours at 5 bits per channel on a 128 px copy.
    """

    error: str | None
    pixel_hash: str = ""
    colours: dict[str, float] | None = None
    thumbnail: np.ndarray | None = None
    distinct_colours: int = 0


def render_all(drawings: list[Drawing], paths: list[Path], size: int) -> Iterator[Rendered]:
    """Renders each drawing to its path (PNG, size x size, RGB), in order. resvg holds the GIL, so in processes.

    A drawing that ends its process (a crash in native code, or no memory left) is a failed one like others. Raises
    PixArtError after MAX_CRASHES of them: then it is not the drawings.
    """
    done = crashes = 0
    while done < len(drawings):
        try:
            with _processes(None) as pool:
                for result in pool.map(render, drawings[done:], paths[done:], repeat(size), chunksize=CHUNK):
                    done += 1
                    yield result
        except BrokenProcessPool:
            # The pool does not tell whose fault it was: draw the next chunk one by one, then try a pool again.
            for drawing, path in zip(drawings[done : done + CHUNK], paths[done : done + CHUNK], strict=True):
                result = _render_alone(drawing, path, size)
                crashes += result.error == CRASHED
                if crashes > MAX_CRASHES:
                    raise PixArtError(
                        f"{crashes} icons ended the process that drew them, the last of them {drawing.icon} "
                        f"({drawing.style}); check that there is memory left, and build again."
                    ) from None
                done += 1
                yield result


def _processes(count: int | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def _render_alone(drawing: Drawing, path: Path, size: int) -> Rendered:
    """Render one drawing in a process of its own."""
    with _processes(1) as pool:
        try:
            return pool.submit(render, drawing, path, size).result()
        except BrokenProcessPool:
            return Rendered(error=CRASHED)


def render(drawing: Drawing, path: Path, size: int) -> Rendered:
    """Renders one drawing; a failure is returned, not raised, because one bad icon harms only itself."""
    try:
        picture = _picture(drawing, size)
    except (ValueError, OSError) as error:
        return Rendered(error=str(error).splitlines()[0] if str(error) else type(error).__name__)
    rgba = np.asarray(picture)
    object_pixels = rgba[rgba[..., 3] > 127][:, :3]
    if len(object_pixels) == 0:
        return Rendered(error="the picture is empty")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    flat.save(path, format="PNG")
    small = np.asarray(flat.resize((128, 128), Image.Resampling.BOX)) >> 3
    codes = (small[..., 0].astype(np.int32) << 10) | (small[..., 1].astype(np.int32) << 5) | small[..., 2]
    return Rendered(
        error=None,
        pixel_hash=hashlib.sha256(flat.tobytes()).hexdigest(),
        colours=colour_fractions(object_pixels),
        thumbnail=np.asarray(flat.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
        distinct_colours=len(np.unique(codes)),
    )


def _picture(drawing: Drawing, size: int) -> Image.Image:
    """The drawing as RGBA, size x size, centred, its own proportions kept."""
    if drawing.svg is not None:
        import resvg_py

        svg = drawing.svg.replace("SIZE", str(size))
        with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))) as image:
            return image.convert("RGBA")
    with Image.open(drawing.bitmap) as image:
        picture = image.convert("RGBA")
    scale = size / max(picture.size)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Premultiplied while resizing: the colour of invisible pixels must not bleed into the edge.
    picture = picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    square.paste(picture, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return square
