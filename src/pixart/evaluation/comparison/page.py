"""The comparison as one HTML file that needs nothing else: pictures, script, votes; it asks no host for anything."""

import base64
import hashlib
import io
import json
from importlib.resources import files
from pathlib import Path

from pixart.data.pairs import printable
from pixart.errors import PixArtError
from pixart.evaluation.comparison.figures import cost, figures
from pixart.evaluation.comparison.plan import Cell, Plan, Row, write_whole
from pixart.evaluation.comparison.results import Outcome, outcomes
from pixart.evaluation.comparison.words import colour, text

PAGE = "index.html"
AS_THEY_ARE = 48 * 2**20  # bytes of all pictures up to which they are put into the page unchanged
LONGEST = 1024  # px; of pictures that are made smaller to keep the page small
TABS = {"pictures": "Pictures", "slider": "Slider", "vote": "Blind vote", "figures": "Figures"}


def write_page(plan: Plan, folder: Path) -> Path:
    """Write `index.html` of a comparison, with what has been drawn so far, and return its path.

    Raises PixArtError where it cannot be written.
    """
    path = folder / PAGE
    try:
        write_whole(path, page(plan, outcomes(plan, folder)).encode())
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path


def page(plan: Plan, found: list[Outcome]) -> str:
    """The whole page. Pictures are embedded byte for byte, up to 48 MB of them; beyond, as WebP of at most 1024 px."""
    drawn = [picture for outcome in found for picture in outcome.drawn.values()]
    whole = sum((o.folder / p.file).stat().st_size for o in found for p in o.drawn.values()) <= AS_THEY_ARE
    ratios = sorted({round(picture.width / picture.height, 3) for picture in drawn})
    script, style = _part("page.js"), _part("page.css")
    # Nothing may be fetched, and nothing may run but this script, whatever a prompt or a name may hold.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    names = [text(model.name) for model in plan.models]
    sets = ", ".join(dict.fromkeys(row.set for row in plan.rows))
    title = text(f"{sets}: {_counted(len(names), 'model')} compared")
    side = "400px" if len(names) < 3 else "1fr"
    frame = (
        f"--n:{len(names)};--phone:{min(len(names), 3)};--side:{side};--ratio:{ratios[0] if len(ratios) == 1 else 1}"
    )
    sections = {
        "pictures": _pictures(plan, found, whole, several=len({(p.width, p.height) for p in drawn}) > 1),
        "slider": _slider(plan, names),
        "vote": _part("vote.html"),
        "figures": figures(plan, found),
    }
    chips = "".join(
        f'<span class="chip" style="{colour(index)}"><span>{name} <span class="soft small">{cost(outcome)}</span>'
        "</span></span>"
        for index, (name, outcome) in enumerate(zip(names, found, strict=True))
    )
    tabs = "".join(
        f'<button role="tab" data-tab="{key}" aria-controls="{key}">{name}</button>' for key, name in TABS.items()
    )
    body = "".join(
        f'<section id="{key}" role="tabpanel" aria-label="{TABS[key]}">{content}</section>'
        for key, content in sections.items()
    )
    kept = "as they were drawn, byte for byte" if whole else f"as WebP of at most {LONGEST} px, to keep the file small"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head>\n"
        f'<body style="{frame}"><header class="wrap"><h1>{title}</h1><p class="soft">{_summary(plan, found)}</p>'
        f'<div class="chips">{chips}</div></header>\n'
        f'<nav hidden><div class="wrap" role="tablist">{tabs}</div></nav>\n'
        f'<main><div class="wrap">{body}<footer>Made by <code>pixart compare</code>. The pictures are in this file '
        f"{kept}; it asks no other computer for anything.</footer></div></main>\n"
        f'<script type="application/json" id="votes">[]</script>\n'
        f'<script type="application/json" id="data">{_data(plan, found)}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _part(name: str) -> str:
    """A file beside this one, as text."""
    return files("pixart.evaluation.comparison").joinpath(name).read_text(encoding="utf-8")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _summary(plan: Plan, found: list[Outcome]) -> str:
    prompts, pictures = len(plan.rows), sum(len(outcome.drawn) for outcome in found)
    seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    said = f"{_counted(prompts, 'prompt')}, {seeds}, {_counted(pictures, 'picture')}"
    gaps = len(plan.cells) * len(plan.models) - pictures
    return said + (f'; <span class="warn">{gaps:,} {"is" if gaps == 1 else "are"} missing</span>' if gaps else "")


def _data(plan: Plan, found: list[Outcome]) -> str:
    places = [{"row": cell.row, "seed": cell.seed, "text": printable(plan.rows[cell.row].text)} for cell in plan.cells]
    hashes = [
        [outcome.drawn[cell].sha256 if cell in outcome.drawn else None for outcome in found] for cell in plan.cells
    ]
    models = [{"name": printable(model.name), "folder": model.folder} for model in plan.models]
    value = {"id": plan.id, "models": models, "places": places, "pictures": hashes}
    return json.dumps(value).replace("<", "\\u003c")


def _pictures(plan: Plan, found: list[Outcome], whole: bool, *, several: bool) -> str:
    categories = list(dict.fromkeys(row.category for row in plan.rows if row.category))
    options = "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in categories)
    head = "".join(
        f'<div><span class="chip" style="{colour(index)}">{text(model.name)}</span></div>'
        for index, model in enumerate(plan.models)
    )
    rows = []
    for place, cell in enumerate(plan.cells):
        row = plan.rows[cell.row]
        cells = []
        for index, (model, outcome) in enumerate(zip(plan.models, found, strict=True)):
            drawn = outcome.drawn.get(cell)
            caption = f'<span class="chip" style="{colour(index)}">{text(model.name)}</span> '
            if drawn is None:
                shown = f'<div class="gap">{text(_why(outcome))}</div>'
            else:
                size = f'data-width="{drawn.width}" data-height="{drawn.height}"'
                picture = embedded(outcome.folder / drawn.file, whole)
                shown = f'<img id="p{place}-{index}" {size} src="{picture}" alt="picture {index + 1}" decoding="async">'
                caption += f"{drawn.width} × {drawn.height} " if several else ""
                caption += "".join(f'<br><span class="warn">{text(notice)}</span>' for notice in drawn.notices)
            cells.append(f'<figure data-model="{index}">{shown}<figcaption>{caption}</figcaption></figure>')
        words = f'<p dir="auto">{text(row.text)}</p><span class="soft small">{_about(row, cell, plan)}</span>'
        rows.append(
            f'<article class="row" data-place="{place}" data-category="{text(row.category)}"><div>{words}</div>'
            f"{''.join(cells)}</article>"
        )
    many = " many" if len(plan.models) > 5 else ""  # then it scrolls sideways
    return (
        f'<div class="tools"><label{"" if categories else " hidden"}>Category <select id="category">'
        f'<option value="">all</option>{options}</select></label>'
        f'<label class="side">Size <input id="side" type="range" min="96" max="640" value="300"></label>'
        f'<span class="soft">Click a picture to hold it against another.</span></div>'
        f'<div class="table{many}"><div class="row head"><div></div>{head}</div>{"".join(rows)}</div>'
    )


def _about(row: Row, cell: Cell, plan: Plan) -> str:
    parts = [row.category, row.style or "", f"seed {cell.seed}" if len(plan.seeds) > 1 else ""]
    if row.negative_prompt:
        parts.append(f"without: {row.negative_prompt}")
    return " · ".join(text(part) for part in (f"prompt {cell.row}", *parts) if part)


def _why(outcome: Outcome) -> str:
    """Why a picture is not there."""
    last = outcome.last
    if last is None:
        return "not drawn yet"
    return {
        "memory": "not drawn: memory ran out",
        "failed": "not drawn: the model failed",
        "done": "no such picture",
    }.get(last.ended, "not drawn yet")


def embedded(path: Path, whole: bool) -> str:
    """The picture file as a data URI: as it is, or made small."""
    if whole:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((LONGEST, LONGEST))
        file = io.BytesIO()
        image.convert("RGB").save(file, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _slider(plan: Plan, names: list[str]) -> str:
    models = [f'<option value="{index}">{name}</option>' for index, name in enumerate(names)]
    chosen = [
        model.replace("<option", "<option selected", 1) if index == 1 else model for index, model in enumerate(models)
    ]
    places = "".join(
        f'<option value="{index}">{text(plan.rows[cell.row].text[:70])}'
        f"{f' (seed {cell.seed})' if len(plan.seeds) > 1 else ''}</option>"
        for index, cell in enumerate(plan.cells)
    )
    return (
        f'<div class="tools"><label>Left <select id="left">{"".join(models)}</select></label>'
        f'<label>Right <select id="right">{"".join(chosen)}</select></label>'
        f'<label>Prompt <select id="which">{places}</select></label>'
        '<button class="button" id="before">Previous</button><button class="button" id="after">Next</button></div>'
        + _part("slider.html")
    )
