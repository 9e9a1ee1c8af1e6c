"""Progress of `pixart generate`, on stderr: a live bar on a terminal, plain lines anywhere else."""

import time


class DrawingProgress:
    """Shows loading, then every step of every picture. A context manager; `say` prints a notice between."""

    def __init__(self, pictures: int, steps: int):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.pictures, self.steps = pictures, steps
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.live = self.console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            redirect_stdout=False,
            disable=not self.live,
        )
        self.count = 0
        self.started = time.monotonic()

    def __enter__(self) -> "DrawingProgress":
        self.bar.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.bar.__exit__(*error)

    def say(self, notice: str) -> None:
        self.console.print(notice, soft_wrap=True)

    def result(self, line: str) -> None:
        """Print to stdout, with the bar taken off the terminal meanwhile (rich would send the line to stderr)."""
        self.bar.stop()
        print(line, flush=True)
        if self.live:
            self.bar.start()

    def loading(self) -> None:
        self.task = self.bar.add_task("loading the model", total=None)
        if not self.live:
            self.say("Loading the model.")

    def drawing(self) -> None:
        self.started = time.monotonic()
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task("drawing", total=self.pictures * self.steps)

    def step(self, picture: int, step) -> None:
        """Called by the pipeline after every step of every picture."""
        self.bar.advance(self.task)  # pictures that are drawn together take their steps in turn

    def drawn(self, seed: int) -> None:
        self.count += 1
        now = time.monotonic()
        if not self.live:
            self.say(f"Drew picture {self.count} of {self.pictures}: seed {seed}, {now - self.started:.1f} s.")
        self.started = now
