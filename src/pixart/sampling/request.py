"""A request to draw, checked and with every default filled in, before any heavy library is loaded."""

import math
import secrets
from dataclasses import dataclass

from pixart.errors import UsageError
from pixart.sampling.dpm_solver import dpm_solver
from pixart.sampling.euler import euler
from pixart.sampling.model_folder import ModelFolder
from pixart.sampling.noise import MAX_SEED
from pixart.sampling.prompts import apply_style, check_text, find_style, unknown

SAMPLERS = {"dpm-solver": dpm_solver, "euler": euler}
MIN_SIZE = 64
MAX_STEPS = 500
MAX_IMAGES = 100
MAX_GUIDANCE = 50.0


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
    width: int
    height: int
    sampler: str


def make_request(
    folder: ModelFolder,
    prompt: str | list[str],
    *,
    negative_prompt: str = "",
    style: str | None = None,
    seed: int | None = None,
    num_images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    sampler: str | None = None,
) -> Request:
    """Fill in the model folder's defaults and check every field; raises UsageError with one sentence for the first."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UsageError("There is no prompt in the list; give at least one.")
    for text in prompts:
        check_text(text, "prompt")
    check_text(negative_prompt, "negative prompt")
    style = find_style(style, folder.styles)
    num_images = _whole(num_images, "The number of images", 1, MAX_IMAGES)
    if seed is None:
        seed = secrets.randbelow(1_000_000)  # short enough to type again
    seed = _whole(seed, "The seed", 0, MAX_SEED)
    if seed + num_images - 1 > MAX_SEED:
        raise UsageError(
            f"The last of {num_images} images would have the seed {seed + num_images - 1:,}, over {MAX_SEED}."
        )
    sampler = folder.defaults.get("sampler", "dpm-solver") if sampler is None else sampler
    if sampler not in SAMPLERS:
        raise UsageError(unknown("sampler", str(sampler), SAMPLERS))
    steps = folder.defaults.get("steps", 20) if steps is None else steps
    scale = folder.defaults.get("guidance_scale", 4.5) if guidance_scale is None else guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise UsageError(f"The guidance scale must be a number, not {scale!r}.")
    if not math.isfinite(scale) or not 0 <= scale <= MAX_GUIDANCE:
        raise UsageError(f"The guidance scale must be from 0 to {MAX_GUIDANCE:g}, not {scale}; 1 means no guidance.")
    negative_resolved = apply_style("", negative_prompt, folder.styles.get(style))[1]
    return Request(
        prompts=tuple(prompts),
        negative_prompt=negative_prompt,
        style=style,
        resolved_prompts=tuple(apply_style(text, negative_prompt, folder.styles.get(style))[0] for text in prompts),
        resolved_negative_prompt=negative_resolved,
        seeds=tuple(range(seed, seed + num_images)),
        steps=_whole(steps, "The number of steps", 1, MAX_STEPS),
        guidance_scale=float(scale),
        width=_size(folder, width, "width"),
        height=_size(folder, height, "height"),
        sampler=sampler,
    )


def _whole(value: int, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{what} must be a whole number, not {value!r}.")
    if not low <= value <= high:
        raise UsageError(f"{what} must be from {low} to {high}, not {value}.")
    return value


def _size(folder: ModelFolder, value: int | None, what: str) -> int:
    if value is None:
        return folder.native_size
    step = folder.size_multiple
    low, high = -(-MIN_SIZE // step) * step, folder.max_size // step * step
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"The {what} must be a whole number of pixels, not {value!r}.")
    if low <= value <= high and value % step == 0:
        return value
    nearest = min(max((value + step // 2) // step * step, low), high)
    raise UsageError(
        f"This model cannot draw a {what} of {value} pixels: it must be a multiple of {step} from {low} to {high}; "
        f"the nearest is {nearest}."
    )
