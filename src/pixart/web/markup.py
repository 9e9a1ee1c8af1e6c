"""The pieces of HTML that the page shows. Every text that came from outside is escaped here and nowhere else."""

import html
import urllib.parse
from pathlib import Path
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.errors import UsageError
from pixart.pipeline.request import make_request
from pixart.web.drawing import Tile, View
from pixart.web.models import gpu_memory_now, memory_now
from pixart.web.runs import Run
from pixart.web.work_queue import Job

LONGEST = 2000  # characters of one text that is shown


def file_url(path: Path) -> str:
    """Where the page finds a saved picture; relative, so that it works behind any address."""
    return "gradio_api/file=" + urllib.parse.quote(str(path))


def text(value: Any, most: int = LONGEST) -> str:
    """Anything as text that cannot be HTML, not too long."""
    shown = str(value)
    return html.escape(shown if len(shown) <= most else shown[:most] + " ...")


def size_line(folder: ModelFolder, width: float | None, height: float | None) -> str:
    """The size in pixels, and the bin in which it will be drawn if it is drawn in one."""
    try:
        request = make_request(folder, "", seed=0, width=width, height=height)
    except UsageError as error:
        return f'<p class="px-size wrong">{text(error)}</p>'
    size = f"{request.width} × {request.height} pixels"
    if request.bin:
        drawn = f"{request.bin.width} × {request.bin.height}"
        same = (request.bin.width, request.bin.height) == (request.width, request.height)
        size += ", a bin of the model" if same else f", drawn in the bin {drawn} and fitted"
    return f'<p class="px-size">{size}</p>'


def message(sentence: str, kind: str = "") -> str:
    """One sentence for a person; `kind` is "error" or nothing."""
    return f'<p class="px-message {kind}" role="status">{text(sentence)}</p>' if sentence else ""


def status(job: Job | None, view: View | None, *, position: int, more: int, stage: str) -> str:
    """How a drawing stands: place in the queue, steps, seconds left, or how it ended."""
    if job is None or view is None:
        return ""
    number, saved = len(view.tiles), sum(tile.path is not None for tile in view.tiles)
    words: list[str] = []
    fraction = None
    match job.state:
        case "waiting":
            words = [f"Waiting: number {position} in the queue" if position else "Waiting"]
            fraction = 0.0
        case "running" if view.step == 0:
            words = [f"{stage} ..." if stage else "Reading the prompt ..."]
            fraction = 0.0
        case "running":
            words = ["Stopping ..." if job.stopping else f"Step {view.step} of {view.steps}"]
            words += [_left(view.seconds_left)] if view.seconds_left is not None else []
            words += [f"{saved} of {number} pictures done"] if number > 1 else []
            fraction = view.step / max(view.steps, 1)
        case "done":
            words = [f"{number} pictures" if number > 1 else "1 picture", f"{job.seconds:.1f} s", seeds(view.tiles)]
        case "cancelled":
            words = ["Stopped" if not view.notices else ""]
    words += [f"{more} more waiting"] if more else []
    bar = "" if fraction is None else f'<progress max="1" value="{fraction:.4f}" aria-label="progress"></progress>'
    notices = "".join(f'<p class="px-notice">{text(notice)}</p>' for notice in view.notices)
    wrong = message(job.error, "error") if job.state == "failed" else ""
    line = " · ".join(word for word in words if word)
    return f'<div class="px-status" role="status" data-state="{job.state}">{wrong}<p>{line}</p>{bar}{notices}</div>'


def tiles(view: View | None, columns: int) -> str:
    """The pictures of a drawing as they stand: empty, half drawn, or saved. A grid has labels."""
    if view is None:
        return ""
    across = columns or (1 if len(view.tiles) == 1 else 2 if len(view.tiles) <= 4 else 4)
    cells = "".join(_tile(tile) for tile in view.tiles)
    kind = "px-tiles grid" if columns else "px-tiles"
    return f'<div class="{kind}" style="--columns: {across}">{cells}</div>'


def seeds(shown: tuple[Tile, ...]) -> str:
    numbers = sorted({tile.seed for tile in shown})
    return f"seed {numbers[0]}" if len(numbers) == 1 else f"seeds {numbers[0]} to {numbers[-1]}"


def token_meter(used: int, most: int, cut: str) -> str:
    """How much of what the model reads a prompt takes, and the words that it will not read."""
    over = f' <span class="px-cut">Not read: "{text(cut, 300)}"</span>' if cut else ""
    return (
        f'<div class="px-meter{" over" if cut else ""}"><meter max="{most}" value="{min(used, most)}" '
        f'aria-label="tokens"></meter> {used} of {most} tokens{over}</div>'
    )


def picture_details(run: Run, index: int, settings: dict[str, Any]) -> str:
    """What a saved picture says of itself."""
    rows = {
        "Prompt": settings.get("prompt", run.prompt),
        "Negative": settings.get("negative_prompt"),
        "Style": settings.get("style"),
        "Seed": settings.get("seed"),
        "Steps": settings.get("steps"),
        "Guidance": settings.get("guidance_scale"),
        "Sampler": settings.get("sampler"),
        "Size": f"{settings['width']} × {settings['height']}" if "width" in settings else None,
        "Bin": _bin(settings.get("bin")),
        "Model": settings.get("model", run.model),
        "File": f"{run.name}/{run.pictures[index]['file']}" if index < len(run.pictures) else run.name,
    }
    lines = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in rows.items() if value not in (None, ""))
    return f'<dl class="px-details">{lines}</dl>'


def model_line(name: str, engine: str) -> str:
    """Which model draws, and the memory of the whole program: for the head of the page."""
    now, peak = memory_now()
    gpu = gpu_memory_now()
    words = [text(name), engine, f"{readable(now)} in memory, at most {readable(peak)} so far"]
    words += [f"{readable(gpu)} on the GPU"] if gpu is not None else []
    return f'<p class="px-model">{" · ".join(word for word in words if word)}</p>'


def readable(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _tile(tile: Tile) -> str:
    label = f"<figcaption>{text(tile.label, 80)}</figcaption>" if tile.label else ""
    alt = f"picture with seed {tile.seed}"
    if tile.path is not None:
        picture = f'<a href="{file_url(tile.path)}" target="_blank"><img src="{file_url(tile.path)}" alt="{alt}"></a>'
        return f'<figure data-state="saved">{picture}{label}</figure>'
    if tile.preview:
        return f'<figure data-state="preview"><img src="{tile.preview}" alt="{alt}, half drawn">{label}</figure>'
    return f'<figure data-state="empty"><div class="px-empty"></div>{label}</figure>'


def _left(seconds: float) -> str:
    if seconds < 1:
        return "under a second left"
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"


def _bin(value: Any) -> str | None:
    return f"{value.get('width')} × {value.get('height')}" if isinstance(value, dict) else None
