"""The one progress display, on stderr: a live bar on a terminal, a plain line now and then anywhere else."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """A context manager that shows one task at a time; results still go to stdout, in order with the bar.

    The time left counts from what this process did, not from what an earlier run had done.
    """

    def __init__(self, stream: TextIO | None = None, seconds_between_lines: float = SECONDS_BETWEEN_LINES):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() or bool(os.environ.get("FORCE_COLOR"))
        self.seconds_between_lines = seconds_between_lines
        self.bar = _bar(self.stream) if self.live else None  # a pipe need not wait for rich to load
        self.task: Any = None
        self.doing, self.unit, self.total = "", "", None
        self.done = self.first = 0
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def start(self, doing: str, total: int | None = None, *, unit: str = "", done: int = 0) -> None:
        """Begin another task: `doing` "extracting", `total` of `unit` "images" (None where unknown)."""
        self.doing, self.unit, self.total, self.done, self.first = doing, unit, total, done, done
        self.began = self.shown = time.monotonic()
        if self.bar:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(doing, total=total, completed=done, note="")
        elif total is None and not unit:
            self.say(f"{doing[:1].upper()}{doing[1:]}.")

    @contextlib.contextmanager
    def aside(self, doing: str, total: int, *, unit: str) -> Iterator[None]:
        """Another task for the block, such as loading on first use; what was under way is shown again after it."""
        before = self.doing, self.total, self.unit, self.done
        self.start(doing, total, unit=unit)
        yield
        if before[1] is not None:
            self.start(before[0], before[1], unit=before[2], done=before[3])

    def update(self, done: int, note: str = "") -> None:
        """`done` of the task in all, and a few words such as the loss."""
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self.shown >= self.seconds_between_lines:
            self.shown = now
            self.say(self._line(now, note))

    def advance(self, count: int = 1, note: str = "") -> None:
        self.update(self.done + count, note)

    def say(self, line: str) -> None:
        """A line for the person, above the bar."""
        if self.bar:
            self.bar.console.print(line, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    def result(self, line: str) -> None:
        """Print to stdout, with the bar off the terminal meanwhile (rich would send the line to stderr)."""
        if self.bar:
            self.bar.stop()
        print(line, flush=True)
        if self.bar:
            self.bar.start()

    def _line(self, now: float, note: str) -> str:
        of = f" of {self.total:,}" if self.total else ""
        parts = [f"{self.doing}: {self.done:,}{of} {self.unit}".rstrip()]
        speed = (self.done - self.first) / max(now - self.began, 1e-9)
        if speed and self.total:
            parts.append(f"about {max(0, self.total - self.done) / speed / 60:.0f} min left")
        return ", ".join([*parts, *([note] if note else [])])


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream, highlight=False, markup=False, emoji=False),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
