"""One click on Draw, from checked requests to saved pictures, and what the page may see of it on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pixart.checkpoints.styles import style_notice
from pixart.errors import PixArtError
from pixart.pipeline.image_files import slug, write_image
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import Request
from pixart.web.models import Loaded, Models
from pixart.web.preview import data_uri
from pixart.web.runs import Run, Runs
from pixart.web.work_queue import Cancelled, Job

PREVIEW_EVERY = 0.12  # seconds, at least
PREVIEW_SHARE = 0.25  # of the time, at most


@dataclass(frozen=True)
class Tile:
    """One picture of a run: what is seen of it so far (a data URI, or the saved file), and its label."""

    seed: int
    label: str = ""
    preview: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class View:
    """What the page shows of a drawing at one moment. `steps` are those of all its pictures together."""

    tiles: tuple[Tile, ...]
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    notices: tuple[str, ...] = ()
    run: str = ""  # its folder's name, once a picture is saved
    previews: int = 0  # how many were made, so that a view can be told from the one before


Requests = Callable[[Any], list[Request]]  # of the model folder that will draw them


class Drawing:
    """The work of one job. `view` is replaced as a whole after every step, so that any thread may read it."""

    def __init__(
        self,
        models: Models,
        runs: Runs,
        requests: Requests,
        form: dict[str, Any],
        *,
        labels: tuple[str, ...] = (),
        columns: int = 0,
        on_done: Callable[[list[Generated], float, Path], None] | None = None,
        metadata: bool = True,
    ):
        """Check the requests against the model of this moment.

        Args:
            requests: makes them for a model folder; raises UsageError for what it cannot draw.
            labels, columns: of the cells, where the pictures make a grid.
            on_done: gets all pictures, the seconds they took and their folder, in the drawing thread.
        """
        self.models, self.runs, self.make, self.form = models, runs, requests, form
        self.labels, self.columns, self.on_done, self.metadata = labels, columns, on_done, metadata
        self.folder = models.folder
        self.requests = requests(models.folder)
        self._plan()

    def _plan(self) -> None:
        seeds = [seed for request in self.requests for seed in request.seeds]
        labels = self.labels or ("",) * len(seeds)
        self.view = View(
            tiles=tuple(Tile(seed, label) for seed, label in zip(seeds, labels, strict=True)),
            steps=sum(request.steps * len(request.seeds) for request in self.requests),
        )

    def __call__(self, job: Job) -> Run:
        """Draw; to be called in the drawing thread. Every picture is on disk before the next one begins."""
        loaded = self.models.require()
        if loaded.folder != self.folder:
            self.requests = self.make(loaded.folder)
            self._plan()
            self._say(f"The model was changed meanwhile: this is drawn by {loaded.folder.name}.")
        if said := style_notice(self.requests[0].style, loaded.folder.styles):
            self._say(said)
        started = time.monotonic()
        watch = _Watch(self, loaded, job, started)
        path: Path | None = None
        pictures: list[Generated] = []
        try:
            for request in self.requests:
                watch.begin(request, len(pictures))
                for picture in loaded.pipeline.generate(request, watch.step, self._say):
                    path = path or self.runs.new(request.resolved_prompts[0])
                    file = self._save(picture, request, path)
                    pictures.append(picture)
                    tile = replace(self.view.tiles[len(pictures) - 1], path=file, preview="")
                    # Recorded before it is shown: only images of recorded runs are served.
                    tiles = list(self.view.tiles)
                    tiles[len(pictures) - 1] = tile
                    self._record(path, time.monotonic() - started, tuple(tiles))
                    self._set_tile(len(pictures) - 1, tile, run=path.name)
                    job.check()
        except Cancelled:
            if path is not None:
                self._say(f"Stopped: {len(pictures)} of {len(self.view.tiles)} pictures are saved.")
                self._record(path, time.monotonic() - started)
            raise
        run = self._record(path, time.monotonic() - started)
        if self.on_done is not None:
            self.on_done(pictures, run.seconds, path)
        return run

    def _save(self, picture: Generated, request: Request, folder: Path) -> Path:
        name = f"{slug(request.resolved_prompts[0])}-{picture.seed}.png"
        try:
            return write_image(picture.image, picture.settings, folder / name, metadata=self.metadata)
        except PixArtError:
            # What was drawn is at least to be seen. And an empty folder helps nobody.
            index = next(i for i, tile in enumerate(self.view.tiles) if tile.path is None)
            uri = data_uri(np.asarray(picture.image))
            self._set_tile(index, replace(self.view.tiles[index], preview=uri), previews=self.view.previews + 1)
            if not any(folder.iterdir()):
                folder.rmdir()
            raise

    def _record(self, path: Path, seconds: float, tiles: tuple[Tile, ...] = ()) -> Run:
        saved = [tile for tile in tiles or self.view.tiles if tile.path is not None]
        run = Run(
            name=path.name,
            created=path.stat().st_mtime,
            prompt=self.requests[0].prompts[0],
            model=self.models.folder.name,
            seconds=seconds,
            form=self.form | {"seed": self.view.tiles[0].seed},
            pictures=tuple({"file": tile.path.name, "seed": tile.seed, "label": tile.label} for tile in saved),
            notices=self.view.notices,
            grid=self.columns,
        )
        self.runs.write(run)
        return run

    def _say(self, notice: str) -> None:
        if notice not in self.view.notices:
            self.view = replace(self.view, notices=(*self.view.notices, notice))

    def _set_tile(self, index: int, tile: Tile, **changes: Any) -> None:
        tiles = (*self.view.tiles[:index], tile, *self.view.tiles[index + 1 :])
        self.view = replace(self.view, tiles=tiles, **changes)


class _Watch:
    """Counts the steps, makes previews as often as they are cheap, and stops the drawing where that is wanted."""

    def __init__(self, drawing: Drawing, loaded: Loaded, job: Job, started: float):
        self.drawing, self.loaded, self.job, self.started = drawing, loaded, job, started
        self.next_preview = 0.0
        self.cost = 0.0
        self.round = -1  # the step whose pictures are being looked at, or none

    def begin(self, request: Request, first: int) -> None:
        self.request, self.first = request, first

    def step(self, picture: int, step) -> None:
        """Called after every step of every picture. Pictures that are drawn together call in turn."""
        self.job.check()
        view = self.drawing.view
        done = view.step + 1
        now = time.monotonic()
        left = (now - self.started) / done * (view.steps - done)
        self.drawing.view = replace(view, step=done, seconds_left=left)
        if step.index != self.round and now >= self.next_preview:
            self.round, self.cost = step.index, 0.0
        if step.index == self.round and step.index < self.request.steps - 1:
            self._show(self.first + picture, step.x_0)
            self.cost += time.monotonic() - now
            self.next_preview = time.monotonic() + max(PREVIEW_EVERY, self.cost / PREVIEW_SHARE - self.cost)

    def _show(self, index: int, x_0) -> None:
        uri = data_uri(self.loaded.preview.pixels(x_0))
        view = self.drawing.view
        self.drawing._set_tile(index, replace(view.tiles[index], preview=uri), previews=view.previews + 1)
