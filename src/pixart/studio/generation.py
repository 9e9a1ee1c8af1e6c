"""One click on Generate, from checked requests to saved images, and what the page shows of it meanwhile."""

import functools
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixart.checkpoints.styles import style_notice
from pixart.errors import PixArtError
from pixart.pipeline.image_files import slug, write_image
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import Request
from pixart.studio import markup
from pixart.studio.models import Loaded
from pixart.studio.preview import data_uri
from pixart.studio.runs import Run
from pixart.studio.studio import Stopped, Studio

PREVIEW_EVERY = 0.2  # seconds, at least
PREVIEW_SHARE = 0.25  # of the time, at most


@dataclass
class Tile:
    """One image: what is seen of it so far (a data URI, or the saved file), and its label."""

    seed: int
    label: str = ""
    preview: str = ""
    path: Path | None = None


class Generation:
    """What `Studio.follow` runs and shows: the worker writes its attributes, the page reads them."""

    def __init__(
        self, studio: Studio, requests: list[Request], form: dict[str, Any], labels: list[str] | None = None, grid=0
    ):
        """`form` is what the fields hold; `labels` and `grid`, the number of columns, are for a grid of images."""
        self.studio, self.requests, self.form, self.grid = studio, requests, form, grid
        seeds = [seed for request in requests for seed in request.seeds]
        self.tiles = [Tile(seed, label) for seed, label in zip(seeds, labels or [""] * len(seeds), strict=True)]
        self.steps = sum(request.steps * len(request.seeds) for request in requests)
        self.step, self.saved, self.run_name = 0, 0, ""
        self.seconds_left: float | None = None
        self.notices: list[str] = []
        self.next_preview, self.preview_step, self.preview_cost = 0.0, -1, 0.0

    def view(self) -> list:
        """Status and images of the page's stage."""
        return [markup.status(self), markup.tiles(self)]

    def run(self, stop: threading.Event) -> Run:
        """Generate; every image is saved, recorded and shown before the next one begins."""
        self.stop = stop
        loaded = self.studio.models.require()
        if notice := style_notice(self.requests[0].style, loaded.pipeline.folder.styles):
            self._say(notice)
        self.began = time.monotonic()
        images: list[Generated] = []
        try:
            for request in self.requests:
                on_step = functools.partial(self._on_step, loaded, self.saved, request.steps - 1)
                for generated in loaded.pipeline.generate(request, on_step, self._say):
                    self._save(generated)
                    images.append(generated)
        except Stopped:
            if self.saved:
                self._say(f"Stopped: {self.saved} of {len(self.tiles)} images are saved.")
                self._record()
            raise
        run = self._record()
        if self.studio.tracker is not None:
            self.studio.tracker.log(images, run.seconds)
        return run

    def _say(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)

    def _save(self, generated: Generated) -> None:
        tile, name = self.tiles[self.saved], slug(self.requests[0].resolved_prompts[0])
        folder = self.studio.runs.folder / self.run_name if self.run_name else None
        try:
            folder = folder or self.studio.runs.new(self.requests[0].resolved_prompts[0])
            file = folder / f"{name}-{generated.seed}.png"
            tile.path = write_image(generated.image, generated.settings, file, metadata=self.studio.metadata)
        except PixArtError:
            tile.preview = data_uri(np.asarray(generated.image))  # it is at least seen
            if folder is not None and not any(folder.iterdir()):
                folder.rmdir()
            raise
        self.saved, self.run_name = self.saved + 1, folder.name
        self._record()  # before it is shown: only images of recorded runs are served

    def _record(self) -> Run:
        saved = self.tiles[: self.saved]
        run = Run(
            name=self.run_name,
            created=time.time(),
            prompt=self.requests[0].prompts[0],
            model=self.studio.models.folder.name,
            seconds=time.monotonic() - self.began,
            form=self.form,
            images=tuple({"file": tile.path.name, "seed": tile.seed, "label": tile.label} for tile in saved),
            notices=tuple(self.notices),
            grid=self.grid,
        )
        self.studio.runs.write(run)
        return run

    def _on_step(self, loaded: Loaded, first: int, last: int, index: int, step: Any) -> None:
        """After every step of every image; images of a batch call in turn."""
        if self.stop.is_set():
            raise Stopped
        now = time.monotonic()
        self.step += 1
        self.seconds_left = (now - self.began) / self.step * (self.steps - self.step)
        if step.index != self.preview_step and now >= self.next_preview:
            self.preview_step, self.preview_cost = step.index, 0.0
        if step.index == self.preview_step and step.index < last:
            self.tiles[first + index].preview = data_uri(loaded.preview.pixels(step.x_0), small=len(self.tiles) > 4)
            self.preview_cost += time.monotonic() - now
            wait = max(PREVIEW_EVERY, self.preview_cost / PREVIEW_SHARE - self.preview_cost)
            self.next_preview = time.monotonic() + wait
