"""What the fields of the page hold, from the browser to a checked request and back."""

import io
import math
from base64 import b64decode
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.config import unknown
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import UsageError
from pixart.files import parse_json
from pixart.pipeline.bins import bins_of
from pixart.pipeline.prompts import NO_STYLE
from pixart.pipeline.request import Request, make_request, nearest_side
from pixart.pipeline.restore import Restored, checked_settings, fit_to_model
from pixart.pipeline.settings import MAX_IMAGES

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}
BINNING = {"As the model is used to": None, "Nearest trained size": True, "Exactly this size": False}
# In the order in which events take them. Other names than those of `make_request` are the page's own.
NAMES = (
    "prompt", "style", "num_images", "width", "height", "binning", "use_negative", "negative_prompt", "random_seed",
    "seed", "guidance_scale", "steps", "sampler", "guidance_from", "guidance_to", "guidance_rescale",
    "guidance_channels", "null_text", "upscale", "transparent", "loras", "strengths", "strength", "outpaint",
    "prompt_weights",
)  # fmt: skip
# Fields that are not of an image's settings, or not there without an image to start from.
OWN = {
    "use_negative": True, "random_seed": True, "transparent": False, "loras": [], "strengths": "", "strength": 0.8,
    "outpaint": False,
}  # fmt: skip
GENERAL = "─── not trained on ───"  # a line of the list of styles, between the model's own and the general ones
MOST_STRENGTH = 10
MOST_PIXELS = 2048  # of the longer side of an image to start from


def defaults(folder: ModelFolder) -> dict[str, Any]:
    """What the page shows for a model before anything is changed."""
    sampler = folder.defaults.get("sampler", "dpm-solver")
    steps, scale = sampler_defaults(folder, sampler)
    values = dict.fromkeys(NAMES) | OWN | {"prompt": "", "negative_prompt": "", "style": NO_STYLE, "num_images": 1}
    values |= {"seed": 0, "binning": next(iter(BINNING)), "upscale": 1}
    values |= {"width": folder.native_size, "height": folder.native_size, "guidance_rescale": 0.0}
    values |= {"guidance_from": 0, "guidance_to": 1000, "null_text": "encoded", "prompt_weights": False}
    return values | {"sampler": sampler, "steps": steps, "guidance_scale": scale}


def arguments(values: dict[str, Any], image: Any = None, mask: Any = None) -> dict[str, Any]:
    """The fields as keyword arguments of `make_request`. Raises UsageError where there is neither seed nor chance."""
    if not values["random_seed"] and values["seed"] is None:
        raise UsageError("There is no seed; type one, or choose a random seed.")
    same = ("num_images", "width", "height", "guidance_scale", "steps", "guidance_rescale", "guidance_channels")
    same += ("upscale", "outpaint", "prompt_weights")
    ends = {"guidance_from": 0, "guidance_to": 1000}
    return {
        **{name: values[name] for name in same},
        "prompt": values["prompt"] or "",
        "negative_prompt": values["negative_prompt"] if values["use_negative"] else "",
        "style": None if values["style"] == GENERAL else values["style"] or None,
        "seed": None if values["random_seed"] else values["seed"],
        "binning": BINNING.get(values["binning"]),
        "sampler": values["sampler"] or None,
        "guidance_interval": tuple(end if values[name] is None else values[name] for name, end in ends.items()),
        "null_text": values["null_text"] or None,
        "image": image,
        "mask": mask,
        "strength": None if image is None else values["strength"],
    }


def checked(values: dict[str, Any], folder: ModelFolder, image: Any = None, mask: Any = None) -> Request:
    """The request that the fields make, and an image to start from. Raises UsageError with one sentence."""
    return make_request(folder, **arguments(values, image, mask))


def adapters(values: dict[str, Any], known: dict[str, Lora]) -> tuple[Lora, ...]:
    """The chosen adapters at their strengths, which stand in a field with commas between. Raises UsageError."""
    names = values["loras"] or []
    words = [word.strip() for word in (values["strengths"] or "").split(",")]
    chosen = []
    for name, word in zip_longest(names, words[: len(names)], fillvalue=""):
        if name not in known:
            raise UsageError(unknown("adapter", str(name), known))
        try:
            strength = float(word or 1)
        except ValueError:
            strength = math.nan
        if not abs(strength) <= MOST_STRENGTH:
            raise UsageError(f"Strengths are numbers from -{MOST_STRENGTH} to {MOST_STRENGTH}, commas between.")
        chosen.append(replace(known[name], strength=strength))
    return tuple(chosen)


def from_brush(text: Any) -> tuple[Any, Any]:
    """Image and mask, as PIL, of what brush.js gives: PNG files in JSON. None for what is not there.

    Raises:
        UsageError: it is something else, as only a program would send it.
    """
    if not text:
        return None, None
    try:
        given = parse_json(str(text), "The image to start from")
        image, mask = (_opened(given[name]) for name in ("image", "mask"))
    except Exception:  # decoders fed with bad bytes raise nearly everything
        raise UsageError("The image to start from cannot be read; choose another.") from None
    return image, mask.getchannel("A").point(lambda alpha: 255 * (alpha > 0)) if mask else None


def _opened(uri: str | None) -> Any:
    from PIL import Image

    if uri is None:
        return None
    image = Image.open(io.BytesIO(b64decode(uri.removeprefix("data:image/png;base64,"))), formats=["PNG"])
    if max(image.size) > MOST_PIXELS:
        raise ValueError
    return image.convert("RGBA")


def filled(settings: dict[str, Any], folder: ModelFolder) -> dict[str, Any]:
    """The fields for keyword arguments of `make_request` that fit the model; what is missing is the model's own."""
    values = {key: value for key, value in settings.items() if value is not None}
    low, high = values.pop("guidance_interval", (0, 1000))
    binning = {value: name for name, value in BINNING.items()}[values.pop("binning", None)]
    own = {"guidance_from": low, "guidance_to": high, "binning": binning, "random_seed": "seed" not in values}
    return {name: value for name, value in (defaults(folder) | values | own).items() if name in NAMES}


def restored(stored: Any, folder: ModelFolder) -> dict[str, Any]:
    """The fields from a browser's storage or a run's record: each value that still can be, else the model's own."""
    if not isinstance(stored, dict):
        return defaults(folder)
    interval = [stored.get("guidance_from"), stored.get("guidance_to")]
    settings = {**stored, "guidance_interval": interval, "binning": BINNING.get(str(stored.get("binning")))}
    settings = fit_to_model(Restored("the browser", checked_settings(settings, []), []), folder).request
    own = {name: stored[name] for name, value in OWN.items() if type(stored.get(name)) is type(value)}
    own["loras"] = [name for name in own.get("loras", []) if isinstance(name, str)]
    number = stored.get("num_images")
    number = number if isinstance(number, int) and 1 <= number <= MAX_IMAGES else 1
    return filled(settings, folder) | own | {"outpaint": False, "num_images": number}


def sampler_defaults(folder: ModelFolder, sampler: str) -> tuple[int, float]:
    """Steps and guidance scale that suit a sampler, or that the model wants for its own."""
    suited = SAMPLERS[sampler]
    own = folder.defaults if sampler == folder.defaults.get("sampler", "dpm-solver") else {}
    return own.get("steps", suited.steps), float(own.get("guidance_scale", suited.guidance_scale))


def samplers_of(folder: ModelFolder) -> list[str]:
    """The samplers that this model can be sampled with."""
    flow = bool(folder.scheduler.get("use_flow_sigmas"))
    return [name for name, sampler in SAMPLERS.items() if not (flow and sampler.eps_only)]


def styles_of(folder: ModelFolder) -> list[str]:
    """ "No style", the model's own, a line that divides, and the general ones."""
    own = list(folder.styles)
    general = [name for name in known_styles(folder.styles) if name not in own]
    return [NO_STYLE, *own, *([GENERAL] if own and general else []), *general]


def size_for(folder: ModelFolder, aspect: str) -> tuple[int, int]:
    """Width and height of about the model's own number of pixels; a bin's where the model has bins."""
    return size_like(folder, ASPECTS[aspect])


def size_like(folder: ModelFolder, ratio: float) -> tuple[int, int]:
    """As `size_for`, of any ratio of width to height."""
    table = bins_of(folder)
    if table is not None:
        bucket = table.buckets[table.nearest(round(1000 / ratio), 1000)]
        return bucket.width, bucket.height
    side = folder.native_size
    return nearest_side(folder, side * math.sqrt(ratio)), nearest_side(folder, side / math.sqrt(ratio))


def aspect_of(width: Any, height: Any) -> str | None:
    """The shape that a size has, to a few percent, as sizes are rounded."""
    if not width or not height or min(width, height) <= 0:
        return None
    far = {name: abs(math.log(width / height / ratio)) for name, ratio in ASPECTS.items()}
    nearest = min(far, key=far.get)
    return nearest if far[nearest] < 0.05 else None
