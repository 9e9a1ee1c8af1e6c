"""Progress of `pixart generate`, on stderr: a live bar on a terminal, plain lines anywhere else."""

import os
import sys
import time


class DrawingProgress:
    """Shows loading, then every step of every picture. A context manager; `say` prints a notice between."""

    def __init__(self, pictures: int, steps: int):
        self.pictures, self.steps = pictures, steps
        self.live = sys.stderr.isatty() or bool(os.environ.get("FORCE_COLOR"))
        self.bar = _bar() if self.live else None  # a pipe need not wait for rich to load
        self.count = 0
        self.started = self.stepped = time.monotonic()
        self.together: set[int] = set()  # pictures that have taken steps since one was done
        self.share = 0.0
        self.task = None

    def __enter__(self) -> "DrawingProgress":
        if self.bar:
            self.bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self.bar:
            self.bar.__exit__(*error)

    def say(self, notice: str) -> None:
        if self.bar:
            self.bar.console.print(notice, soft_wrap=True)
        else:
            print(notice, file=sys.stderr, flush=True)

    def result(self, line: str) -> None:
        """Print to stdout, with the bar taken off the terminal meanwhile (rich would send the line to stderr)."""
        if self.bar:
            self.bar.stop()
        print(line, flush=True)
        if self.bar:
            self.bar.start()

    def loading(self) -> None:
        if self.bar:
            self.task = self.bar.add_task("loading the model", total=None)
        else:
            self.say("Loading the model.")

    def drawing(self) -> None:
        self.started = time.monotonic()
        if self.bar:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task("drawing", total=self.pictures * self.steps)

    def step(self, picture: int, step) -> None:
        """Called by the pipeline after every step of every picture; those drawn together take their steps in turn."""
        self.together.add(picture)
        self.stepped = time.monotonic()
        if self.bar:
            self.bar.advance(self.task)

    def drawn(self, seed: int) -> None:
        """Of pictures that are drawn together, each took its share of the steps and was decoded alone."""
        self.count += 1
        now = time.monotonic()
        if self.together:
            self.share = (self.stepped - self.started) / len(self.together)
            self.started = self.stepped
            self.together.clear()
        if not self.live:
            seconds = self.share + now - self.started
            self.say(f"Drew picture {self.count} of {self.pictures}: seed {seed}, {seconds:.1f} s.")
        self.started = now


def _bar():
    """rich's bar on stderr, which leaves nothing behind when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False, markup=False, emoji=False),
        transient=True,
        redirect_stdout=False,
    )
