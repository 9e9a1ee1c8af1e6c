"""Sample what a comparison still lacks, model by model, each in a process of its own."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixart.data.images import EXTENSIONS, open_image
from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import Model
from pixart.evaluation.comparison.record import (
    Cell,
    Plan,
    Session,
    add_image,
    next_session,
    outcome,
    save_session,
)
from pixart.evaluation.comparison.worker import NO_MEMORY
from pixart.pipeline.image_files import slug

LOG = "worker.log"
NAMED = 4  # mismatches that a message names


def sample(plan: Plan, model: Model, kind: str, source: str, folder: Path, on_image: Callable[[], None]) -> Session:
    """Make the missing images of a model and return how it ended; whatever was made is kept.

    `kind` ("pixart" or "diffusers") and `source` are what the worker loads. A model that cannot be loaded, crashes or
    runs out of memory is no exception here: the session tells.
    """
    before = outcome(folder, model.folder)
    own = before.folder
    own.mkdir(parents=True, exist_ok=True)
    cells = [
        [cell.row, cell.seed, plan.rows[cell.row].text, plan.rows[cell.row].negative_prompt]
        for cell in plan.cells
        if cell not in before.images
    ]
    settings = {name: value for name, value in model.settings.given().items() if name not in ("checkpoint", "ema")}
    used = before.used or Session("", "done")
    job = {"kind": kind, "source": source, "settings": settings, "cells": cells, "folder": str(own)}
    job |= {"weights": used.weights, "engine": used.settings.get("engine")}
    path, session = next_session(own), Session(_now(), "sampling")
    with (own / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pixart.evaluation.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; the log says why
        for line in process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event.pop("image", None):
                session = replace(session, images=session.images + 1)
                on_image()
            session = replace(session, **event)
            if session.ended == "sampling":
                save_session(path, session)
        code = process.wait()
        if session.ended == "sampling":
            ended, reason = _how_it_ended(code, own / LOG)
            session = replace(session, ended=ended, reason=reason)
    except BaseException:
        session = replace(session, ended="stopped")
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
        save_session(path, session)
        if not (own / LOG).stat().st_size or session.ended == "done":
            (own / LOG).unlink()
    return session


def match(source: Path, plan: Plan) -> tuple[dict[Cell, Path], list[str]]:
    """Images made elsewhere: the file of each cell that has one, and a sentence for each kind of mismatch.

    A file is named after its prompt (as `pixart generate` names it, or the prompt itself, as T2I-CompBench does) or by
    the prompt's number, from 0, or from 1 where none has the number 0 and one has that of the last prompt from 1;
    then, where there are several seeds, by its seed: 7-0.png, a-red-fox-0.png. GenEval's folders
    (00007/samples/0000.png) are read too; there the second number counts the seeds.

    Raises:
        UsageError: two images for one place, or none for any.
    """
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    rows_of: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(plan.rows):
        for name in {row.text.casefold(), slug(row.text)}:
            rows_of[name].append(number)
    places = {path: _place(path, source, rows_of) for path in paths}
    numbers = [row for row, _, by_number in places.values() if by_number]
    first = 1 if numbers and 0 not in numbers and max(numbers) == len(plan.rows) else 0
    found: dict[Cell, Path] = {}
    strangers: list[str] = []
    for path, (row, seed, by_number) in places.items():
        cell = _cell(row - first if by_number else row, seed, plan, counted="samples" in path.parts)
        if cell is None:
            strangers.append(str(path.relative_to(source)))
        elif cell in found:
            both = " and ".join(str(one.relative_to(source)) for one in (found[cell], path))
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
    if code in (130, -2, -15):
        return "stopped", ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if lines and any(mark in lines[-1].lower() for mark in (*NO_MEMORY, "memoryerror")):
        return "memory", lines[-1][:200]  # a library that ends the process instead of raising
    last = f": {lines[-1][:200]}" if lines else ""
    how = f"ended by signal {-code}" if code < 0 else "failed"
    return "failed", f"its process {how}{last} ({log} has all of it)"


def _place(path: Path, source: Path, rows_of: dict[str, list[int]]) -> tuple[int, int | None, bool]:
    """(row or -1, seed or None, whether by number) as the file's name gives it."""
    parts = path.relative_to(source).parts
    if len(parts) == 3 and parts[1] == "samples" and parts[0].isdecimal() and path.stem.isdecimal():
        return int(parts[0]), int(path.stem), False
    stem = path.stem.casefold()
    if stem in rows_of:
        return rows_of[stem][0], None, False
    # The last number is the seed; a prompt may end in one too, so the complete name goes first.
    named = re.fullmatch(r"(.+)[-_](\d{1,10})", stem)
    if named and named[1] in rows_of:
        return rows_of[named[1]][0], int(named[2]), False
    numbers = re.fullmatch(r"(\d{1,9})(?:[-_](\d{1,10}))?", stem)
    if numbers:
        return int(numbers[1]), int(numbers[2]) if numbers[2] else None, True
    return -1, None, False


def _cell(row: int, seed: int | None, plan: Plan, *, counted: bool) -> Cell | None:
    """The place, if the plan has it. GenEval's numbers count the seeds."""
    if not 0 <= row < len(plan.rows):
        return None
    if seed is None:
        return Cell(row, plan.seeds[0]) if len(plan.seeds) == 1 else None
    if counted:
        return Cell(row, plan.seeds[seed]) if seed < len(plan.seeds) else None
    return Cell(row, seed) if seed in plan.seeds else None


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (" ..." if len(items) > NAMED else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
