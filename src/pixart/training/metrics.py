"""`metrics.jsonl` in the run folder: one line of figures per report, each step once, also after a kill."""

import json
from pathlib import Path


def append(run: Path, step: int, figures: dict[str, float]) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def forget_after(run: Path, step: int) -> None:
    """Drop the figures of steps that are about to be taken again, and a line that a kill cut short."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.rename(path)
