"""Progress of `pixart train` on stderr: a bar under the messages on a terminal, plain lines anywhere else."""

import re
import sys
from typing import TextIO

STEP = re.compile(r"step ([\d,]+)/([\d,]+)  (.*)")  # the loop's line: how far, of how much, and the figures


class TrainingProgress:
    """`report` takes the lines of a run. On a terminal those about the current step move a bar; others scroll by."""

    def __init__(self, stream: TextIO | None = None):
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
        self.bar, self.task = None, None

    def report(self, line: str) -> None:
        match = STEP.fullmatch(line) if self.console.is_terminal else None
        if match is None:
            self.console.print(line, soft_wrap=True)
            return
        done, steps = (int(part.replace(",", "")) for part in match.groups()[:2])
        if self.bar is None:
            self._open(steps)
        self.bar.update(self.task, completed=done, description=match[3])
        if done >= steps:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _open(self, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # The time left stands in the description: the loop knows it, also after a pause.
        self.bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.bar.add_task("", total=steps)
        self.bar.start()
