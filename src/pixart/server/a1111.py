"""The API of A1111's web UI (/sdapi/v1), for the many front ends that speak it. docs/server.md lists the fields.

Its clients send all of its fields, most of them at values that mean nothing. Those are accepted and listed in `info`
under `ignored`; where one means something that is not offered here, the request is refused.
"""

import asyncio
import base64
import binascii
import json
import re
import tempfile
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import ImageOps
from pydantic import Field, create_model

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.config import unknown
from pixart.diffusion.noise import MAX_SEED
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.engine import Job, work_of
from pixart.pipeline.foreign_metadata import read_pairs
from pixart.pipeline.image_files import parameters_text
from pixart.pipeline.image_metadata import read_texts
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.settings import MAX_GUIDANCE, MAX_SIDE, MAX_UPSCALE
from pixart.server.bodies import RESPONSES, Closed, StrictRoute
from pixart.server.models import Model, Previews
from pixart.server.service import Refused, Service, as_strength, outcome
from pixart.server.service import base64 as as_base64

# make_request's arguments -> the fields of this API.
FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "style": "styles",
    "seed": "seed",
    "num_images": "batch_size",
    "steps": "steps",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "width": "width",
    "height": "height",
}
IMAGE_FIELDS = {
    "image": "init_images",
    "strength": "denoising_strength",
    "upscale": "hr_scale",
    "upscale_strength": "denoising_strength",
}
SCHEDULERS = ("automatic", "normal", "simple", "uniform", "none", "")
# Fields that do nothing here, at any value.
IGNORED = (
    "subseed", "eta", "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise",
    "do_not_save_samples", "do_not_save_grid", "save_images", "override_settings_restore_afterwards", "comments",
    "disable_extra_networks", "force_task_id", "refiner_switch_at", "firstphase_width", "firstphase_height",
    "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg", "distilled_cfg_scale",
)  # fmt: skip
IGNORED_WITH_IMAGE = (
    "resize_mode", "mask_blur", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
    "initial_noise_multiplier", "image_cfg_scale", "include_init_images", "mask_round",
)  # fmt: skip
# Fields that would change the image in a way that is not offered, and the values at which they do not.
NEUTRAL: dict[str, tuple] = {
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "refiner_checkpoint": ("", "None"),
    "script_name": ("", "None"),
    "script_args": ([],),
    "firstpass_image": ("",),
    "infotext": ("",),
}
# What this server has none of, as A1111 would say it.
NOTHING: dict[str, Any] = {
    "sd-vae": [], "upscalers": [], "latent-upscale-modes": [], "hypernetworks": [], "face-restorers": [],
    "realesrgan-models": [], "embeddings": {"loaded": {}, "skipped": {}}, "scripts": {"txt2img": [], "img2img": []},
    "script-info": [], "cmd-flags": {}, "memory": {"ram": {}, "cuda": {}},
}  # fmt: skip


LORA = re.compile(r"<lora:([^:<>]{1,200})(?::(-?[0-9.]{1,8}))?>")


def router(service: Service) -> APIRouter:
    """The routes under /sdapi/v1."""
    limits = service.limits
    text = Annotated[str, Field(max_length=limits.max_prompt)]
    name = Annotated[str, Field(max_length=300)]
    count = Annotated[int, Field(ge=1, le=limits.max_images)]
    side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
    file = Annotated[str, Field(max_length=limits.max_body)]

    class Used(Closed):
        prompt: text = ""
        negative_prompt: text | None = None
        styles: Annotated[list[name], Field(max_length=1)] | None = None
        seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
        steps: Annotated[int, Field(ge=1, le=limits.max_steps)] | None = None
        cfg_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
        width: side | None = None
        height: side | None = None
        batch_size: count | None = None
        n_iter: count | None = None
        sampler_name: name | None = None
        sampler_index: name | None = None
        scheduler: name | None = None
        send_images: bool | None = None
        override_settings: dict[str, Any] | None = None
        alwayson_scripts: dict[str, Any] | None = None
        denoising_strength: Annotated[float, Field(ge=0, le=1)] | None = None
        enable_hr: bool | None = None
        hr_scale: Annotated[float, Field(ge=1, le=MAX_UPSCALE)] | None = None

    class WithImage(Used):
        init_images: Annotated[list[file], Field(min_length=1, max_length=1)]
        mask: file | None = None
        inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | None = None

    others = {key: (Any, None) for key in (*IGNORED, *NEUTRAL)}
    TextToImage = create_model("TextToImage", __base__=Used, **others)
    others |= {key: (Any, None) for key in IGNORED_WITH_IMAGE}
    ImageToImage = create_model("ImageToImage", __base__=WithImage, **others)
    routes = APIRouter(prefix="/sdapi/v1", route_class=StrictRoute, responses=RESPONSES)
    looks: dict[Job, Previews] = {}
    chosen: dict[str, str] = {}  # owner -> the model that it set by /options

    def of_owner(http: Request) -> list[Job]:
        return [job for job in list(looks) if job.owner == http.state.owner and not job.over]

    def model_of(http: Request, settings: dict[str, Any]) -> Model:
        wanted = settings.get("sd_model_checkpoint")
        if wanted is not None and not isinstance(wanted, str):
            raise Refused(400, "sd_model_checkpoint must be the name of a model.", "override_settings", "invalid_value")
        return service.model(wanted or chosen.get(http.state.owner), "sd_model_checkpoint")

    @routes.post("/txt2img")
    async def txt2img(body: TextToImage, http: Request) -> dict[str, Any]:
        start: dict[str, Any] = {}
        if body.enable_hr:
            times = 2 if body.hr_scale is None else body.hr_scale
            if times != int(times):
                message = f"hr_scale must be a whole number from 1 to {MAX_UPSCALE}; the nearest is {round(times)}."
                raise Refused(400, message, "hr_scale", "invalid_value")
            start = {"upscale": int(times), "upscale_strength": body.denoising_strength}
        unused = () if body.enable_hr else ("denoising_strength", "hr_scale")
        return await generated(body, http, start, unused)

    @routes.post("/img2img")
    async def img2img(body: ImageToImage, http: Request) -> dict[str, Any]:
        image = await opened(body.init_images[0], "init_images")
        mask = None if body.mask is None else (await opened(body.mask, "mask")).convert("L")
        if mask is not None and body.inpainting_mask_invert:
            mask = ImageOps.invert(mask)
        start = {"image": image, "mask": mask, "strength": body.denoising_strength}
        return await generated(body, http, start, (*IGNORED_WITH_IMAGE, "enable_hr", "hr_scale"))

    async def opened(text: str, field: str) -> Any:
        return await asyncio.to_thread(service.opened, decoded(text, field), field)

    async def generated(body: Any, http: Request, start: dict[str, Any], unused: tuple[str, ...]) -> dict[str, Any]:
        _check_settings(body.override_settings or {}, "override_settings")
        model = model_of(http, body.override_settings or {})
        ignored = _ignored(body, unused)
        values = {name: getattr(body, field) for name, field in FIELDS.items()} | start
        values |= {"sampler": _sampler(body), "style": (body.styles or [None])[0]}
        values["prompt"], loras = _loras(service, model, body.prompt)
        values["num_images"] = (body.batch_size or 1) * (body.n_iter or 1)
        if values["num_images"] > limits.max_images:
            message = f"batch_size x n_iter must be at most {limits.max_images}, not {values['num_images']}."
            raise Refused(400, message, "batch_size", "invalid_value")
        if model.folder.fast:  # its steps, guidance and sampler are in its weights
            ignored += [FIELDS[key] for key in ("steps", "guidance_scale", "sampler") if values.pop(key) is not None]
        request, previews = await asyncio.to_thread(service.check, model, values, FIELDS | IMAGE_FIELDS), Previews()
        job = service.submit(http, model, request, loras, previews)
        looks[job] = previews
        try:
            await service.wait(http, job)
        finally:
            del looks[job]
        # What was interrupted answers with the images that were done.
        images = outcome(job) or [job.images[index] for index in sorted(job.images)]
        files = [await service.encoded(image, "png") for image in images] if body.send_images is not False else []
        return {
            "images": [as_base64(file) for file in files],
            "parameters": body.model_dump(exclude_unset=True, exclude={"init_images", "mask"}),
            "info": json.dumps(_info(model, job, images, sorted(set(ignored)))),
        }

    @routes.get("/progress")
    async def progress(http: Request, skip_current_image: bool = False) -> dict[str, Any]:
        jobs = sorted(of_owner(http), key=lambda job: (job.started is None, job.submitted))
        state = {"skipped": False, "interrupted": False, "job": "", "job_count": len(jobs), "job_no": 0}
        state |= {"job_timestamp": "0", "sampling_step": 0, "sampling_steps": 0}
        answer = {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
        if not jobs:
            return answer
        job, look = jobs[0], looks[jobs[0]]
        seconds = service.backend.room.seconds_for(sum(other.work_left for other in service.backend.live))
        state |= {"job": "txt2img", "sampling_step": job.position, "sampling_steps": job.request.steps}
        if not skip_current_image:
            look.wanted = True
            if look.newest is not None:
                file = await service.encoded(Generated(look.newest, 0, {}), "png")
                answer["current_image"] = as_base64(file)
        return answer | {"progress": 1 - job.work_left / work_of(job.request), "eta_relative": seconds}

    @routes.post("/interrupt")
    @routes.post("/skip")
    async def interrupt(http: Request) -> dict[str, Any]:
        for job in of_owner(http):
            job.future.cancel()
        return {}

    @routes.get("/samplers")
    async def samplers(http: Request) -> list[dict[str, Any]]:
        return [
            {"name": sampler.title, "aliases": [key], "options": {}}
            for key, sampler in SAMPLERS.items()
            if _suits(sampler, model_of(http, {}).folder)
        ]

    @routes.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        return [{"name": name, "label": name.title(), "aliases": None} for name in ("automatic", "karras")]

    @routes.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        return [
            {
                "title": model.name,
                "model_name": model.name,
                "hash": _hash(model),
                "sha256": None,
                "filename": model.name,  # no path of this machine
                "config": None,
            }
            for model in service.models.values()
        ]

    @routes.get("/loras")
    async def loras(http: Request) -> list[dict[str, Any]]:
        names = model_of(http, {}).loras
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]

    @routes.get("/prompt-styles")
    async def prompt_styles(http: Request) -> list[dict[str, str]]:
        styles = known_styles(model_of(http, {}).folder.styles)
        return [
            {"name": key, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
            for key, style in styles.items()
        ]

    @routes.get("/options")
    async def options(http: Request) -> dict[str, Any]:
        model = model_of(http, {})
        return {**_settings(model.name), "sd_checkpoint_hash": _hash(model), "samples_format": "png"}

    @routes.post("/options")
    async def set_options(settings: dict[str, Any], http: Request) -> None:
        _check_settings(settings, None)
        if "sd_model_checkpoint" in settings:
            chosen[http.state.owner] = model_of(http, settings).name

    class Image(Closed):
        image: file

    @routes.post("/png-info")
    async def png_info(body: Image) -> dict[str, Any]:
        return await asyncio.to_thread(_png_info, decoded(body.image, "image"))

    @routes.post("/refresh-checkpoints")
    @routes.post("/refresh-loras")
    async def refresh_checkpoints() -> None:
        try:
            await service.load(changed_only=True)
        except PixArtError as error:
            raise Refused(500, str(error), None, "model_not_loaded") from None

    for path, nothing in NOTHING.items():
        routes.add_api_route(f"/{path}", _always(nothing), methods=["GET"], name=path)
    for path in ("refresh-vae", "unload-checkpoint", "reload-checkpoint"):
        routes.add_api_route(f"/{path}", _always(None), methods=["POST"], name=path)
    return routes


def _loras(service: Service, model: Model, prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its `<lora:name:strength>`, and these. Raises Refused."""
    wanted = [(name, as_strength(strength, "prompt")) for name, strength in LORA.findall(prompt)]
    prompt = LORA.sub("", prompt) if wanted else prompt
    if "<lora:" in prompt or "<lyco:" in prompt:
        raise Refused(400, "An adapter is written as <lora:name:0.8>, with one strength.", "prompt", "invalid_value")
    return prompt, service.loras(model, wanted, "prompt")


def decoded(text: str, field: str) -> bytes:
    """The bytes of a file in base64, also as a data: address. Raises Refused."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Refused(400, f"{field} must be in base64, as in data:image/png;base64,...", field, "invalid_value")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        message = f"{field} must be an image file in base64; addresses and paths are not read."
        raise Refused(400, message, field, "invalid_value") from None
    if not data:
        raise Refused(400, f"{field} is empty; give an image file in base64.", field, "invalid_value")
    return data


def _png_info(data: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(prefix="pixart-") as file:
        file.write(data)
        file.flush()
        try:
            texts = read_texts(file.name).texts
        except UsageError:
            raise Refused(400, "image must be a PNG, JPEG or WebP file.", "image", "invalid_value") from None
    info = texts.get("parameters", "")
    pairs = read_pairs(info.rpartition("\n")[2])
    return {"info": info, "items": {key: value[:20_000] for key, value in texts.items()}, "parameters": pairs}


def _ignored(body: Any, unused: tuple[str, ...]) -> list[str]:
    """The fields of a body that do nothing here; raises Refused for one that should do something."""
    given = {key for key in body.model_fields_set if getattr(body, key) is not None}
    for key, neutral in NEUTRAL.items():
        value = getattr(body, key)
        if value is not None and value not in neutral:
            raise Refused(400, f"{key} is not offered here; leave it out, or at {neutral[0]!r}.", key, "not_offered")
    for script, settings in (body.alwayson_scripts or {}).items():
        arguments = settings.get("args", []) if isinstance(settings, dict) else settings
        if not isinstance(arguments, list) or (arguments and arguments[0] is not False):
            message = f"The script {script[:100]!r} is not offered here; leave it out."
            raise Refused(400, message, "alwayson_scripts", "not_offered")
    return [key for key in given if key in (*IGNORED, *NEUTRAL, *unused, "alwayson_scripts")]


def _sampler(body: Any) -> str | None:
    """The sampler's name; newer clients send the noise levels of Karras apart from it."""
    name = body.sampler_name or body.sampler_index
    scheduler = (body.scheduler or "").lower()
    if scheduler not in (*SCHEDULERS, "karras"):
        raise Refused(400, unknown("scheduler", body.scheduler, ("automatic", "karras")), "scheduler", "invalid_value")
    return f"{name} Karras" if name and scheduler == "karras" else name


def _suits(sampler: Any, folder: ModelFolder) -> bool:
    return not (sampler.eps_only and folder.scheduler.get("use_flow_sigmas"))


def _settings(model: str) -> dict[str, Any]:
    """The settings of A1111 that may be sent, and the values that they have here."""
    return {"sd_model_checkpoint": model, "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1}


def _check_settings(settings: dict[str, Any], param: str | None) -> None:
    known = _settings("")
    for key, value in settings.items():
        if key not in known:
            raise Refused(400, unknown("setting", key, known), param or key[:100], "unknown_setting")
        if key != "sd_model_checkpoint" and value not in (known[key], None, "None", "auto"):
            raise Refused(400, f"{key} can only be {known[key]!r} here.", param or key, "not_offered")


def _info(model: Model, job: Job, images: list[Generated], ignored: list[str]) -> dict[str, Any]:
    request, count = job.request, len(images)
    seeds = [image.seed for image in images] or [request.seeds[0]]
    return {
        "prompt": request.resolved_prompts[0],
        "all_prompts": [request.resolved_prompts[0]] * count,
        "negative_prompt": request.resolved_negative_prompt,
        "all_negative_prompts": [request.resolved_negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLERS[request.sampler].title,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": len(request.seeds),
        "restore_faces": False,
        "sd_model_name": model.folder.name,
        "sd_model_hash": "",
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(image.settings) for image in images],
        "styles": [request.style] if request.style else [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "interrupted": job.future.cancelled(),
        "ignored": ignored,
        "notices": job.notices,
    }


def _hash(model: Model) -> str | None:
    return model.made["model_hash"][-64:][:10] if model.made else None


def _always(value: Any):
    async def answer() -> Response:
        return Response(json.dumps(value), media_type="application/json")

    return answer
