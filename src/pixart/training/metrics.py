"""`metrics.jsonl` in the run folder: one line of figures per report, each step once, also after a kill."""

import json
from pathlib import Path

from pixart.errors import PixArtError
from pixart.training.files import write_whole


def append(run: Path, step: int, figures: dict[str, float]) -> None:
    """Raises PixArtError where the disk refuses."""
    path = run / "metrics.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}. The checkpoints are kept.") from None


def forget_after(run: Path, step: int) -> None:
    """Drop the figures of steps that are about to be taken again, and a line that a kill cut short."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, "".join(kept))
