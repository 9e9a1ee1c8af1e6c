"""Progress of work on the pictures of a data set, on stderr."""

import sys
import time


class Progress:
    """A bar on a terminal, a line every half minute elsewhere; both with the time left, where the total is known."""

    def __init__(self, doing: str, total: int | None):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self.total, self.live, self.said = total, console.is_terminal, time.monotonic()
        self.began: tuple[float, int] | None = None  # what an earlier run did does not count for the speed
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self.bar = Bar(TextColumn(doing), *columns, console=console, transient=True, disable=not self.live)
        self.task = self.bar.add_task(doing, total=total)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def update(self, account) -> None:
        """`account.pictures` is how many are done, those of an earlier run included."""
        self.bar.update(self.task, completed=account.pictures)
        now = time.monotonic()
        if self.began is None:
            self.began = (now, account.pictures)
        if self.live or now - self.said < 30:
            return
        self.said = now
        start, before = self.began
        speed = (account.pictures - before) / max(now - start, 1e-9)
        left = ""
        if self.total and speed:
            left = f"; about {max(0, self.total - account.pictures) / speed / 60:.0f} min left"
        of = f" of about {self.total:,}" if self.total else ""
        print(f"{account.pictures:,}{of} pictures, {speed:.2f} a second{left}.", file=sys.stderr, flush=True)
