"""One click on Generate, from a checked request to saved images, and what the page shows of it meanwhile."""

import base64
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.styles import style_notice
from pixart.errors import PixArtError
from pixart.pipeline.cutout import cut_out
from pixart.pipeline.engine import Job
from pixart.pipeline.image_files import slug, write_image
from pixart.pipeline.pipeline import Generated, Pipeline
from pixart.pipeline.request import Request
from pixart.studio import markup
from pixart.studio.runs import Run
from pixart.studio.studio import Studio

PREVIEW_EVERY = 0.3  # seconds, at least, of one image
PREVIEW_SHARE = 0.15  # of the time, at most, for the previews of all images
LARGEST_PREVIEW, SMALL_PREVIEW = 384, 160  # pixels of the longer side


@dataclass
class Tile:
    """One image: what is seen of it so far (a data URI, or the saved file), and its size in pixels."""

    seed: int
    size: tuple[int, int]
    preview: str = ""
    path: Path | None = None
    details: str = ""  # HTML, of a saved one
    next_preview: float = 0.0


class Generation:
    """What `Studio.follow` submits and shows: the engine's thread writes its attributes, the page reads them."""

    def __init__(self, studio: Studio, request: Request, form: dict[str, Any], loras: tuple[Lora, ...] = ()):
        """`request` is checked for the model of this moment; `form` is what the fields hold."""
        self.studio, self.request, self.form, self.loras = studio, request, form, loras
        self.choice = studio.models.choice
        size = request.width * request.upscale, request.height * request.upscale
        self.tiles = [Tile(seed, size) for seed in request.seeds]
        self.steps = request.steps_in_all * len(self.tiles)
        self.step, self.run_name = 0, ""
        self.began, self.first_step = 0.0, 0.0  # when it was submitted, and when its first step was done
        self.job: Job | None = None
        notice = style_notice(request.style, studio.models.folder.styles)
        self.notices = [notice] if notice else []

    def view(self) -> list:
        """Status and images of the page's stage."""
        return [markup.status(self), markup.tiles(self.tiles)]

    @property
    def saved(self) -> int:
        return sum(tile.path is not None for tile in self.tiles)

    @property
    def ahead(self) -> int | None:
        """How many other jobs wait or run while this one waits; None before and after that."""
        if self.job is None or self.job.started is not None:
            return None
        return sum(other is not self.job for other in self.studio.engine.live)

    @property
    def seconds_left(self) -> float | None:
        if self.step < 2:
            return None
        return (time.monotonic() - self.first_step) / (self.step - 1) * (self.steps - self.step)

    def submit(self, owner: str) -> Job:
        """Load the model if it is not, and put the request in the engine's queue; in the worker."""
        loaded = self.studio.require()
        if self.studio.models.choice != self.choice:
            raise PixArtError("Another model was loaded meanwhile, so this was not generated; press Generate again.")
        self.pipeline: Pipeline = loaded.pipeline
        self.began = time.monotonic()
        self.job = self.studio.engine.submit(
            loaded.pipeline, self.request, owner=owner, on_step=self._on_step, on_image=self._save, loras=self.loras
        )
        return self.job

    def finish(self) -> None:
        """All images are there: into the tracker with them."""
        if self.studio.tracker is not None:
            self.studio.tracker.log(self.job.future.result(), time.monotonic() - self.began)

    def _save(self, index: int, generated: Generated) -> None:
        tile = self.tiles[index]
        if self.form.get("transparent"):
            settings = {**generated.settings, "transparent": True}
            generated = replace(generated, image=cut_out(generated.image), settings=settings)
        runs, name = self.studio.runs, self.request.resolved_prompts[0]
        folder = runs.folder / self.run_name if self.run_name else None
        try:
            folder = folder or runs.new(name)
            file = folder / f"{slug(name)}-{generated.seed}.png"
            tile.path = write_image(generated.image, generated.settings, file, metadata=self.studio.metadata)
        except PixArtError:
            tile.preview = data_uri(generated.image, LARGEST_PREVIEW)  # it is at least seen
            if folder is not None and not any(folder.iterdir()):
                folder.rmdir()
            raise
        tile.details = markup.details(generated.settings, f"{folder.name}/{tile.path.name}")
        self.run_name = folder.name
        self._record()  # before it is shown: only images of recorded runs are served

    def _record(self) -> None:
        notices = [*self.notices, *(self.job.notices if self.job else [])]
        run = Run(
            name=self.run_name,
            created=time.time(),
            prompt=self.request.prompts[0],
            model=self.studio.models.folder.name,
            seconds=time.monotonic() - self.began,
            form=self.form,
            images=tuple({"file": tile.path.name, "seed": tile.seed} for tile in self.tiles if tile.path),
            notices=tuple(dict.fromkeys(notices)),
        )
        self.studio.runs.write(run)

    def _on_step(self, index: int, step: Any) -> None:
        """After every step of every image."""
        now, tile = time.monotonic(), self.tiles[index]
        self.first_step = self.first_step or now
        self.step += 1
        # With one network at a time in memory, decoding a preview would put the denoiser out.
        if now < tile.next_preview or self.pipeline.networks.memory.staged:
            return
        if (image := self.pipeline.preview(self.request, step)) is None:
            return
        tile.preview = data_uri(image, SMALL_PREVIEW if len(self.tiles) > 4 else LARGEST_PREVIEW)
        took = time.monotonic() - now
        tile.next_preview = now + max(PREVIEW_EVERY, took * len(self.tiles) / PREVIEW_SHARE)


def data_uri(image: Any, side: int) -> str:
    """A PIL image as the text of a JPEG that stands in a page itself: no file, no second request."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
