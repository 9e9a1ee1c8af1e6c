"""Draw what a comparison still lacks, model by model, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pixart.errors import PixArtError
from pixart.evaluation.comparison.models import Model
from pixart.evaluation.comparison.plan import Cell, Plan
from pixart.evaluation.comparison.results import Drawn, Session, add, next_session, outcome, save_session

LOG = "worker.log"
# What libraries say when there is no memory for a tensor, besides raising MemoryError or torch's own class.
NO_MEMORY = ("out of memory", "not enough memory", "bad_alloc", "bad allocation", "allocate memory", "allocatememory")
OnPicture = Callable[[Model, Drawn], None]


@dataclass(frozen=True)
class Job:
    """What draws a model: the kind of drawer ("pixart" or "diffusers"), and the place of the model."""

    kind: str
    source: str


def missing(plan: Plan, model: Model, folder: Path) -> tuple[Cell, ...]:
    """The pictures of `model` that are not there yet, in the order in which they are drawn."""
    have = outcome(folder, model.folder).drawn
    return tuple(cell for cell in plan.cells if cell not in have)


def draw(plan: Plan, model: Model, job: Job, missing: tuple[Cell, ...], folder: Path, on_picture: OnPicture) -> Session:
    """Draw the missing pictures of a model and return how it ended; whatever was drawn is kept.

    A model that cannot be loaded, crashes or runs out of memory is no exception here: the session says so.
    """
    before = outcome(folder, model.folder)
    own = before.folder
    own.mkdir(parents=True, exist_ok=True)
    weights = next((session.weights for session in reversed(before.sessions) if session.weights), {})
    cells = []
    for cell in missing:
        row = plan.rows[cell.row]
        cells.append([cell.row, cell.seed, row.text, row.negative_prompt])
    drawing = {name: value for name, value in model.settings.given().items() if name not in ("checkpoint", "ema")}
    order = {"kind": job.kind, "source": job.source, "settings": drawing, "cells": cells}
    order |= {"folder": str(own), "weights": weights, "engine": before.engine}
    path = next_session(own)
    session = Session(began=datetime.now(UTC).isoformat(timespec="seconds"), ended="drawing")
    with (own / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pixart.evaluation.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        try:
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; the log says why
        for line in process.stdout:
            session = _heard(session, json.loads(line), lambda picture: (add(own, picture), on_picture(model, picture)))
            if session.ended == "drawing":
                save_session(path, session)
        code = process.wait()
        if session.ended == "drawing":
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
        try:
            save_session(path, session)
        except OSError as error:
            raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None
        if not (own / LOG).stat().st_size or session.ended == "done":
            (own / LOG).unlink()
    return session


def _heard(session: Session, event: dict, note: Callable[[Drawn], object]) -> Session:
    """The session after a line of its process."""
    if "error" in event:
        return replace(session, ended=event["error"], reason=event["reason"])
    if "loaded" in event:
        session = replace(session, load_seconds=round(event["loaded"], 3))
    if "picture" in event:
        note(Drawn(**event["picture"]))
        session = replace(session, pictures=session.pictures + 1)
    if "settings" in event:
        session = replace(session, settings=event["settings"], weights=event["weights"])
    return replace(session, peak_bytes=event.get("peak"), device_bytes=event.get("device_peak"))


def _how_it_ended(code: int, log: Path) -> tuple[str, str]:
    if code == 0:
        return "done", ""
    if code == -9:
        return "memory", "the system ended its process (signal 9), as it does when memory runs out"
    if code in (130, -2, -15):
        return "stopped", ""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if said and any(mark in said[-1].lower() for mark in (*NO_MEMORY, "memoryerror")):
        return "memory", said[-1][:200]  # a library that ends the process instead of raising
    last = f": {said[-1][:200]}" if said else ""
    how = f"ended by signal {-code}" if code < 0 else "failed"
    return "failed", f"its process {how}{last} ({log} has all of it)"
