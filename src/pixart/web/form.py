"""What stands in the page's fields, from the browser to a checked request and back."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.diffusion.noise import MAX_SEED
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import UsageError
from pixart.pipeline.bins import bins_of
from pixart.pipeline.prompts import NO_STYLE
from pixart.pipeline.request import Request, make_request
from pixart.pipeline.settings import MAX_IMAGES, MIN_SIZE

MAX_BATCHES = 25
ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}


@dataclass(frozen=True)
class Form:
    """The fields in the page's order. None in a number means the model's own value."""

    prompt: str = ""
    style: str = NO_STYLE
    num_images: int | None = 1
    batches: int | None = 1
    width: int | None = None
    height: int | None = None
    use_negative: bool = True
    negative_prompt: str = ""
    random_seed: bool = True
    seed: int | None = 0
    guidance_scale: float | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance_from: int | None = 0
    guidance_to: int | None = 1000
    guidance_rescale: float | None = 0.0

    def settings(self) -> dict[str, Any]:
        """As keyword arguments of `make_request`, but for seed and number of pictures.

        Raises:
            UsageError: a field holds what is no number; names it.
        """
        return {
            "prompt": self.prompt or "",
            "negative_prompt": (self.negative_prompt or "") if self.use_negative else "",
            "style": None if self.style in (None, "", NO_STYLE) else str(self.style),
            "steps": _whole(self.steps, "number of steps"),
            "guidance_scale": _real(self.guidance_scale, "guidance scale"),
            "guidance_interval": (
                0 if self.guidance_from is None else _whole(self.guidance_from, "guidance's first timestep"),
                1000 if self.guidance_to is None else _whole(self.guidance_to, "guidance's last timestep"),
            ),
            "guidance_rescale": _real(self.guidance_rescale, "guidance rescale") or 0.0,
            "width": _whole(self.width, "width"),
            "height": _whole(self.height, "height"),
            "sampler": self.sampler or None,
        }

    def requests(self, folder: ModelFolder) -> list[Request]:
        """A checked request for each batch; their seeds follow each other. Raises UsageError with one sentence."""
        number = 1 if self.num_images is None else _whole(self.num_images, "number of pictures")
        batches = 1 if self.batches is None else _whole(self.batches, "number of batches")
        if not 1 <= batches <= MAX_BATCHES:
            raise UsageError(f"The number of batches must be from 1 to {MAX_BATCHES}, not {batches}.")
        if number * batches > MAX_IMAGES:
            raise UsageError(f"{number} pictures in {batches} batches are {number * batches}; at most {MAX_IMAGES}.")
        seed = None if self.random_seed else _whole(self.seed, "seed")
        if seed is None and not self.random_seed:
            raise UsageError("There is no seed; type one, or choose a random seed.")
        settings = self.settings()
        first = make_request(folder, num_images=number, seed=seed, **settings)
        if first.seeds[0] + number * batches - 1 > MAX_SEED:
            raise UsageError(f"The last picture would have a seed over {MAX_SEED}; take a smaller seed.")
        following = range(first.seeds[0], first.seeds[0] + number * batches, number)
        return [replace(first, seed=start) for start in following]

    def with_seed(self, seed: int) -> "Form":
        return replace(self, random_seed=False, seed=seed)


def default_form(folder: ModelFolder) -> Form:
    """What the page shows for a model before anything is changed."""
    sampler = folder.defaults.get("sampler", "dpm-solver")
    steps, scale = sampler_defaults(folder, sampler)
    side = folder.native_size
    return Form(width=side, height=side, sampler=sampler, steps=steps, guidance_scale=scale)


def sampler_defaults(folder: ModelFolder, sampler: str) -> tuple[int, float]:
    """Steps and guidance scale that suit a sampler, or that the model wants for its own."""
    suited = SAMPLERS[sampler]
    own = folder.defaults if sampler == folder.defaults.get("sampler", "dpm-solver") else {}
    return own.get("steps", suited.steps), float(own.get("guidance_scale", suited.guidance_scale))


def samplers_of(folder: ModelFolder) -> list[str]:
    """The samplers that can draw this model."""
    flow = bool(folder.scheduler.get("use_flow_sigmas"))
    return [name for name, sampler in SAMPLERS.items() if not (flow and sampler.eps_only)]


def styles_of(folder: ModelFolder) -> list[str]:
    """ "No style", the model's own, and the general ones."""
    return [NO_STYLE, *known_styles(folder.styles)]


def size_for(folder: ModelFolder, aspect: str) -> tuple[int, int]:
    """Width and height of about the model's own number of pixels; a bin's where the model has bins."""
    ratio = ASPECTS[aspect]
    table = bins_of(folder)
    if table is not None:
        bucket = table.buckets[table.nearest(round(1000 / ratio), 1000)]
        return bucket.width, bucket.height
    step, side = folder.size_multiple, folder.native_size
    low, high = -(-MIN_SIZE // step) * step, folder.max_size // step * step
    width, height = (
        min(max(round(length / step) * step, low), high)
        for length in (side * math.sqrt(ratio), side / math.sqrt(ratio))
    )
    return width, height


def restored(values: Any, folder: ModelFolder) -> Form:
    """A form from a browser's storage, a run's record or a dropped picture: each field that can be read is taken.

    What is missing or is not of the field's kind stays as the model has it; nothing is raised.
    """
    form = default_form(folder)
    if not isinstance(values, dict):
        return form
    taken: dict[str, Any] = {}
    for field in fields(Form):
        value = values.get(field.name)
        known = getattr(form, field.name)
        if field.name in ("style", "sampler"):
            allowed = styles_of(folder) if field.name == "style" else samplers_of(folder)
            if value in allowed:
                taken[field.name] = value
        elif isinstance(known, bool):
            if isinstance(value, bool):
                taken[field.name] = value
        elif isinstance(known, str):
            if isinstance(value, str):
                taken[field.name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            whole = not isinstance(known, float)
            taken[field.name] = int(value) if whole else float(value)
    return replace(form, **taken)


def from_request(request: dict[str, Any], folder: ModelFolder) -> Form:
    """A form from the keyword arguments of `make_request` that a picture was drawn with."""
    values = {key: value for key, value in request.items() if value is not None}
    interval = values.pop("guidance_interval", None)
    if isinstance(interval, list | tuple) and len(interval) == 2:
        values |= {"guidance_from": interval[0], "guidance_to": interval[1]}
    values |= {"use_negative": bool(values.get("negative_prompt")), "random_seed": "seed" not in values}
    values |= {"num_images": 1, "batches": 1}
    return restored(values, folder)


def _whole(value: Any, what: str) -> int | None:
    number = _real(value, what)
    if number is None:
        return None
    if number != int(number):
        raise UsageError(f"The {what} must be a whole number, not {value}.")
    return int(number)


def _real(value: Any, what: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"The {what} must be a number, not {str(value)[:40]}.")
    if abs(value) > 1e12:
        raise UsageError(f"The {what} is far too large: {value:.0e}.")
    return value
