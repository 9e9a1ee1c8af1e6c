"""The pieces of HTML that the page shows. Every text that came from outside is escaped here and nowhere else."""

import html
import urllib.parse
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.errors import UsageError
from pixart.pipeline.request import make_request
from pixart.studio.models import Models

LONGEST = 2000  # characters of one text that is shown


def text(value: Any, most: int = LONGEST) -> str:
    """Anything as text that cannot be HTML, not too long."""
    shown = str(value)
    return html.escape(shown if len(shown) <= most else shown[:most] + " ...")


def lines(sentences: list[str]) -> str:
    """A paragraph for each sentence."""
    return "".join(f'<p class="px-line">{text(sentence)}</p>' for sentence in sentences)


def size_line(folder: ModelFolder, width: Any, height: Any, binning: bool | None) -> str:
    """The size in pixels, and the bin in which it will be generated if there is one."""
    try:
        request = make_request(folder, "", seed=0, width=width, height=height, binning=binning)
    except UsageError as error:
        return lines([str(error)])
    size = f"{request.width} × {request.height} pixels"
    if request.bin:
        bin = f"{request.bin.width} × {request.bin.height}"
        same = (request.bin.width, request.bin.height) == (request.width, request.height)
        size += ", a bin of the model" if same else f", generated in the bin {bin} and fitted"
    return lines([size])


def token_meter(used: int, most: int, cut: str) -> str:
    """How much of what the model reads a prompt takes, and the words that it will not read."""
    over = f' <span class="px-cut">Not read: "{text(cut, 300)}"</span>' if cut else ""
    meter = f'<meter max="{most}" value="{min(used, most)}" aria-label="tokens"></meter>'
    return f'<p class="px-line">{meter} {used} of {most} tokens{over}</p>'


def status(generation: Any) -> str:
    """How a generation stands: steps, seconds left."""
    number = len(generation.tiles)
    words = [f"Step {generation.step} of {generation.steps}" if generation.step else "Reading the prompt"]
    if generation.studio.models.loaded is None:
        words = ["Loading the model"]
    if generation.seconds_left is not None:
        words.append(_left(generation.seconds_left))
    if number > 1:
        words.append(f"{generation.saved} of {number} images done")
    fraction = generation.step / max(generation.steps, 1)
    bar = f'<progress max="1" value="{fraction:.3f}" aria-label="progress"></progress>'
    return f'<div class="px-status" role="status">{lines([" · ".join(words)])}{bar}{lines(generation.notices)}</div>'


def tiles(generation: Any) -> str:
    """The images of a generation as they stand: empty, unfinished, or saved."""
    number = len(generation.tiles)
    across = generation.grid or (1 if number == 1 else 2 if number <= 4 else 4)
    cells = "".join(_tile(tile) for tile in generation.tiles)
    return f'<div class="px-tiles" style="--columns: {across}">{cells}</div>'


def details(settings: dict[str, Any], file: str) -> str:
    """What a saved image says of itself."""
    size = f"{settings['width']} × {settings['height']}" if "width" in settings else None
    rows = {
        "Prompt": settings.get("prompt"),
        "Negative prompt": settings.get("negative_prompt"),
        "Style": settings.get("style"),
        "Seed": settings.get("seed"),
        "Steps": settings.get("steps"),
        "Guidance scale": settings.get("guidance_scale"),
        "Sampler": settings.get("sampler"),
        "Size": size,
        "Model": settings.get("model"),
        "File": file,
    }
    return _list(rows)


def model_facts(models: Models) -> str:
    """What the model of the page is and how it is computed, as a list."""
    folder, loaded = models.folder, models.loaded
    rows = {
        "Model": f"{folder.name}, its few-step model" if folder.fast else folder.name,
        "Folder": folder.path,
        "Images": f"{folder.native_size} pixels wide, others in steps of {folder.size_multiple}",
        "Prompt": f"up to {folder.max_tokens} tokens",
        "Computed by": loaded.runtime.line if loaded else "not loaded yet",
        "Memory": ", ".join(f"{key} {value}" for key, value in models.choice.memory.chosen.items()),
    }
    return _list(rows)


def word_maps(words: list[tuple[str, float, str]], rest: float) -> str:
    """A small image for each word, its share of all attention, its map as a data URI."""
    figures = "".join(
        f'<figure><img src="{uri}" alt="attention for {text(word, 60)}">'
        f"<figcaption>{text(word, 60)} {share:.1%}</figcaption></figure>"
        for word, share, uri in words
    )
    said = f"Yellow: where the image reads the word most. The start, end and marks of the text take {rest:.0%} of all."
    return f'<div class="px-tiles" style="--columns: 4">{figures}</div>{lines([said])}'


def _list(rows: dict[str, Any]) -> str:
    shown = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in rows.items() if value not in (None, ""))
    return f'<dl class="px-details">{shown}</dl>'


def _tile(tile: Any) -> str:
    label = f"<figcaption>{text(tile.label, 80)}</figcaption>" if tile.label else ""
    source = "gradio_api/file=" + urllib.parse.quote(str(tile.path)) if tile.path else tile.preview
    state = "saved" if tile.path else "preview" if tile.preview else "empty"
    image = f'<img src="{source}" alt="image with seed {tile.seed}">' if source else '<div class="px-empty"></div>'
    return f'<figure data-state="{state}">{image}{label}</figure>'


def _left(seconds: float) -> str:
    if seconds < 1:
        return "under a second left"
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"
