"""The settings inside a picture file, ours or another tool's -> what `make_request` takes. The file is not trusted."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.diffusion.noise import MAX_SEED
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import PixArtError, UsageError, shown
from pixart.pipeline.foreign_metadata import Raw, read_foreign
from pixart.pipeline.image_files import read_record
from pixart.pipeline.image_metadata import ImageTexts, read_texts
from pixart.pipeline.prompts import MAX_CHARACTERS
from pixart.pipeline.request import MAX_GUIDANCE, MIN_SIZE, NULL_TEXTS, make_request

MAX_SIDE = 65_535  # pixels; which of them a model can draw, `fit_to_model` says
MAX_STEPS = 500
OWN = "pixart"
OF_FAST = ("steps", "guidance_scale", "sampler")  # what a fast denoiser has of its own

# What others call a sampler, in small letters without blanks, underscores and hyphens -> ours. "k" at the end, in
# InvokeAI's names, stands for Karras' noise levels.
SAMPLER_NAMES = {
    "dpm++2m": "dpm-solver",
    "dpm++2mkarras": "dpm-solver",
    "dpmpp2m": "dpm-solver",
    "dpmpp2mk": "dpm-solver",
    "dpmsolver": "dpm-solver",
    "dpmsolvermultistep": "dpm-solver",
    "sasolver": "sa-solver",
    "euler": "euler",
    "eulerkarras": "euler",
    "eulerk": "euler",
    "ddim": "ddim",
    "ddpm": "ddpm",
    "lcm": "lcm",
}
PLAIN_SCHEDULES = ("", "automatic", "normal", "simple", "uniform", "none")


@dataclass(frozen=True)
class Restored:
    """What a picture says of how it was drawn.

    Attributes:
        source: "pixart", "A1111", "Fooocus", "InvokeAI" or "ComfyUI"; A1111 also for those who copy its text.
        request: keyword arguments of `make_request`; "prompt" always, the others where they were found and can be.
        notices: a sentence for each thing that was left out or will differ. They may quote the file.
        fast: it was drawn with a model's fast denoiser, whose steps and guidance suit no other.
    """

    source: str
    request: dict[str, Any]
    notices: list[str]
    fast: bool = False


def restore_settings(path: str | Path) -> Restored:
    """Read the settings inside a PNG, JPEG or WebP file, without decoding its pixels.

    Raises:
        UsageError: it is no such file, or no settings are in it that pixart, A1111, Fooocus, InvokeAI or ComfyUI wrote.
            Whatever else is wrong with the file is a notice.
    """
    texts = read_texts(path)
    notices = list(texts.notices)
    try:
        own = read_record(texts)
    except PixArtError as error:
        own = None
        notices.append(str(error))
    if own is not None:
        request = _checked(own, {key: key for key in FIELDS}, OWN, notices)
        if own.get("model") not in (None, "pixart-default"):
            notices.append(f'It was drawn with the model "{shown(own["model"])}".')
        return Restored(OWN, request, notices, own.get("fast") is True)
    found = read_foreign(texts.texts)
    if found is None:
        raise UsageError(_nothing(Path(path).name, texts, notices))
    notices += found.notices
    return Restored(found.source, _from_others(found.source, found.raw, notices), notices)


def fit_to_model(restored: Restored, folder: ModelFolder) -> Restored:
    """The same for one model: sizes become the nearest that it draws, and what it cannot do is left out and said.

    `make_request(folder, **request)` of the result does not raise.
    """
    kept: dict[str, Any] = {"prompt": restored.request["prompt"]}
    notices, left = list(restored.notices), ["width", "height"]
    if restored.fast and not folder.fast:
        left += OF_FAST
        notices.append(
            "It was drawn with a fast denoiser, so its steps, guidance scale and sampler were left out; with --fast, "
            'or with "Fast" at the model, it can be drawn again.'
        )
    for key, value in restored.request.items():
        if key in left:
            continue
        try:
            make_request(folder, **{**kept, key: value})
            kept[key] = value
        except UsageError as error:
            notices.append(f"The {_named(key)} of the picture was left out: {error}")
    size = {side: restored.request[side] for side in ("width", "height") if side in restored.request}
    try:
        make_request(folder, **kept, **size)
    except UsageError:
        asked = " x ".join(str(side) for side in size.values())
        size = _nearest_size(size, folder)
        notices.append(f"The picture is {asked}; this model draws {' x '.join(map(str, size.values()))} instead.")
    return Restored(restored.source, {**kept, **size}, notices, restored.fast)


def _nearest_size(size: dict[str, int], folder: ModelFolder) -> dict[str, int]:
    """Width and height that this model draws, in nearly the same shape."""
    step = folder.size_multiple
    low, high = -(-MIN_SIZE // step) * step, folder.max_size // step * step
    scale = min(1.0, high / max(size.values()))
    return {side: min(max(round(value * scale / step) * step, low), high) for side, value in size.items()}


def _from_others(source: str, raw: Raw, notices: list[str]) -> dict[str, Any]:
    names = {key: key for key in FIELDS if raw.get(key) not in (None, "")}
    sampler, schedule = names.pop("sampler", None), _squeezed(raw.get("schedule"))
    request = _checked(raw, names, source, notices)
    if sampler is not None:
        ours = SAMPLER_NAMES.get(_squeezed(raw["sampler"]))
        if ours is None:
            notices.append(
                f'{source} drew with the sampler "{shown(raw["sampler"])}", which does not exist here; the model\'s '
                "own is taken."
            )
        else:
            request["sampler"] = ours
            if "karras" in _squeezed(raw["sampler"]) or schedule not in PLAIN_SCHEDULES:
                notices.append(f"{source}'s noise levels are not taken over; the model's own are used.")
    if raw.get("model") not in (None, ""):
        notices.append(f'{source} drew it with the model "{shown(raw["model"])}".')
    if "seed" in request:
        notices.append(f"A seed names other noise in {source} than here, so the picture will be another one.")
    return request


def _checked(raw: dict[str, Any], names: dict[str, str], source: str, notices: list[str]) -> dict[str, Any]:
    """The fields that are what they must be; the others are left out and named."""
    request: dict[str, Any] = {"prompt": ""}
    for key in names:
        value = raw.get(key)
        if value is None:
            if key == "prompt":
                notices.append(f"There is no prompt in what {source} wrote.")
            continue
        if key in ("prompt", "negative_prompt") and isinstance(value, str):
            value = _readable(value, _named(key), notices)
        check, allowed = FIELDS[key]
        value = check(value)
        if value is None:
            notices.append(f'The {_named(key)} "{shown(raw[key])}" was left out: it must be {allowed}.')
        else:
            request[key] = value
    return request


def _readable(text: str, what: str, notices: list[str]) -> str:
    """Without what no text encoder reads, and not longer than is read."""
    plain = re.sub("[\ud800-\udfff\0]", "", text)
    if len(plain) != len(text):
        notices.append(f"Characters of the {what} that are no text were left out.")
    if len(plain) > MAX_CHARACTERS:
        notices.append(f"The {what} is {len(plain):,} characters long; the first {MAX_CHARACTERS:,} were taken.")
    return plain[:MAX_CHARACTERS]


def _nothing(name: str, texts: ImageTexts, notices: list[str]) -> str:
    name = shown(name)
    if notices:
        return f"{name} holds no settings that can be read. {notices[0]}"
    if texts.format == "PNG":
        return f"{name} holds no settings of pixart, A1111, Fooocus, InvokeAI or ComfyUI."
    return (
        f"{name} is a {texts.format} file without settings; they are lost when a picture is saved in another form, so "
        "take the PNG file that was drawn."
    )


def _named(key: str) -> str:
    return key.replace("_", " ")


def _squeezed(name: Any) -> str:
    return re.sub(r"[\s_-]", "", name).lower() if isinstance(name, str) else ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _sampler(value: Any) -> str | None:
    return value if isinstance(value, str) and value in SAMPLERS else None


def _null_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value in NULL_TEXTS else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None


def _whole(low: int, high: int) -> Callable[[Any], int | None]:
    """A whole number from low to high; others write them as text, and 20.0 for 20."""

    def check(value: Any) -> int | None:
        if isinstance(value, str) and re.fullmatch(r"\s*\+?[0-9]{1,20}\s*", value):
            value = int(value)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)
        return value if type(value) is int and low <= value <= high else None

    return check


def _number(low: float, high: float) -> Callable[[Any], float | None]:
    def check(value: Any) -> float | None:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}(\.[0-9]{1,40})?\s*", value):
            value = float(value)
        return float(value) if type(value) in (int, float) and low <= value <= high else None

    return check


def _interval(value: Any) -> tuple[int, int] | None:
    match value:
        case [int(low), int(high)] if 0 <= low <= high <= 1000 and bool not in (type(low), type(high)):
            return low, high
    return None


def _switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


# Keyword of make_request -> a check that gives the value to use, or None; and in words what is allowed.
FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "prompt": (_text, "a text"),
    "negative_prompt": (_text, "a text"),
    "style": (_name, "a name"),
    "sampler": (_sampler, f"one of {', '.join(SAMPLERS)}"),
    "seed": (_whole(0, MAX_SEED), f"a whole number from 0 to {MAX_SEED}"),
    "steps": (_whole(1, MAX_STEPS), f"a whole number from 1 to {MAX_STEPS}"),
    "guidance_scale": (_number(0, MAX_GUIDANCE), f"a number from 0 to {MAX_GUIDANCE:g}"),
    "guidance_interval": (_interval, "two timesteps from 0 to 1000"),
    "guidance_rescale": (_number(0, 1), "a number from 0 to 1"),
    "guidance_channels": (_whole(1, 1024), "a number of channels"),
    "null_text": (_null_text, f"one of {', '.join(NULL_TEXTS)}"),
    "binning": (_switch, "true or false"),
    "width": (_whole(1, MAX_SIDE), f"a whole number of pixels up to {MAX_SIDE}"),
    "height": (_whole(1, MAX_SIDE), f"a whole number of pixels up to {MAX_SIDE}"),
}
