"""The process that loads one model and draws its pictures: `python -m pixart.evaluation.comparison.worker`.

A job comes as JSON on stdin; a line of JSON goes to stdout after loading and after each picture. A process of its own
for each model, so that its peak memory is its own and a model that runs out of memory takes nobody else with it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError
from pixart.evaluation.comparison.drawers import Drawer, open_drawer
from pixart.evaluation.comparison.drawing import NO_MEMORY
from pixart.evaluation.comparison.plan import Cell
from pixart.evaluation.comparison.results import describe


def main() -> int:
    # Only our lines may go to stdout, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)

    def say(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        _draw(job, say)
    except PixArtError as error:
        say({"error": "failed", "reason": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1  # who asked has gone
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise  # to the log of the model
        say(reason)
        return 1
    return 0


def _draw(job: dict[str, Any], say) -> None:
    own = Path(job["folder"])
    began = time.perf_counter()
    drawer = open_drawer(job["kind"], job["source"], job["settings"])
    say({"loaded": time.perf_counter() - began, **_memory()})
    for count, (row, seed, text, negative) in enumerate(job["cells"]):
        cell = Cell(row, seed)
        began = time.perf_counter()
        image = drawer.draw(text, negative, seed)
        seconds = time.perf_counter() - began
        if count == 0:
            _refuse_another_model(drawer, job["weights"], job["engine"])
        partial = own / f".{cell.file}.partial"
        image.save(partial, format="PNG")
        partial.replace(own / cell.file)
        picture = vars(describe(own, cell, seconds=round(seconds, 4), warm=count > 0, notices=tuple(drawer.notices)))
        told = {"settings": drawer.settings, "weights": drawer.weights} if count == 0 else {}
        say({"picture": picture, **told, **_memory()})


def _refuse_another_model(drawer: Drawer, expected: dict[str, str], engine: str | None) -> None:
    """A comparison that goes on must not mix the pictures of two models, or of two engines, under one name."""
    now = drawer.settings.get("engine")
    if engine not in (None, now):
        raise PixArtError(
            f"Its first pictures were drawn by the engine {engine}, and {now} draws others; compare in a new --output."
        )
    changed = [name for name in expected if drawer.weights.get(name) != expected[name]]
    if changed:
        raise PixArtError(
            f"The model has changed since its first pictures were drawn ({changed[0]} has other bytes); bring it back, "
            "or compare in a new --output."
        )


def _reason(error: Exception) -> dict[str, str] | None:
    """What to tell of an error that a person can do something about; None for a bug."""
    said = " ".join(str(error).split()) or type(error).__name__
    text = f"{type(error).__name__} {said}".lower()
    if isinstance(error, MemoryError) or any(mark in text for mark in NO_MEMORY):
        # ONNX Runtime begins with places in its source, and ends with what is the matter.
        return {"error": "memory", "reason": said if len(said) < 200 else f"... {said[-160:]}"}
    if isinstance(error, ModuleNotFoundError):
        from pixart.extras import missing_extra

        sentence = missing_extra(error)
        return {"error": "failed", "reason": str(sentence)} if sentence else None
    if isinstance(error, OSError):
        return {
            "error": "failed",
            "reason": f"{error.filename or 'A file'} cannot be written or read: {error.strerror}.",
        }
    return None


def _memory() -> dict[str, int]:
    """The most memory that this process has had so far, in bytes, and on a GPU where one is used."""
    found = {"peak": _peak_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device_peak"] = torch.cuda.max_memory_reserved()
    return found


def _peak_bytes() -> int:
    try:  # what getrusage says can be the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
