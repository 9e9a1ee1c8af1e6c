"""What both protocols share: the models, checking a request, running it for as long as its client waits."""

import asyncio
import contextlib
import io
import logging
import math
import secrets
import time
import warnings
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from pixart.checkpoints.adapters import Lora, check_fit, is_adapter, linear_shapes, read_loras
from pixart.checkpoints.model_folder import ModelFolder, open_model_folder
from pixart.config import unknown
from pixart.diffusion.solvers import Step
from pixart.errors import PixArtError, UsageError, shown
from pixart.pipeline.bins import fit
from pixart.pipeline.engine import DeadlinePassed, Engine, Job, QueueFull, as_sentence, work_of
from pixart.pipeline.image_files import save_image
from pixart.pipeline.networks import Runtime, choose_runtime, load_networks
from pixart.pipeline.pipeline import Generated, Pipeline
from pixart.pipeline.request import Request, make_request
from pixart.runtime.memory import AUTO, PLAIN, Computing, Memory
from pixart.server.limits import Limits
from pixart.server.metrics import Metrics

logger = logging.getLogger("pixart.server")
MOST_LORAS, MOST_STRENGTH = 8, 10
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class Refused(HTTPException):
    """A request that is answered with an error: its HTTP status, the field that is wrong, OpenAI's error code."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str = "", seconds: float = 0):
        headers = {"retry-after": str(max(1, math.ceil(seconds)))} if status in (429, 503) else None
        super().__init__(status, message, headers)
        self.param, self.code = param, code


class ClientLeft(Exception):
    """Nobody waits for the response any more."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is computed; as `open_model_folder` and `choose_runtime` take it."""

    model: str | None = None
    fast: bool = False
    computing: Computing = AUTO
    memory: Memory = PLAIN
    loras: Path | None = None  # a folder of adapters


@dataclass(frozen=True)
class Model:
    """A model that is served; `pipeline` is None until it is loaded. `loras` are the adapters that fit it, by name."""

    name: str
    source: Source
    folder: ModelFolder
    runtime: Runtime
    pipeline: Pipeline | None = None
    loras: dict[str, Lora] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stamp(self) -> tuple:
        """Changes when the files of the weights do."""
        return tuple((path, *_stamp(path)) for path in self.folder.weights)


def open_model(source: Source, name: str | None = None) -> Model:
    """Check a model's files and the device; loads nothing. Raises as `open_model_folder` and `choose_runtime` do."""
    folder = open_model_folder(source.model, fast=source.fast, text_encoder=source.memory.text_encoder)
    how = source.computing
    runtime = choose_runtime(folder, how.engine, how.dtype, source.memory, how.device)
    loras = find_loras(source.loras, folder) if source.loras is not None else {}
    return Model(name or folder.name + ("-fast" if source.fast else ""), source, folder, runtime, loras=loras)


def find_loras(place: Path, folder: ModelFolder) -> dict[str, Lora]:
    """The adapters in a folder that fit a model, by their names. Raises PixArtError for one that is damaged."""
    if not place.is_dir():
        raise PixArtError(f"There is no folder {place}; give one with adapters.")
    found: dict[str, Lora] = {}
    text = linear_shapes(folder.text_encoder)
    for path in sorted(path for path in place.iterdir() if is_adapter(path)):
        lora = read_loras([(path, 1.0)])[0]
        with contextlib.suppress(PixArtError):  # it is for another model
            check_fit([lora], folder.transformer, text)
            found[path.stem] = lora
    return found


def load_model(model: Model) -> Model:
    """Load its networks and generate one image, so that the first request need not wait for anything.

    Raises:
        PixArtError: it is damaged, or cannot generate here.
    """
    try:
        pipeline = Pipeline(model.folder, load_networks(model.folder, model.runtime))
        steps = None if model.folder.fast else 2
        list(pipeline.generate(make_request(model.folder, "an apple", seed=0, steps=steps)))
    except BaseException as error:
        raise as_sentence(error) from None
    return replace(model, pipeline=pipeline, created=int(time.time()))


class Service:
    """One server's models, engine, limits, counters, and the images that wait to be fetched."""

    def __init__(self, models: list[Model], limits: Limits, keys: int, *, metadata: bool = True, prompts: bool = False):
        self.models = {model.name: model for model in models}
        self.stamps = {model.name: model.stamp for model in models}
        self.limits, self.metadata, self.log_prompts = limits, metadata, prompts
        self.metrics = Metrics()
        self.engine = Engine(
            most_jobs=limits.max_queue,
            most_work=limits.max_queued_work,
            most_of_one=max(1, limits.max_queue // max(1, keys)),
            observe=self.metrics.observe,
        )
        self.content: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self.encoders = ThreadPoolExecutor(4, "pixart-encode")
        self._loading = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return all(model.pipeline is not None for model in self.models.values())

    async def load(self, *, changed_only: bool = False) -> list[str]:
        """Load all models, or those whose files have changed; each serves from then on, the one before until then.

        Raises:
            PixArtError: a model cannot be loaded. The one before goes on.
        """
        loaded = []
        async with self._loading:
            for name, model in list(self.models.items()):
                fresh = await asyncio.to_thread(open_model, model.source, name)
                if changed_only and model.pipeline is not None and fresh.stamp == self.stamps[name]:
                    self.models[name] = replace(model, loras=fresh.loras)
                    continue
                self.models[name] = await asyncio.to_thread(load_model, fresh)
                self.stamps[name] = fresh.stamp
                loaded.append(name)
                made = self.models[name].pipeline.provenance
                labels = (name, made["model_hash"], made["dtype"], made["device"])
                self.metrics.model.labels(*labels).set(1)
        return loaded

    def model(self, name: str | None, param: str = "model") -> Model:
        """The loaded model of that name; None is the first."""
        if name is not None and name not in self.models:
            raise Refused(404, unknown("model", name, self.models), param, "model_not_found")
        model = self.models[name] if name is not None else next(iter(self.models.values()))
        if model.pipeline is None:
            raise Refused(503, "The model is being loaded; try again.", None, "not_ready", 5)
        return model

    def loras(self, model: Model, wanted: list[tuple[str, float]], param: str) -> tuple[Lora, ...]:
        """Adapters by name and strength. Raises Refused."""
        if len(wanted) > MOST_LORAS:
            message = f"There are {len(wanted)} adapters; at most {MOST_LORAS} are used together."
            raise Refused(400, message, param, "invalid_value")
        for name, strength in wanted:
            if name not in model.loras:
                raise Refused(400, unknown("adapter", name, model.loras), param, "invalid_value")
            if not abs(strength) <= MOST_STRENGTH:
                message = f"The strength of an adapter must be from -{MOST_STRENGTH} to {MOST_STRENGTH}."
                raise Refused(400, message, param, "invalid_value")
        return tuple(replace(model.loras[name], strength=strength) for name, strength in wanted)

    def check(self, model: Model, values: dict[str, Any], fields: dict[str, str]) -> Request:
        """A request by the arguments of `make_request`, within the limits; `fields` are the protocol's names of them.

        Raises:
            Refused: names the field, the limit and the nearest value.
        """
        given = {name: value for name, value in values.items() if value is not None}
        try:
            request = make_request(model.folder, **given)
        except UsageError as error:
            raise self._blamed(model.folder, given, fields, error) from None
        limits, count = self.limits, request.num_images
        largest = request.enlarged if request.upscale > 1 else request
        height, width = largest.image_height, largest.image_width
        if height * width > limits.max_pixels:
            scale, step = math.sqrt(limits.max_pixels / (height * width)), model.folder.size_multiple
            near = " x ".join(str(max(step, int(side * scale) // step * step)) for side in (width, height))
            message = f"{width} x {height} has more than {limits.max_pixels:,} pixels; the nearest here is {near}."
            raise Refused(400, message, fields["width"], "size_too_large")
        work = work_of(request)
        if work > limits.max_work:
            images, steps = int(limits.max_work / work * count), int(limits.max_work / work * count * request.steps)
            instead = f"{images} images" if images else f"one image with {steps} steps"
            message = (
                f"This is {work:,.0f} million pixels x steps x images, and the limit is {limits.max_work:,}; the "
                f"nearest at this size is {instead}."
            )
            raise Refused(400, message, fields["num_images"], "request_too_large")
        return request

    def opened(self, data: bytes, field: str) -> Any:
        """An image that a client sent, as PIL; a PNG, JPEG or WebP file. Raises Refused."""
        from PIL import Image, ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
                image = Image.open(io.BytesIO(data), formats=tuple(FORMATS.values()))
                if image.width * image.height <= self.limits.max_input_pixels:
                    image = ImageOps.exif_transpose(image)
                    image.load()
                    return image
        except Exception:  # decoders fed with bad bytes raise nearly everything
            message = f"{field} must be a PNG, JPEG or WebP file that is complete."
            raise Refused(400, message, field, "invalid_image") from None
        message = (
            f"{field} has {image.width} x {image.height} pixels; at most {self.limits.max_input_pixels:,} are read."
        )
        raise Refused(400, message, field, "invalid_image")

    def _blamed(self, folder: ModelFolder, given: dict, fields: dict[str, str], error: UsageError) -> Refused:
        """The refusal that names the first field without which the request could be made."""
        kept: dict[str, Any] = {"prompt": "", "image": given.get("image")}
        for name, value in given.items():
            try:
                make_request(folder, **(kept | {name: value}))
            except UsageError as own:
                return Refused(400, str(own), fields.get(name, name), "invalid_value")
            kept[name] = value
        return Refused(400, str(error), None, "invalid_value")

    def submit(
        self,
        http: HttpRequest,
        model: Model,
        request: Request,
        loras: tuple[Lora, ...],
        on_step: Callable[[int, Step], None] | None = None,
    ) -> Job:
        """Put a checked request in the queue. Raises Refused where it is full."""
        deadline = http.state.began + self.limits.request_seconds
        try:
            job = self.engine.submit(
                model.pipeline, request, owner=http.state.owner, on_step=on_step, deadline=deadline, loras=loras
            )
        except QueueFull as full:
            self.metrics.rejected.labels("queue_full").inc()
            raise Refused(429, str(full), None, "queue_full", full.seconds) from None
        http.state.notes |= {
            "model": model.name,
            "images": job.count,
            "steps": request.steps,
            "size": f"{request.width}x{request.height}",
        }
        if self.log_prompts:
            http.state.notes["prompt"] = request.prompts[0]
        return job

    def close_job(self, job: Job) -> None:
        """Count a job that is over; one that is not, since its client has left, ends here."""
        job.future.cancel()
        phase = "waiting" if job.started is None else "running"
        if job.started is not None:
            self.metrics.queue_wait.observe(job.started - job.submitted)
        if job.future.cancelled():
            self.metrics.cancelled.labels(phase).inc()
        elif isinstance(job.future.exception(), DeadlinePassed):
            self.metrics.rejected.labels("deadline").inc()
        elif job.future.exception() is not None:
            self.metrics.failed.inc()

    async def wait(self, http: HttpRequest, job: Job) -> list[Generated] | None:
        """The images of a job, None if it was cancelled; it ends with its client.

        Raises:
            Refused: it failed. ClientLeft.
        """
        left = asyncio.create_task(_left(http))
        try:
            await asyncio.wait({left, future := asyncio.wrap_future(job.future)}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ClientLeft
            return outcome(job)
        finally:
            left.cancel()
            self.close_job(job)

    async def encoded(self, generated: Generated, kind: str, quality: int | None = None) -> bytes:
        """An image file, made in a thread."""

        def encode() -> bytes:
            began = time.monotonic()
            file = io.BytesIO()
            settings = generated.settings or None
            save_image(file, generated.image, settings, FORMATS[kind], quality=quality, metadata=self.metadata)
            self.metrics.stage.labels("encode_file").observe(time.monotonic() - began)
            return file.getvalue()

        return await asyncio.get_running_loop().run_in_executor(self.encoders, encode)

    def keep(self, data: bytes, media_type: str) -> str:
        """Keep an image for a while; returns the unguessable name under which it can be fetched."""
        token = secrets.token_urlsafe(32)
        self.content[token] = (time.monotonic() + self.limits.url_seconds, data, media_type)
        while sum(len(data) for _, data, _ in self.content.values()) > self.limits.url_bytes:
            self.content.popitem(last=False)
        return token

    def kept(self, token: str) -> tuple[bytes, str] | None:
        now = time.monotonic()
        while self.content and next(iter(self.content.values()))[0] < now:
            self.content.popitem(last=False)
        found = self.content.get(token)
        return None if found is None else found[1:]

    def close(self) -> None:
        self.engine.close()
        self.encoders.shutdown(cancel_futures=True)


def outcome(job: Job) -> list[Generated] | None:
    """The images of a job that is over, None if it was cancelled. Raises Refused where it failed."""
    if job.future.cancelled():
        return None
    error = job.future.exception()
    if error is None:
        return job.future.result()
    if isinstance(error, DeadlinePassed):
        raise Refused(504, str(error), None, "deadline")
    if isinstance(error, UsageError):
        raise Refused(400, str(error), None, "invalid_value")
    raise Refused(500, str(error), None, "generation_failed")


def preview(pipeline: Pipeline, request: Request, step: Step) -> Any:
    """What an image looks like after a step, at its full size, as PIL; to be called in the engine's thread.

    None where the memory that is free is not enough for it, which the request need not suffer from.
    """
    from PIL import Image

    try:
        return fit(Image.fromarray(pipeline.networks.decode(step.x_0)[0]), request.height, request.width)
    except MemoryError:
        return None


def as_strength(text: str, param: str) -> float:
    """The strength of an adapter as it was written; 1 if it was not. Raises Refused."""
    try:
        return float(text or 1)
    except ValueError:
        raise Refused(
            400, f'The strength of an adapter is a number, not "{shown(text)}".', param, "invalid_value"
        ) from None


def base64(data: bytes) -> str:
    return b64encode(data).decode()


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return 0, 0
