"""A request for images, checked for its model and with every default filled in, before any heavy library is loaded."""

import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pixart.buckets import Bucket
from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.fast import DISTILLED
from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.config import shortened
from pixart.diffusion.noise import MAX_SEED
from pixart.diffusion.solvers import SAMPLERS, schedule_for
from pixart.encoders.text_states import check_texts
from pixart.errors import UsageError
from pixart.pipeline.bins import bins_by_itself, choose_bin
from pixart.pipeline.image_input import ImageInput, read_image_input
from pixart.pipeline.prompt_weights import read_weights
from pixart.pipeline.prompts import apply_style, check_text, find_style
from pixart.pipeline.settings import MAX_CONTROL, MAX_SIDE, MIN_SIZE, RANDOM_SEED, Settings, number, whole_number


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """Settings without any None: everything that decides the pixels, apart from the model and the engine.

    `prompts` are the user's own words, `resolved_...` what the text encoder gets. Every prompt starts from the same
    seed. With a `bin`, that size is generated and then fitted to width x height. `strength` is None without `image`.
    """

    prompts: tuple[str, ...]
    resolved_prompts: tuple[str, ...]
    resolved_negative_prompt: str
    bin: Bucket | None
    image: ImageInput | None = None
    control: ImageInput | None = None  # what a ControlNet is given
    control_scale: float = 1.0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the images of a prompt."""
        return tuple(range(self.seed, self.seed + self.num_images))

    @property
    def texts(self) -> list[str]:
        """All texts that are encoded for it."""
        alone = self.guidance_scale == 1.0 or self.null_text != "encoded"
        texts = [*self.resolved_prompts, *(() if alone else (self.resolved_negative_prompt,))]
        return [read_weights(text).text for text in texts] if self.prompt_weights else texts

    @property
    def first_step(self) -> int:
        """The denoising step to begin with: from an image, only the last ones are taken, as in Diffusers."""
        return 0 if self.strength is None else self.steps - max(1, int(self.steps * self.strength))

    @property
    def steps_in_all(self) -> int:
        """Of one image, in both passes."""
        own = self.steps - self.first_step
        return own if self.upscale == 1 else own + self.enlarged.steps_in_all

    @property
    def enlarged(self) -> "Request":
        """The second pass."""
        times = self.upscale
        larger = self.bin and Bucket(self.bin.ratio, self.bin.height * times, self.bin.width * times)
        size = {"width": self.width * times, "height": self.height * times, "bin": larger}
        return replace(self, **size, upscale=1, strength=self.upscale_strength, image=None)

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width that are generated, in the second pass if there is one."""
        return self.image_height * self.upscale, self.image_width * self.upscale

    @property
    def image_height(self) -> int:
        return self.bin.height if self.bin else self.height

    @property
    def image_width(self) -> int:
        return self.bin.width if self.bin else self.width


def make_request(
    folder: ModelFolder,
    prompt: str | list[str],
    *,
    image: Any = None,
    mask: Any = None,
    outpaint: bool = False,
    control_image: Any = None,
    control_scale: float | None = None,
    **given: Any,
) -> Request:
    """Fill in the model folder's defaults and check every field; raises UsageError with one sentence for the first.

    Args:
        image: a path or PIL image to start from.
        mask: a path or PIL image, white where `image` is to be generated anew; the rest stays.
        outpaint: `image` stays, in the middle of width x height, and what is around it is generated.
        control_image: a path or PIL image for a ControlNet.
        control_scale: how much of the control is added, 1 if left out.
        given: fields of `Settings`, None meaning not given.
    """
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    if not isinstance(prompt, str | list | tuple):
        raise UsageError(f"The prompt must be a text or a list of texts, not {shortened(prompt)}.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UsageError("There is no prompt in the list; give at least one.")
    for text in prompts:
        check_text(text, "prompt")
    styles = known_styles(folder.styles)
    style = find_style(settings.style, styles, folder.styles)
    resolved = [apply_style(text, settings.negative_prompt, styles.get(style))[0] for text in prompts]
    negative = apply_style("", settings.negative_prompt, styles.get(style))[1]
    seed = settings.seed
    if seed in (None, RANDOM_SEED):
        seed = secrets.randbelow(1_000_000)  # short enough to type again
    last = seed + settings.num_images - 1
    if last > MAX_SEED:
        raise UsageError(f"The last of {settings.num_images} images would have the seed {last}, over {MAX_SEED}.")
    own = folder.defaults.get("sampler", "dpm-solver")
    sampler = settings.sampler or own
    suited = SAMPLERS[sampler]
    # What the model folder says suits its own sampler; another one brings its own habits.
    defaults = folder.defaults if sampler == own else {}
    steps = settings.steps or defaults.get("steps", suited.steps)
    steps = whole_number(steps, "The number of steps", suited.fewest, suited.most)
    schedule_for(sampler, folder.scheduler, steps)  # says now whether the sampler fits the model
    scale = settings.guidance_scale
    channels = folder.transformer["in_channels"]
    binning = bins_by_itself(folder) if settings.binning is None else settings.binning
    start, control = read_image_input(image, mask, outpaint), read_image_input(control_image, None, False)
    if control is None and control_scale is not None:
        raise UsageError("The control scale says how much an image for a ControlNet counts; give --control-image too.")
    like = start or control
    if like is not None and settings.width is None and settings.height is None:
        settings = replace(settings, **_size_like(folder, like, binning))
    width, height = (_size(folder, settings, side, binning) for side in ("width", "height"))
    strength = settings.strength
    if start is not None and strength is None:
        strength = 0.8 if mask is None and not outpaint else 1.0
    _check_passes(settings, start, steps, strength, folder.max_size // max(width, height))
    _check_null_text(settings.null_text, folder, negative)
    if settings.prompt_weights:
        for text in (*resolved, negative):
            read_weights(text)
    filled = {
        "style": style,
        "seed": seed,
        "steps": steps,
        "guidance_scale": defaults.get("guidance_scale", suited.guidance_scale) if scale is None else scale,
        "guidance_channels": whole_number(settings.guidance_channels or channels, "The guided channels", 1, channels),
        "width": width,
        "height": height,
        "binning": binning,
        "sampler": sampler,
        "strength": strength,
    }
    request = Request(
        **asdict(settings) | filled,
        prompts=tuple(prompts),
        resolved_prompts=tuple(resolved),
        resolved_negative_prompt=negative,
        bin=choose_bin(folder, height, width) if binning else None,
        image=start,
        control=control,
        control_scale=1.0 if control_scale is None else number(control_scale, "The control scale", 0, MAX_CONTROL),
    )
    if outpaint and start.fills(request.image_height, request.image_width):
        raise UsageError(
            "Outpainting needs a size that is larger than the image or of another shape; give a width and height."
        )
    if folder.fast:
        _check_fast(request, folder)
    return request


def control_for_images(control: ControlNetFile, request: Request) -> dict[str, Any]:
    """ControlNet, scale and condition image of a request, as image metadata has them."""
    return {**control.for_images(), "scale": request.control_scale, "image_sha256": request.control.sha256}


def check_text_states(folder: ModelFolder, request: Request, path: Path) -> None:
    """UsageError where the file of text states cannot serve this model for this request. Reads its head only."""
    check_texts(path, request.texts, max_tokens=folder.max_tokens, width=folder.transformer["caption_channels"])


def _check_passes(settings: Settings, image: ImageInput | None, steps: int, strength: float | None, most: int) -> None:
    """Whether the image to start from and the second pass are what can be; `most` is the largest enlargement."""
    if image is None and strength is not None:
        raise UsageError("The strength says how much an image is changed; give the image, too.")
    if settings.upscale > 1 and image is not None and (image.mask is not None or image.outpaint):
        raise UsageError("A second pass would change what the mask keeps; leave upscale out, and enlarge the result.")
    if settings.upscale > most:
        raise UsageError(f"This model can enlarge that size at most {most} times, not {settings.upscale} times.")
    if strength is not None and int(steps * strength) < 1:
        raise UsageError(
            f"With {steps} steps, the strength {strength:g} is less than one step; give at least {1 / steps:.2g}."
        )


def _size_like(folder: ModelFolder, image: ImageInput, binning: bool) -> dict[str, int]:
    """The shape of the image in about as many pixels as the model's own size has."""
    width, height = image.size
    scale = folder.native_size / (width * height) ** 0.5
    step = 1 if binning else None
    return {"width": nearest_side(folder, width * scale, step), "height": nearest_side(folder, height * scale, step)}


def _check_null_text(null_text: str, folder: ModelFolder, negative: str) -> None:
    if null_text == "encoded":
        return
    if not folder.null_tokens:
        raise UsageError(
            f"{folder.name} holds no null caption, which Diffusers' own converter drops; use the official file (with "
            "parts), or a folder that pixart convert made of it."
        )
    if negative:
        raise UsageError(
            f'The null caption stands where the negative prompt would, here "{negative}"; leave one of the two out.'
        )


def _check_fast(request: Request, folder: ModelFolder) -> None:
    """What a few-step model takes: sampler, steps and guidance are in its weights, and there is no second text."""
    own = {
        **{name: folder.defaults[name] for name in ("sampler", "steps", "guidance_scale")},
        "resolved_negative_prompt": "",
        "guidance_interval": (0, 1000),
        "guidance_rescale": 0.0,
        "guidance_channels": folder.transformer["in_channels"],
        "null_text": "encoded",
    }
    for name, value in own.items():
        given = getattr(request, name)
        if given != value:
            what = name.removeprefix("resolved_").replace("_", " ")
            of_style = name == "resolved_negative_prompt" and request.negative_prompt != given
            why = f', which the style "{request.style}" brings' if of_style else ""
            raise UsageError(
                f"The few-step model of {folder.name} takes no {what} {json.dumps(given, ensure_ascii=False)}{why}: it "
                f"samples in {own['steps']} Euler steps, with guidance {folder.defaults[DISTILLED]:g} away from the "
                "empty prompt in its weights. Leave that out, or use the model itself, without fast."
            )


def _size(folder: ModelFolder, settings: Settings, side: str, binning: bool) -> int:
    value = getattr(settings, side)
    if value is None:
        return folder.native_size
    step = 1 if binning else folder.size_multiple
    nearest = nearest_side(folder, value, step)
    if value == nearest:
        return value
    low, high = nearest_side(folder, 0, step), nearest_side(folder, MAX_SIDE, step)
    multiple = f"a multiple of {step} " if step > 1 else ""
    raise UsageError(
        f"This model cannot generate a {side} of {value} pixels: it must be {multiple}from {low} to {high}; "
        f"the nearest is {nearest}."
    )


def nearest_side(folder: ModelFolder, pixels: float, step: int | None = None) -> int:
    """The multiple of `step` (None: what the model patches) nearest to so many pixels that this model generates."""
    step = step or folder.size_multiple
    low, high = -(-MIN_SIZE // step) * step, folder.max_size // step * step
    return min(max(round(pixels / step) * step, low), high)
