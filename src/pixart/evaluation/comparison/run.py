"""Sample what a comparison still lacks, model by model, each in a process of its own; take images made elsewhere."""

import contextlib
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixart.data.images import EXTENSIONS, open_image
from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import Model
from pixart.evaluation.comparison.record import Cell, Plan, Session, add_image, next_session, outcome, save_session
from pixart.evaluation.comparison.worker import NO_MEMORY, Job, work
from pixart.pipeline.image_files import slug

LOG = "worker.log"
NAMED = 4  # mismatches that a message names


def sample(
    plan: Plan, model: Model, source: str, folder: Path, on_images: Callable[[int], None], about: dict[str, Any]
) -> None:
    """Make the missing images of a model; whatever was made is kept.

    `source` is what the worker loads; `on_images` is called with how many it has made; `about` joins its settings. A
    model that cannot be loaded, crashes or runs out of memory is no exception here: its session tells.
    """
    before = outcome(folder, model.folder)
    own, used = before.folder, before.used
    own.mkdir(parents=True, exist_ok=True)
    path, log, session = next_session(own), own / LOG, Session(_now(), "sampling")
    cells = [cell for cell in plan.cells if cell not in before.images]
    cells.sort(key=lambda cell: (cell.seed, cell.row))  # what can share a batch stands together
    job = Job(
        kind=model.kind,
        source=source,
        settings=model.settings.given(),
        cells=[(cell, plan.rows[cell.row].text) for cell in cells],
        own=own,
        weights=used.weights,
        engine=used.settings.get("engine"),
    )
    context = multiprocessing.get_context("spawn")
    events, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, log, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        with contextlib.suppress(EOFError):
            while True:
                event: dict[str, Any] = events.recv()
                if "settings" in event:
                    event["settings"] |= about
                session = replace(session, **event)
                save_session(path, session)
                on_images(session.images)
        process.join()
        if session.ended == "sampling":
            ended, reason = _how_it_ended(process.exitcode, log)
            session = replace(session, ended=ended, reason=reason)
    except BaseException:
        session = replace(session, ended="stopped")
        raise
    finally:
        process.terminate()
        process.join()
        save_session(path, session)
        if log.is_file() and (not log.stat().st_size or session.ended == "done"):
            log.unlink()


def match(source: Path, plan: Plan) -> tuple[dict[Cell, Path], list[str]]:
    """Images made elsewhere: the file of each cell that has one, and a sentence for each kind of mismatch.

    A file is named after its prompt's number (from 0, or from 1 where none has the number 0 and one has that of the
    last prompt from 1) or after the prompt, as `pixart generate` names it or as it is; then, where there are several
    seeds, by its seed: 0007.png, 7-0.png, a-red-fox-0.png, a red fox_0.png.

    Raises:
        UsageError: two images for one place, or none for any.
    """
    paths = sorted(p for p in source.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    rows_of: dict[str, int] = {}
    for number, row in reversed(list(enumerate(plan.rows))):
        rows_of[row.text.casefold()] = rows_of[slug(row.text)] = number
    numbers = [int(digits[1]) for path in paths if (digits := re.fullmatch(r"(\d{1,9})([-_]\d+)?", path.stem))]
    first = 1 if numbers and 0 not in numbers and max(numbers) == len(plan.rows) else 0
    found: dict[Cell, Path] = {}
    strangers: list[str] = []
    for path in paths:
        cell = _cell(path.stem.casefold(), rows_of, first, plan)
        if cell is None:
            strangers.append(path.name)
        elif cell in found:
            both = f"{found[cell].name} and {path.name}"
            raise UsageError(f"{source}: {both} are both of prompt {cell.row} with seed {cell.seed}; keep one of them.")
        else:
            found[cell] = path
    if not found:
        raise UsageError(
            f"{source}: none of its {len(paths):,} images is named after a prompt or its number, such as 0000-0.png "
            f"or {slug(plan.rows[0].text)}-{plan.seeds[0]}.png."
        )
    notes = [f"The images are numbered from 1, so image 1 is that of the first prompt of {len(plan.rows)}."] * first
    if strangers:
        notes.append(f"Images of no prompt or seed: {len(strangers):,} ({_some(strangers)}).")
    if missing := [f"{cell.row} {plan.rows[cell.row].text[:40]}" for cell in plan.cells if cell not in found]:
        notes.append(f"Prompts without an image: {len(missing):,} ({_some(missing)}).")
    return found, notes


def _cell(stem: str, rows_of: dict[str, int], first: int, plan: Plan) -> Cell | None:
    """The place of an image by its file name, if the plan has it; a prompt may end in a number, so it goes first."""
    name, seed = stem, None
    if stem not in rows_of and (parts := re.fullmatch(r"(.+)[-_](\d{1,10})", stem)):
        name, seed = parts[1], int(parts[2])
    if seed is None and len(plan.seeds) == 1:
        seed = plan.seeds[0]
    by_number = int(name) - first if re.fullmatch(r"\d{1,9}", name) else -1
    row = rows_of.get(name, by_number)
    return Cell(row, seed) if 0 <= row < len(plan.rows) and seed in plan.seeds else None


def take(found: dict[Cell, Path], model: Model, folder: Path, notes: list[str]) -> None:
    """Copy images made elsewhere that the model's folder does not have yet, as RGB in PNG on white.

    Raises PixArtError for one that cannot be opened; those before it are kept.
    """
    known = outcome(folder, model.folder)
    known.folder.mkdir(parents=True, exist_ok=True)
    fresh = {cell: path for cell, path in found.items() if cell not in known.images}
    for cell, path in fresh.items():
        try:
            add_image(known.folder, cell, open_image(path.read_bytes()).image)
        except ImageProblem as problem:
            raise PixArtError(f"{path} cannot be used: {problem}") from None
    if fresh:
        save_session(next_session(known.folder), Session(_now(), "done", " ".join(notes), len(fresh)))


def _how_it_ended(code: int, log: Path) -> tuple[str, str]:
    if code == 0:
        return "done", ""
    if code == -9:
        return "memory", "the system ended its process (signal 9), as it does when memory runs out"
    if code in (-2, -15):
        return "stopped", ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    if lines and any(mark in lines[-1].lower() for mark in (*NO_MEMORY, "memoryerror")):
        return "memory", lines[-1][:200]  # a library that ends the process instead of raising
    last = f": {lines[-1][:200]}" if lines else ""
    how = f"ended by signal {-code}" if code < 0 else "failed"
    return "failed", f"its process {how}{last} ({log} has all of it)"


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (" ..." if len(items) > NAMED else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
