"""OpenAI's images API (openapi.yaml, images and models), for its stock clients. docs/server.md lists the fields."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import ImageChops
from pydantic import Field, ValidationError

from pixart.checkpoints.adapters import Lora
from pixart.config import unknown
from pixart.diffusion.noise import MAX_SEED
from pixart.pipeline.cutout import cut_out
from pixart.pipeline.engine import Job
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import Request as ImageRequest
from pixart.pipeline.settings import MAX_GUIDANCE
from pixart.server.bodies import RESPONSES, Closed, StrictRoute, invalid_fields
from pixart.server.models import Model, Previews
from pixart.server.service import Refused, Service, as_strength, base64, outcome

MAX_PARTIAL = 3
IGNORED = ("quality", "moderation", "complexity", "input_fidelity")  # settings of OpenAI's models
LORAS = r"^[^:,]+(:-?[0-9.]{1,8})?(,[^:,]+(:-?[0-9.]{1,8})?)*$"  # as in style:0.8,subject
OPENAI_STYLES = ("vivid", "natural")
# make_request's arguments -> the fields of this API.
FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "style": "style",
    "seed": "seed",
    "num_images": "n",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "sampler": "sampler",
    "width": "size",
    "height": "size",
    "binning": "use_resolution_binning",
}


def router(service: Service) -> APIRouter:
    """The routes under /v1."""
    limits = service.limits
    text = Annotated[str, Field(max_length=limits.max_prompt)]

    class Generation(Closed):
        """OpenAI's fields; then those that other servers of diffusion models share; then ours."""

        prompt: text
        model: Annotated[str, Field(max_length=300)] | None = None
        n: Annotated[int, Field(ge=1, le=limits.max_images)] | None = None
        size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None = None
        response_format: Literal["b64_json", "url"] | None = None
        output_format: Literal["png", "jpeg", "webp"] | None = None
        output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
        background: Literal["auto", "opaque", "transparent"] | None = None
        stream: bool | None = None
        partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL)] | None = None
        style: Annotated[str, Field(max_length=100)] | None = None
        quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
        moderation: Literal["auto", "low"] | None = None
        complexity: Literal["low", "medium", "high"] | None = None
        user: Annotated[str, Field(max_length=512)] | None = None
        safety_identifier: Annotated[str, Field(max_length=512)] | None = None
        # For formats that are not written here.
        svg: None = None
        frame_count: None = None
        frame_duration_ms: None = None
        # Extensions.
        negative_prompt: text | None = None
        num_inference_steps: Annotated[int, Field(ge=1, le=limits.max_steps)] | None = None
        guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
        seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
        sampler: Annotated[str, Field(max_length=100)] | None = None
        use_resolution_binning: bool | None = None
        loras: Annotated[str, Field(max_length=1000, pattern=LORAS)] | None = None

    routes = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)

    @routes.post("/images/generations", response_model=None)
    async def generate(body: Generation, http: Request) -> Response:
        return await _answer(service, http, body, {})

    class Edit(Generation):
        """OpenAI's fields of an edit that are no files; `strength` is ours."""

        input_fidelity: Literal["low", "high"] | None = None
        strength: Annotated[float, Field(ge=0, le=1)] | None = None

    part = {"type": "string", "format": "binary"}
    fields = Edit.model_json_schema()
    files = {"image": part, "image[]": {"type": "array", "items": part, "maxItems": 1}, "mask": part}
    form = {"schema": fields | {"properties": fields["properties"] | files}}
    document = {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}

    @routes.post("/images/edits", response_model=None, openapi_extra=document)
    async def edit(http: Request) -> Response:
        """From an image (image-to-image) or, with a mask, within it (inpainting); a form with files."""
        if not http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refused(415, "An edit is a form with files: multipart/form-data.", None, "content_type")
        async with http.form(max_files=4, max_fields=64, max_part_size=service.limits.max_body) as sent:
            parts = [(name.removesuffix("[]"), part) for name, part in sent.multi_items()]
            texts = {name: part for name, part in parts if isinstance(part, str)}
            files = {name: await part.read() for name, part in parts if not isinstance(part, str)}
        if len(texts) + len(files) < len(parts):
            raise Refused(400, "A field is there twice; one image and one mask are taken.", "image", "invalid_value")
        if unwanted := sorted(set(files) - {"image", "mask"}):
            raise Refused(400, unknown("file", unwanted[0], ("image", "mask")), unwanted[0][:100], "invalid_value")
        try:
            body = Edit.model_validate(texts, strict=False)
        except ValidationError as error:
            raise invalid_fields(error, Edit) from None
        if "image" not in files:
            raise Refused(400, "image is missing; send a file.", "image", "missing")
        opened = {name: await asyncio.to_thread(service.opened, data, name) for name, data in files.items()}
        mask = opened.get("mask")
        # OpenAI's masks, and images without one, are transparent where to generate; plain masks are white there.
        holes = opened["image"] if mask is None else mask
        if "A" in holes.getbands() and holes.getchannel("A").getextrema()[0] < 128:
            mask = ImageChops.invert(holes.getchannel("A"))
        return await _answer(service, http, body, {"image": opened["image"], "mask": mask, "strength": body.strength})

    @routes.get("/images/{token}/content")
    async def content(token: str) -> Response:
        found = service.kept(token)
        if found is None:
            raise Refused(404, "There is no such image; it may have expired.", None, "not_found")
        return Response(found[0], media_type=found[1], headers={"cache-control": "private, no-store"})

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_listed(model) for model in service.models.values()]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in service.models:
            raise Refused(404, unknown("model", name, service.models), "model", "model_not_found")
        return _listed(service.models[name])

    return routes


async def _answer(service: Service, http: Request, body: Any, start: dict[str, Any]) -> Response:
    """The response to a body; `start` are the arguments of make_request for an image to start from."""
    model = service.model(body.model)
    ignored = [name for name in IGNORED if getattr(body, name, None) not in (None, "auto")]
    style = body.style
    if style in OPENAI_STYLES and style not in model.folder.styles:
        style, ignored = None, [*ignored, "style"]
    width, height = (None, None) if body.size in (None, "auto") else map(int, body.size.split("x"))
    values = {name: getattr(body, field) for name, field in FIELDS.items()}
    values |= {**start, "style": style, "width": width, "height": height}
    answer = Answer(service, http, model, body, ignored)
    pairs = [each.partition(":") for each in (body.loras or "").split(",") if each]
    loras = service.loras(model, [(name.strip(), as_strength(given, "loras")) for name, _, given in pairs], "loras")
    request = await asyncio.to_thread(service.check, model, values, FIELDS)
    if body.stream:
        return answer.streamed(request, loras)
    job = service.submit(http, model, request, loras)
    images = await service.wait(http, job)
    if images is None:
        raise Refused(503, "This request was cancelled; the server may be shutting down.", None, "cancelled", 5)
    return JSONResponse(await answer.content(job, images), headers=answer.headers(job))


class Answer:
    """How the images of one request go out: format, base64 or url, at once or as a stream."""

    def __init__(self, service: Service, http: Request, model: Model, body: Any, ignored: list[str]):
        self.service, self.http, self.model, self.ignored = service, http, model, ignored
        self.event = "image_edit" if http.url.path.endswith("/edits") else "image_generation"
        self.kind = body.output_format or "png"
        self.quality, self.partial = body.output_compression, body.partial_images or 0
        self.transparent, self.as_url = body.background == "transparent", body.response_format == "url"
        if self.transparent and self.kind == "jpeg":
            raise Refused(400, "JPEG has no transparency; give png or webp.", "output_format", "invalid_value")
        if self.partial and not body.stream:
            raise Refused(400, "Partial images need stream true.", "partial_images", "invalid_value")
        if body.stream and (body.n or 1) > 1:
            raise Refused(400, "A stream brings one image; give n 1, or stream false.", "n", "invalid_value")
        if body.stream and self.as_url:
            raise Refused(400, "A stream brings b64_json, not a url.", "response_format", "invalid_value")
        if self.quality is not None and self.kind == "png":
            self.ignored = [*ignored, "output_compression"]

    def headers(self, job: Job) -> dict[str, str]:
        seed = {"x-seed": str(job.request.seeds[0])}
        return seed | ({"x-ignored-fields": ", ".join(self.ignored)} if self.ignored else {})

    async def content(self, job: Job, images: list[Generated]) -> dict[str, Any]:
        data = []
        for image in images:
            file = await self.file(image)
            if self.as_url:
                token = self.service.keep(file, f"image/{self.kind}")
                data.append({"url": str(self.http.url_for("content", token=token)), "seed": image.seed})
            else:
                data.append({"b64_json": base64(file), "seed": image.seed})
        return {"created": int(time.time()), "data": data, "notices": job.notices, **self.described(job)}

    async def file(self, generated: Generated) -> bytes:
        if self.transparent:
            image = await asyncio.to_thread(cut_out, generated.image)
            settings = generated.settings and {**generated.settings, "transparent": True}
            generated = Generated(image, generated.seed, settings)
        return await self.service.encoded(generated, self.kind, self.quality)

    def described(self, job: Job) -> dict[str, Any]:
        return {
            "background": "transparent" if self.transparent else "opaque",
            "output_format": self.kind,
            "size": f"{job.request.width}x{job.request.height}",
            "usage": _usage(job),
            **({"restarts": job.restarts} if job.restarts else {}),
        }

    def streamed(self, request: ImageRequest, loras: tuple[Lora, ...]) -> StreamingResponse:
        """Server-sent events: partial images at even distances, then the image, or one error."""
        loop, partial = asyncio.get_running_loop(), asyncio.Queue()
        first, steps = request.first_step, request.steps - request.first_step
        shown = {first + steps * k // (self.partial + 1) for k in range(1, self.partial + 1)} - {first, request.steps}

        previews = Previews(frozenset(shown), lambda image: loop.call_soon_threadsafe(partial.put_nowait, image))
        job = self.service.submit(self.http, self.model, request, loras, previews if shown else None)
        job.future.add_done_callback(lambda _: _wake(loop, partial))
        return StreamingResponse(self._events(job, partial), 200, self.headers(job), "text/event-stream")

    async def _events(self, job: Job, partial: asyncio.Queue) -> AsyncIterator[str]:
        common = {"created_at": int(time.time()), "quality": "auto"}
        count = restarts = 0
        try:
            while (image := await partial.get()) is not None:
                if job.restarts > restarts:  # the partial images come again from the first
                    count, restarts = 0, job.restarts
                elif count == 0:
                    self.service.metrics.first_preview.observe(time.monotonic() - job.submitted)
                file = await self.file(Generated(image, job.request.seeds[0], {}))
                described = {name: value for name, value in self.described(job).items() if name != "usage"}
                event = {"b64_json": base64(file), "partial_image_index": count, **common, **described}
                yield _event(f"{self.event}.partial_image", event)
                count += 1
            images = outcome(job)
            if images is None:
                raise Refused(503, "This request was cancelled.", None, "cancelled")
            event = {"b64_json": base64(await self.file(images[0])), "seed": images[0].seed, "notices": job.notices}
            yield _event(f"{self.event}.completed", {**event, **common, **self.described(job)})
        except Refused as error:  # the status has gone out already
            detail = {"message": error.detail, "type": "server_error", "param": error.param, "code": error.code}
            yield _event("error", {"error": detail})
        finally:
            self.service.close_job(job)


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **content})}\n\n"


def _wake(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, None)


def _usage(job: Job) -> dict[str, Any]:
    details = {"input_tokens_details": {"text_tokens": job.tokens, "image_tokens": 0}}
    return {"input_tokens": job.tokens, "output_tokens": 0, "total_tokens": job.tokens, **details}


def _listed(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "pixart"}
