"""What may be chosen for an image: the one list, of which options, calls, requests and image metadata are made.

Nothing heavy is imported at its top, since `pixart generate --help` shows it.
"""

import math
import numbers
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress, arg

from pixart.config import shortened, shown, unknown
from pixart.diffusion.noise import MAX_SEED
from pixart.errors import UsageError
from pixart.pipeline.prompts import check_text

MIN_SIZE = 64
MAX_SIDE = 65_535  # pixels; which of them a model can generate, `make_request` says
MAX_IMAGES = 100
MAX_STEPS = 500
MAX_GUIDANCE = 50.0
MAX_NAME = 200
MAX_UPSCALE = 4
MAX_CONTROL = 10.0
RANDOM_SEED = -1
# The unconditional text of guidance: the empty or negative prompt, encoded; or the null caption of an official
# checkpoint, under the mask of the prompt (as the official code does it) or all of it (as it did until November 2023).
NULL_TEXTS = ("encoded", "caption", "caption-all")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be chosen for an image, besides its prompt; the one list of it.

    None means the model folder's own value, else what suits the sampler. Values are checked as far as they do not
    depend on a model: raises UsageError with one sentence.
    """

    style: Annotated[str | None, shown("NAME", "none")] = None
    """One of the model's styles."""
    negative_prompt: Annotated[str, shown("TEXT", "none")] = ""
    """What to steer away from."""
    seed: Annotated[int | None, shown("N", "at random")] = None
    """Of the noise that the first image starts from; the next images take the next seeds. -1 is random."""
    num_images: Annotated[int, arg(metavar="N", aliases=("-n",))] = 1
    """How many images."""
    steps: Annotated[int | None, shown("N", "the model's, else what suits the sampler", "--num-inference-steps")] = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float | None, shown("X", "the model's, else what suits the sampler", "--cfg")] = None
    """How strongly to follow the prompt; 1 means no guidance."""
    guidance_interval: Annotated[tuple[int, int], arg(metavar="FROM TO")] = (0, 1000)
    """Timesteps at which guidance acts: 0 is clean, 1000 is noise (arXiv 2404.07724). Outside, the work is halved."""
    guidance_rescale: Annotated[float, arg(metavar="X")] = 0.0
    """From 0 to 1: takes back the oversaturation of strong guidance (arXiv 2305.08891, section 3.4)."""
    null_text: Annotated[str, arg(metavar="NAME")] = "encoded"
    """What guidance leads away from: the encoded text, or an official checkpoint's null caption: caption, under the
    prompt's mask, or caption-all."""
    prompt_weights: bool = False
    """Read (word), (word:1.2) and [word] in the prompts as A1111 does: a word counts more or less. With torch."""
    guidance_channels: Annotated[int | None, shown("N", "all")] = None
    """Guide the first channels of the latent only; the official IDDPM script did 3 of 4."""
    width: Annotated[int | None, shown("PIXELS", "the model's", "-W")] = None
    """Width of the image."""
    height: Annotated[int | None, shown("PIXELS", "the model's", "-H")] = None
    """Height of the image."""
    binning: Suppress[bool | None] = None
    """Generate the official size of the nearest shape and fit the image to width and height, as stock Diffusers does;
    None: models that predict eps do, flow models do not."""
    sampler: Annotated[str | None, shown("NAME", "the model's, else dpm-solver", "--scheduler")] = None
    """dpm-solver, sa-solver, euler, euler-ancestral; for models that predict eps also dpm-solver-karras, ddim, ddpm,
    lcm, dmd (one step); or a name that Diffusers, A1111 or ComfyUI has for it, such as "DPM++ 2M Karras"."""

    strength: Annotated[float | None, shown("X", "0.8, or 1 with a mask")] = None
    """With an image to start from: 0 would keep it, 1 takes nothing but its layout; of so many steps, the last ones."""
    upscale: Annotated[int, arg(metavar="N")] = 1
    """Enlarge the finished image N times and go over it in a second pass, which adds detail."""
    upscale_strength: Annotated[float, arg(metavar="X")] = 0.4
    """As --strength, of the second pass."""

    def __post_init__(self):
        check_text(self.negative_prompt, "negative prompt")
        if self.style is not None and not (isinstance(self.style, str) and len(self.style) <= MAX_NAME):
            raise UsageError(f"The style must be a name of at most {MAX_NAME} characters, not {shortened(self.style)}.")
        for name in ("binning", "prompt_weights"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise UsageError(f"{name} must be True, False or None, not {shortened(value)}.")
        if self.null_text not in NULL_TEXTS:
            raise UsageError(unknown("null text", str(self.null_text), NULL_TEXTS))
        checked = {
            "seed": whole_number(self.seed, "The seed", RANDOM_SEED, MAX_SEED),
            "num_images": whole_number(self.num_images, "The number of images", 1, MAX_IMAGES),
            "steps": whole_number(self.steps, "The number of steps", 1, MAX_STEPS),
            "guidance_scale": number(self.guidance_scale, "The guidance scale", 0, MAX_GUIDANCE),
            "guidance_interval": _interval(self.guidance_interval),
            "guidance_rescale": number(self.guidance_rescale, "The guidance rescale", 0, 1),
            "guidance_channels": whole_number(self.guidance_channels, "The number of guided channels", 1, 1024),
            "width": whole_number(self.width, "The width", 1, MAX_SIDE),
            "height": whole_number(self.height, "The height", 1, MAX_SIDE),
            "strength": number(self.strength, "The strength", 0, 1),
            "upscale": whole_number(self.upscale, "The enlargement", 1, MAX_UPSCALE),
            "upscale_strength": number(self.upscale_strength, "The strength of the second pass", 0, 1),
        }
        if self.sampler is not None:
            from pixart.diffusion.solvers import find_sampler

            checked["sampler"] = find_sampler(self.sampler)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # plain numbers of Python, our name of the sampler


def whole_number(value: int | None, what: str, low: int, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):  # numpy's integers too
        raise UsageError(f"{what} must be a whole number, not {shortened(value)}.")
    if not low <= value <= high:
        raise UsageError(f"{what} must be from {low} to {high}, not {shortened(int(value))}.")
    return int(value)


def number(value: float | None, what: str, low: float, high: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{what} must be a number, not {shortened(value)}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise UsageError(f"{what} must be from {low:g} to {high:g}, not {shortened(value)}.")
    return float(value)


def _interval(value: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2 or None in value:
        raise UsageError(f"The guidance interval must be two timesteps, from and to, not {shortened(value)}.")
    low, high = (whole_number(end, "The guidance interval's timestep", 0, 1000) for end in value)
    if low > high:
        raise UsageError(f"The guidance interval must go from the lower timestep to the higher, not {low} to {high}.")
    return low, high
