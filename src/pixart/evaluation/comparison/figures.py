"""The last tab of the page: time, memory and every setting of each model, side by side."""

from typing import Any

from pixart.evaluation.comparison.plan import Plan
from pixart.evaluation.comparison.results import Outcome
from pixart.evaluation.comparison.words import colour, text

HASHES = "SHA-256 of "
KINDS = {
    "pixart": "PixArt model",
    "run": "checkpoint of a training run",
    "diffusers": "Diffusers pipeline",
    "pictures": "pictures made elsewhere",
}


def figures(plan: Plan, found: list[Outcome]) -> str:
    """HTML of the tables. Settings that differ between models are marked."""
    heads = "".join(
        f'<th><span class="chip" style="{colour(index)}">{text(model.name)}</span></th>'
        for index, model in enumerate(plan.models)
    )
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    device = any(outcome.device_bytes for outcome in found)
    costs: dict[str, list[str]] = {
        "pictures": [f"{len(outcome.drawn):,} of {len(plan.cells):,}" for outcome in found],
        "seconds a picture, median": [_seconds(outcome.seconds) for outcome in found],
        "seconds for the first": [_seconds(outcome.first_seconds) for outcome in found],
        "seconds to load": [_seconds(outcome.load_seconds) for outcome in found],
        "most memory": [_size(outcome.peak_bytes) for outcome in found],
    }
    if device:
        costs["most memory on the GPU"] = [_size(outcome.device_bytes) for outcome in found]
    rows = "".join(_line(name, values, differs=False) for name, values in costs.items())
    settings = [_flat(_settings(model, outcome)) for model, outcome in zip(plan.models, found, strict=True)]
    names = list(dict.fromkeys(name for values in settings for name in values))
    draws = [model.kind != "pictures" for model in plan.models]  # of pictures made elsewhere nothing is known
    lines = []
    for name in names:
        values = [values.get(name, "") for values in settings]
        differs = len({value for value, known in zip(values, draws, strict=True) if known}) > 1
        lines.append((differs, _line(name, values, differs=differs)))
    shown = [line for _, line in sorted(lines, key=lambda line: not line[0])]
    return (
        f'<h2>Time and memory</h2><div class="panel scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
        '<p class="soft small">Pictures are drawn one at a time, each model in a process of its own, whose memory '
        "counts the libraries too. Seconds go from the prompt to the pixels; the first picture of a process is apart. "
        "They were taken while the comparison was drawn, so whatever else the machine did is in them.</p>"
        f'<h2>Settings</h2><div class="panel scroll"><table>{head}<tbody>{"".join(shown)}</tbody></table></div>'
        '<p class="soft small">Marked: what differs. The same seed names the same noise only for models that '
        "pixart draws with the same size of latents; pipelines of Diffusers draw theirs by torch.</p>"
        f"{_history(plan, found)}"
    )


def cost(outcome: Outcome) -> str:
    """Time and memory in a few words; "" where neither was measured."""
    parts = [f"{_seconds(outcome.seconds)} s" if outcome.seconds is not None else "", _size(outcome.peak_bytes)]
    return ", ".join(part for part in parts if part)


def _line(name: str, values: list[str], *, differs: bool) -> str:
    cells = "".join(f"<td>{text(value) or '<span class=soft>–</span>'}</td>" for value in values)
    return f"<tr{' class=differs' if differs else ''}><th>{text(name)}</th>{cells}</tr>"


def _settings(model, outcome: Outcome) -> dict[str, Any]:
    """What the command said, and on top what the drawing process filled in."""
    used = next((session for session in reversed(outcome.sessions) if session.settings), None)
    chosen = {"source": model.source, "kind": KINDS[model.kind], **model.settings.given()}
    if used is None:
        return chosen
    drawn = {key: value for key, value in used.settings.items() if key not in ("source", "model_hash")}
    return {**chosen, **drawn, HASHES: used.weights}


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """One line per value: {"versions": {"torch": "2"}} becomes {"versions, torch": "2"}."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, name if name == HASHES else f"{before}{name}, ")
        elif before == HASHES:
            flat[before + name] = value[:16] + "…"
        elif value is not None and value != "":
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            shown = {"True": "yes", "False": "no"}.get(shown, shown)
            flat[before + name.replace("_", " ")] = shown
    return flat


def _history(plan: Plan, found: list[Outcome]) -> str:
    ends = {"memory": "memory ran out", "failed": "failed", "stopped": "stopped", "drawing": "cut off", "done": "done"}
    items = []
    for model, outcome in zip(plan.models, found, strict=True):
        for session in outcome.sessions:
            if len(outcome.sessions) > 1 or session.ended != "done" or session.reason:
                why = f": {session.reason}" if session.reason else ""
                count = f"{session.pictures:,} picture{'s' * (session.pictures != 1)}"
                began = session.began.replace("T", " ").removesuffix("+00:00")
                items.append(f"{model.name}, {began} UTC: {count}, {ends[session.ended]}{why}")
    if not items:
        return ""
    listed = "".join(f"<li>{text(item)}</li>" for item in items)
    return f'<h2>How it was drawn</h2><div class="panel small"><ul>{listed}</ul></div>'


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _size(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
