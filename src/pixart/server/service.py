"""What both protocols share: the models, checking a request, running it for as long as its client waits."""

import asyncio
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
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.model_folder import ModelFolder
from pixart.config import unknown
from pixart.errors import UsageError, shown
from pixart.pipeline.engine import DeadlinePassed, Job, QueueFull, Room, work_of
from pixart.pipeline.image_files import save_image
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import Request, make_request
from pixart.pixels import eight_bits, upright
from pixart.server.limits import Limits
from pixart.server.metrics import Metrics
from pixart.server.models import Backend, Here, Model, Observe, Previews

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


class Service:
    """One server's models, engine, limits, counters, and the images that wait to be fetched."""

    def __init__(
        self,
        models: list[Model],
        limits: Limits,
        keys: int,
        *,
        metadata: bool = True,
        prompts: bool = False,
        generates: Callable[[list[Model], Room, Observe], Backend] = Here,
    ):
        self.limits, self.metadata, self.log_prompts = limits, metadata, prompts
        self.metrics = Metrics()
        room = Room(limits.max_queue, limits.max_queued_work, max(1, limits.max_queue // max(1, keys)))
        self.backend: Backend = generates(models, room, self.metrics.observe)
        self.content: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self.encoders = ThreadPoolExecutor(4, "pixart-encode")

    @property
    def models(self) -> dict[str, Model]:
        return self.backend.models

    @property
    def ready(self) -> bool:
        return all(model.made is not None for model in self.models.values())

    async def load(self, *, changed_only: bool = False) -> list[str]:
        """The names of the models that were loaded; see `Backend.load`."""
        loaded = await self.backend.load(changed_only=changed_only)
        for name in loaded:
            made = self.models[name].made
            self.metrics.model.labels(name, made["model_hash"], made["dtype"], made["device"]).set(1)
        return loaded

    def model(self, name: str | None, param: str = "model") -> Model:
        """The loaded model of that name; None is the first."""
        if name is not None and name not in self.models:
            raise Refused(404, unknown("model", name, self.models), param, "model_not_found")
        model = self.models[name] if name is not None else next(iter(self.models.values()))
        if model.made is None:
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
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
                image = Image.open(io.BytesIO(data), formats=tuple(FORMATS.values()))
                if image.width * image.height <= self.limits.max_input_pixels:
                    return eight_bits(upright(image))
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
        previews: Previews | None = None,
    ) -> Job:
        """Put a checked request in the queue. Raises Refused where it is full."""
        deadline = http.state.began + self.limits.request_seconds
        try:
            job = self.backend.submit(
                model, request, owner=http.state.owner, deadline=deadline, loras=loras, previews=previews
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
        self.backend.close()
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
