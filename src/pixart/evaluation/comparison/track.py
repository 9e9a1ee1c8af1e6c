"""The comparison as a table of Weights & Biases or trackio: a row per prompt and seed, a column per model."""

from collections.abc import Callable
from pathlib import Path

from pixart.evaluation.comparison.plan import Plan
from pixart.evaluation.comparison.results import outcomes


def track(tool: str, plan: Plan, folder: Path, report: Callable[[str], None]) -> None:
    """Send what there is of the comparison in `folder`; pictures that are missing are left empty.

    Never raises for the tool's sake: a tool that is down is said in one line, by `report`.
    """
    from pixart.tracking.generations import GenerationTracker

    found = outcomes(plan, folder)
    columns = ["prompt", "category", "seed", *(model.name for model in plan.models)]
    rows: list[list[str | float | Path | None]] = []
    for cell in plan.cells:
        row = plan.rows[cell.row]
        drawn = [outcome.drawn.get(cell) for outcome in found]
        pictures = [o.folder / picture.file if picture else None for o, picture in zip(found, drawn, strict=True)]
        rows.append([row.text, row.category, cell.seed, *pictures])
    costs: list[list[str | float | Path | None]] = []
    for model, outcome in zip(plan.models, found, strict=True):
        costs.append([model.name, len(outcome.drawn), outcome.seconds, outcome.load_seconds, outcome.peak_bytes])
    tracker = GenerationTracker(tool, folder, report=report, close_timeout=600)  # many pictures take their time
    tracker.table("comparison", columns, rows)
    tracker.table("models", ["model", "pictures", "seconds a picture", "seconds to load", "peak bytes"], costs)
    tracker.close()
