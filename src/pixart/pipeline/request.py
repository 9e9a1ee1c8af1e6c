"""A request for images, checked and with every default filled in, before any heavy library is loaded."""

import json
import math
import numbers
import secrets
from dataclasses import dataclass
from pathlib import Path

from pixart.buckets import Bucket
from pixart.checkpoints.fast import DISTILLED
from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.config import shortened, unknown
from pixart.diffusion.noise import MAX_SEED
from pixart.diffusion.solvers import SAMPLERS, schedule_for
from pixart.encoders.text_states import check_texts
from pixart.errors import UsageError
from pixart.pipeline.bins import bins_by_itself, choose_bin
from pixart.pipeline.prompts import apply_style, check_text, find_style

MIN_SIZE = 64
MAX_IMAGES = 100
MAX_GUIDANCE = 50.0
# The unconditional text of guidance: the empty or negative prompt, encoded; or the null caption of an official
# checkpoint, under the mask of the prompt (as the official code does it) or whole (as it did until November 2023).
NULL_TEXTS = ("encoded", "caption", "caption-all")


@dataclass(frozen=True)
class Request:
    """Everything that decides the pixels, apart from the model and the engine. `prompts` are the user's own words."""

    prompts: tuple[str, ...]
    negative_prompt: str
    style: str | None
    resolved_prompts: tuple[str, ...]
    resolved_negative_prompt: str
    seeds: tuple[int, ...]  # one per image of a prompt; every prompt starts from the same seed
    steps: int
    guidance_scale: float
    guidance_interval: tuple[int, int]  # timesteps, 0 (clean) to 1000 (noise), at which guidance acts
    guidance_rescale: float
    guidance_channels: int  # of the latent, the first of them that are guided
    null_text: str  # one of NULL_TEXTS
    width: int
    height: int
    bin: Bucket | None  # the size that is generated and then fitted to width x height
    sampler: str

    @property
    def texts(self) -> list[str]:
        """All texts that are encoded for it."""
        alone = self.guidance_scale == 1.0 or self.null_text != "encoded"
        return [*self.resolved_prompts, *(() if alone else (self.resolved_negative_prompt,))]

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
    negative_prompt: str | None = "",
    style: str | None = None,
    seed: int | None = None,
    num_images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[int, int] = (0, 1000),
    guidance_rescale: float = 0.0,
    guidance_channels: int | None = None,
    null_text: str = "encoded",
    width: int | None = None,
    height: int | None = None,
    binning: bool | None = None,
    sampler: str | None = None,
) -> Request:
    """Fill in the model folder's defaults and check every field; raises UsageError with one sentence for the first.

    `guidance_channels` and `null_text` repeat what official code does otherwise than Diffusers (docs/drawing.md).
    `binning`: generate at the nearest bin (`pixart.pipeline.bins`), or not; None means as the model is used to.
    """
    if not isinstance(prompt, str | list | tuple):
        raise UsageError(f"The prompt must be a text or a list of texts, not {shortened(prompt)}.")
    negative_prompt = "" if negative_prompt is None else negative_prompt
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UsageError("There is no prompt in the list; give at least one.")
    # None means not given, as for the seed.
    num_images = 1 if num_images is None else num_images
    guidance_interval = (0, 1000) if guidance_interval is None else guidance_interval
    guidance_rescale = 0.0 if guidance_rescale is None else guidance_rescale
    null_text = "encoded" if null_text is None else null_text
    for text in prompts:
        check_text(text, "prompt")
    check_text(negative_prompt, "negative prompt")
    styles = known_styles(folder.styles)
    style = find_style(style, styles, folder.styles)
    num_images = _whole(num_images, "The number of images", 1, MAX_IMAGES)
    if seed is None:
        seed = secrets.randbelow(1_000_000)  # short enough to type again
    seed = _whole(seed, "The seed", 0, MAX_SEED)
    if seed + num_images - 1 > MAX_SEED:
        raise UsageError(
            f"The last of {num_images} images would have the seed {seed + num_images - 1}, over {MAX_SEED}."
        )
    own = folder.defaults.get("sampler", "dpm-solver")
    sampler = own if sampler is None else sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise UsageError(unknown("sampler", str(sampler), SAMPLERS))
    suited = SAMPLERS[sampler]
    # What the model folder says suits its own sampler; another one brings its own habits.
    defaults = folder.defaults if sampler == own else {}
    steps = defaults.get("steps", suited.steps) if steps is None else steps
    steps = _whole(steps, "The number of steps", suited.fewest, suited.most)
    schedule_for(sampler, folder.scheduler, steps)  # says now whether the sampler fits the model
    scale = defaults.get("guidance_scale", suited.guidance_scale) if guidance_scale is None else guidance_scale
    scale = _number(scale, "The guidance scale", 0, MAX_GUIDANCE, "; 1 means no guidance")
    rescale = _number(guidance_rescale, "The guidance rescale", 0, 1, "; 0 means none")
    channels = folder.transformer["in_channels"]
    guided = channels if guidance_channels is None else guidance_channels
    guided = _whole(guided, "The number of guided channels", 1, channels)
    if binning is not None and not isinstance(binning, bool):
        raise UsageError(f"binning must be True, False or None, not {shortened(binning)}.")
    binning = bins_by_itself(folder) if binning is None else binning
    width, height = (_size(folder, value, what, binning) for value, what in ((width, "width"), (height, "height")))
    negative_resolved = apply_style("", negative_prompt, styles.get(style))[1]
    _check_null_text(null_text, folder, negative_resolved)
    request = Request(
        prompts=tuple(prompts),
        negative_prompt=negative_prompt,
        style=style,
        resolved_prompts=tuple(apply_style(text, negative_prompt, styles.get(style))[0] for text in prompts),
        resolved_negative_prompt=negative_resolved,
        seeds=tuple(range(seed, seed + num_images)),
        steps=steps,
        guidance_scale=scale,
        guidance_interval=_interval(guidance_interval),
        guidance_rescale=rescale,
        guidance_channels=guided,
        null_text=null_text,
        width=width,
        height=height,
        bin=choose_bin(folder, height, width) if binning else None,
        sampler=sampler,
    )
    if folder.fast:
        _check_fast(request, folder)
    return request


def check_text_states(folder: ModelFolder, request: Request, path: Path) -> None:
    """UsageError where the file of text states cannot serve this model for this request. Reads its head only."""
    check_texts(path, request.texts, max_tokens=folder.max_tokens, width=folder.transformer["caption_channels"])


def _whole(value: int, what: str, low: int, high: int, hint: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):  # numpy's integers too
        raise UsageError(f"{what} must be a whole number, not {shortened(value)}.")
    if not low <= value <= high:
        raise UsageError(f"{what} must be from {low} to {high}, not {shortened(int(value))}{hint}.")
    return int(value)


def _number(value: float, what: str, low: float, high: float, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{what} must be a number, not {shortened(value)}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise UsageError(f"{what} must be from {low:g} to {high:g}, not {value}{hint}.")
    return float(value)


def _check_null_text(null_text: str, folder: ModelFolder, negative: str) -> None:
    if null_text not in NULL_TEXTS:
        raise UsageError(unknown("null text", str(null_text), NULL_TEXTS))
    if null_text == "encoded":
        return
    if not folder.null_tokens:
        raise UsageError(
            f"{folder.name} holds no null caption, which Diffusers' own converter drops; use the official file (with "
            "--parts), or a folder that pixart convert made of it."
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
                "empty prompt in its weights. Leave that out, or leave out --fast."
            )


def _interval(value: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UsageError(f"The guidance interval must be two timesteps, from and to, not {shortened(value)}.")
    low, high = (_whole(end, "The guidance interval's timestep", 0, 1000) for end in value)
    if low > high:
        raise UsageError(f"The guidance interval must go from the lower timestep to the higher, not {low} to {high}.")
    return low, high


def _size(folder: ModelFolder, value: int | None, what: str, binning: bool) -> int:
    if value is None:
        return folder.native_size
    step = 1 if binning else folder.size_multiple
    low, high = -(-MIN_SIZE // step) * step, folder.max_size // step * step
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UsageError(f"The {what} must be a whole number of pixels, not {shortened(value)}.")
    value = int(value)
    if low <= value <= high and value % step == 0:
        return value
    nearest = min(max((value + step // 2) // step * step, low), high)
    multiple = f"a multiple of {step} " if step > 1 else ""
    raise UsageError(
        f"This model cannot generate a {what} of {shortened(value)} pixels: it must be {multiple}from {low} to {high}; "
        f"the nearest is {nearest}."
    )
