"""The comparison as one HTML file that needs nothing else: images, script, votes; it asks no host for anything."""

import base64
import hashlib
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pixart.data.pairs import printable
from pixart.evaluation.comparison.record import Outcome, Plan, outcomes
from pixart.files import write_whole

PAGE = "index.html"
UNCHANGED = 48 * 2**20  # bytes of all images up to which they are put into the page as they are
LONGEST = 1024  # px; of images that are made smaller to keep the page small
ENDINGS = {"memory": "memory ran out", "failed": "the model failed", "stopped": "stopped"}


def write_page(plan: Plan, folder: Path) -> Path:
    """Write `index.html` of a comparison, with the images that there are, and return its path."""
    write_whole(folder / PAGE, page(plan, outcomes(plan, folder)))
    return folder / PAGE


def page(plan: Plan, found: list[Outcome]) -> str:
    """The HTML. Images are embedded byte for byte, up to 48 MB of them; beyond, as WebP of at most 1024 px."""
    import jinja2

    images = [(outcome, image) for outcome in found for image in outcome.images.values()]
    unchanged = sum((o.folder / i.cell.file).stat().st_size for o, i in images) <= UNCHANGED
    ratios = {round(image.width / image.height, 3) for _, image in images}
    script, style = _part("page.js"), _part("page.css")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"line": printable, "seconds": _seconds, "bytes": _bytes}
    return environment.from_string(_part("page.html")).render(
        plan=plan,
        outcomes=found,
        columns=list(zip(plan.models, found, strict=True)),
        count=len(images),
        first_seconds=[outcome.median_seconds(False) for outcome in found],
        missing=len(plan.cells) * len(plan.models) - len(images),
        categories=list(dict.fromkeys(row.category for row in plan.rows if row.category)),
        several_sizes=len({(image.width, image.height) for _, image in images}) > 1,
        ratio=ratios.pop() if len(ratios) == 1 else 1,
        unchanged=unchanged,
        longest=LONGEST,
        embedded=lambda outcome, image: _embedded(outcome.folder / image.cell.file, unchanged),
        endings=ENDINGS,
        settings=_settings_table(plan, found),
        data=_data(plan, found),
        script=script,
        style=style,
        # Nothing may be fetched, and nothing may run but this script, whatever a prompt or a name may hold.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(name: str) -> str:
    return files("pixart.evaluation.comparison").joinpath(name).read_text(encoding="utf-8")


def _data(plan: Plan, found: list[Outcome]) -> str:
    """What the script reads, as JSON that no HTML parser can end early."""
    places = [{"row": cell.row, "seed": cell.seed, "text": printable(plan.rows[cell.row].text)} for cell in plan.cells]
    hashes = [[o.images[cell].sha256 if cell in o.images else None for o in found] for cell in plan.cells]
    models = [{"name": printable(model.name), "folder": model.folder} for model in plan.models]
    value = {"id": plan.id, "models": models, "places": places, "images": hashes}
    return json.dumps(value).replace("<", "\\u003c")


def _embedded(path: Path, unchanged: bool) -> str:
    """The image file as a data URI."""
    if unchanged:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((LONGEST, LONGEST))
        file = io.BytesIO()
        image.convert("RGB").save(file, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _settings_table(plan: Plan, found: list[Outcome]) -> list[tuple[str, list[str], bool]]:
    """(name, a value per model, whether the models differ in it), what differs first."""
    columns = []
    for model, outcome in zip(plan.models, found, strict=True):
        # What the command gave, and on top what the sampling process filled in.
        settings = model.settings.given() | outcome.sampled.settings
        columns.append(_flat({"source": model.source, "kind": model.kind} | settings))
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column if name != "model hash"):
        values = [column.get(name, "") for column in columns]
        known = {v for v, model in zip(values, plan.models, strict=True) if model.kind != "images"}
        rows.append((name, values, len(known) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """One line per value: {"versions": {"torch": "2"}} becomes {"versions, torch": "2"}."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}, ")
        elif value is not None and value != "":
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            flat[before + name.replace("_", " ")] = shown
    return flat


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
