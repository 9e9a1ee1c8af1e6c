"""How fast a run goes, how long it still takes, and how much of the time it waits for data."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Measures between two reports; what happens in `paused` (evaluation, drawing) does not count."""

    def __init__(self, start: int, steps: int):
        self.start, self.steps = start, steps
        self.begun = self.last = time.perf_counter()
        self.images, self.loaded_s, self.left_s = 0, 0.0, 0.0

    def step(self, done: int, images: int) -> None:
        """Step number `done` is taken, on so many images."""
        self.images += images
        self.left_s = (time.perf_counter() - self.begun) / (done - self.start) * (self.steps - done)

    def figures(self) -> dict[str, float]:
        """Since the last call: images per second, and the share of the time that went into loading batches."""
        now = time.perf_counter()
        passed = now - self.last
        figures = {"images_per_second": self.images / passed, "loading_share": self.loaded_s / passed}
        self.last, self.images, self.loaded_s = now, 0, 0.0
        return figures

    def line(self, done: int, figures: dict[str, float]) -> str:
        """One line of progress after step `done`."""
        return (
            f"step {done:,}/{self.steps:,}  loss {figures['loss']:.4f}  lr {figures['lr']:.2e}  "
            f"grad {figures['grad_norm']:.2f}  {figures['images_per_second']:.1f} images/s  "
            f"{self.left_s / 60:.1f} min left"
        )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.loaded_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.last += time.perf_counter() - begun
