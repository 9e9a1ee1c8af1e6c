"""The pieces of HTML that the page shows. Every text that came from outside is escaped here and nowhere else."""

import html
import urllib.parse
from base64 import b64encode
from itertools import zip_longest
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.errors import UsageError
from pixart.pipeline.request import make_request
from pixart.studio.examples import example_images, examples_for
from pixart.studio.models import Models

# What can be done with an image, by the events of the page: their names, labels and explanations.
ACTIONS = {
    "edit": ("Edit", "start from this image: vary it, or brush what to generate anew"),
    "enlarge": ("Enlarge 2×", "twice the size, with more detail"),
    "settings": ("Settings", "put its settings and its seed into the fields"),
}
# What brush.js brings to life.
BRUSH = """<div class="px-brush">
<p>All of the image is varied; or brush over what is to be generated anew, and the rest stays.</p>
<input type="file" accept="image/*" aria-label="Image to start from">
<div class="px-canvas"><canvas></canvas><canvas></canvas></div>
<div class="px-do"><label>Brush <input type="range" min="1" max="25" value="8"></label>
<button type="button" name="undo">Undo</button> <button type="button" name="close">Remove the image</button></div>
<p class="px-line" role="status"></p></div>"""
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


def token_meter(used: int, most: int, cut: str, unknown: list[str]) -> str:
    """How much of what the model reads a prompt takes, the words that it will not read, and those it does not know."""
    marks = f' <span class="px-cut">Not read: <mark>{text(cut, 300)}</mark></span>' if cut else ""
    if unknown:
        words = " ".join(f"<mark>{text(word, 60)}</mark>" for word in unknown[:20])
        marks += f' <span class="px-cut">Not known to the text encoder: {words}</span>'
    meter = f'<meter max="{most}" value="{min(used, most)}" aria-label="tokens"></meter>'
    return f'<p class="px-line">{meter} {used} of {most} tokens{marks}</p>'


def status(generation: Any) -> str:
    """How a generation stands: its place in the queue, steps, seconds left."""
    number = len(generation.tiles)
    words = [f"Step {generation.step} of {generation.steps}" if generation.step else "Reading the prompt"]
    if generation.job is None:
        words = ["Loading the model"]
    elif (ahead := generation.ahead) is not None:
        words = [f"In the queue, with {ahead} other {'request' if ahead == 1 else 'requests'}"]
    elif generation.seconds_left is not None:
        words.append(_left(generation.seconds_left))
    if number > 1:
        words.append(f"{generation.saved} of {number} images done")
    fraction = generation.step / max(generation.steps, 1)
    bar = f'<progress max="1" value="{fraction:.3f}" aria-label="progress"></progress>'
    notices = lines(generation.notices)
    return f'<div class="px-status" data-state="running" role="status">{lines([" · ".join(words)])}{bar}{notices}</div>'


def tiles(shown: list[Any], is_done: bool = False) -> str:
    """The images of a generation as they stand: empty, unfinished, or saved; when it is over, with what can be done."""
    number = len(shown)
    across = 1 if number == 1 else 2 if number <= 4 else 3
    cells = "".join(_tile(tile, index, is_done) for index, tile in enumerate(shown))
    remove = '<button type="button" data-do="remove" class="px-remove">Delete these images</button>' if is_done else ""
    return f'<div class="px-tiles" style="--columns: {across}">{cells}</div>{remove}'


def examples(folder: ModelFolder) -> str:
    """What the model can generate, each to be tried with one click."""
    cells = []
    for index, (row, image) in enumerate(zip_longest(examples_for(folder), example_images(folder))):
        prompt, style, _ = row
        shown = f'<img src="data:image/webp;base64,{b64encode(image).decode()}" alt="">' if image else ""
        words = f"{text(prompt)} <small>{text(style)}</small>"
        cells.append(f'<button type="button" data-do="example" data-index="{index}">{shown}{words}</button>')
    return f'<p class="px-line">Try one of these</p><div class="px-examples">{"".join(cells)}</div>'


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


def _list(rows: dict[str, Any]) -> str:
    shown = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in rows.items() if value not in (None, ""))
    return f'<dl class="px-details">{shown}</dl>'


def _tile(tile: Any, index: int, is_done: bool) -> str:
    source = "gradio_api/file=" + urllib.parse.quote(str(tile.path)) if tile.path else tile.preview
    state = "saved" if tile.path else "preview" if tile.preview else "empty"
    width, height = tile.size
    size = f'width="{width}" height="{height}" style="aspect-ratio: {width} / {height}"'
    image = f'<img src="{source}" {size} alt="image with seed {tile.seed}">' if source else f"<svg {size}></svg>"
    if not is_done:
        return f'<figure data-state="{state}">{image}</figure>'
    buttons = "".join(
        f'<button type="button" data-do="{name}" data-index="{index}" title="{title}">{label}</button>'
        for name, (label, title) in ACTIONS.items()
    )
    save = f'<a href="{source}" download="{text(tile.path.name)}">Download</a>'
    about = f"<details><summary>Seed {tile.seed}</summary>{tile.details}</details>"
    open_it = f'<a href="{source}" target="_blank" title="open at its full size">{image}</a>'
    return f'<figure data-state="{state}">{open_it}<div class="px-do">{save}{buttons}</div>{about}</figure>'


def _left(seconds: float) -> str:
    if seconds < 1:
        return "under a second left"
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"
