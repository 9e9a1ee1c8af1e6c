"""The settings inside an image file, ours or another tool's -> what `make_request` takes. The file is not trusted."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.diffusion.solvers import find_sampler
from pixart.errors import PixArtError, UsageError, shown
from pixart.pipeline.foreign_metadata import Raw, read_foreign
from pixart.pipeline.image_files import read_record
from pixart.pipeline.image_metadata import ImageTexts, read_texts
from pixart.pipeline.prompts import MAX_CHARACTERS
from pixart.pipeline.request import make_request, nearest_side
from pixart.pipeline.settings import RANDOM_SEED, Settings

OWN = "pixart"
NAMES = tuple(field.name for field in fields(Settings) if field.name != "num_images")
OF_FAST = ("steps", "guidance_scale", "sampler")  # what a few-step model has of its own
PLAIN_SCHEDULES = ("", "automatic", "normal", "simple", "uniform", "none")


@dataclass(frozen=True)
class Restored:
    """What an image file says of how it was generated.

    Attributes:
        source: "pixart", "A1111" (also for those who copy its text), "Fooocus", "InvokeAI", "ComfyUI", "Another tool".
        request: arguments of `make_request`; "prompt" always, fields of `Settings` where they were found and can be.
        notices: a sentence for each thing that was left out or will differ. They may quote the file.
        fast: it was generated with a few-step model, whose steps and guidance suit no other.
    """

    source: str
    request: dict[str, Any]
    notices: list[str]
    fast: bool = False


def restore_settings(path: str | Path) -> Restored:
    """Read the settings inside a PNG, JPEG or WebP file, without decoding its pixels.

    Raises:
        UsageError: it is no such file, or no settings are in it that are known. Whatever else is wrong with the file is
            a notice.
    """
    texts = read_texts(path)
    notices = list(texts.notices)
    try:
        own = read_record(texts)
    except PixArtError as error:
        own = None
        notices.append(str(error))
    if own is not None:
        request = checked_settings(own, notices)
        if own.get("model") not in (None, "pixart-default"):
            notices.append(f'It was generated with the model "{shown(own["model"])}".')
        for lora in own["loras"] if isinstance(own.get("loras"), list) else []:
            if isinstance(lora, dict):
                given = f"{shown(lora.get('name'))}:{shown(lora.get('strength'))}"
                notices.append(f"It was generated with the adapter {given}; give it with --lora.")
        if isinstance(own.get("control"), dict):
            given = shown(own["control"].get("name"))
            notices.append(f"It was generated with the ControlNet {given}; give it and its image with --control.")
        return Restored(OWN, request, notices, own.get("fast") is True)
    found = read_foreign(texts.texts)
    if found is None:
        raise UsageError(_nothing(Path(path).name, texts, notices))
    source, raw, more = found
    return Restored(source, _from_others(source, raw, notices := notices + more), notices)


def fit_to_model(restored: Restored, folder: ModelFolder) -> Restored:
    """The same for one model: sizes become the nearest that it generates, and what it cannot do is left out and said.

    `make_request(folder, **request)` of the result does not raise.
    """
    kept: dict[str, Any] = {"prompt": restored.request["prompt"]}
    notices, left = list(restored.notices), ["width", "height"]
    if restored.fast and not folder.fast:
        left += OF_FAST
        notices.append(
            "It was generated with a few-step model, so its steps, guidance scale and sampler were left out; with "
            '--fast, or with "Fast" at the model, it can be generated again.'
        )
    for key, value in restored.request.items():
        if key not in left and _can(folder, {**kept, key: value}, notices, f"Its {key.replace('_', ' ')} was left out"):
            kept[key] = value
    size = {side: restored.request[side] for side in ("width", "height") if side in restored.request}
    if not _can(folder, kept | size, [], ""):
        given = " x ".join(map(str, size.values()))
        scale = min(1.0, folder.max_size / max(size.values()))
        size = {side: nearest_side(folder, value * scale) for side, value in size.items()}
        notices.append(f"The image is {given}; this model generates {' x '.join(map(str, size.values()))} instead.")
    return Restored(restored.source, {**kept, **size}, notices, restored.fast)


def _can(folder: ModelFolder, request: dict[str, Any], notices: list[str], what: str) -> bool:
    try:
        make_request(folder, **request)
    except UsageError as error:
        notices.append(shown(f"{what}: {error}", 500))
        return False
    return True


def _from_others(source: str, raw: Raw, notices: list[str]) -> dict[str, Any]:
    schedule = raw.get("schedule") if isinstance(raw.get("schedule"), str) else ""
    try:
        raw["sampler"] = find_sampler(f"{raw.get('sampler')} {schedule}")
    except UsageError:
        if schedule.lower() not in PLAIN_SCHEDULES:
            notices.append(f"The noise levels of {source} are not taken over; the model's own are used.")
    request = checked_settings({key: _number(value) for key, value in raw.items() if value not in (None, "")}, notices)
    if raw.get("model") not in (None, ""):
        notices.append(f'{source} used the model "{shown(raw["model"])}".')
    if "seed" in request:
        notices.append(f"A seed names other noise in {source} than here, so the image will be another one.")
    return request


def _number(value: Any) -> Any:
    """A number that is written as a text, or 20.0 for 20, as such; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}(\.[0-9]{1,40})?\s*", value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def checked_settings(raw: Raw, notices: list[str]) -> dict[str, Any]:
    """The fields that are what they must be; the others are left out and named."""
    prompt = raw.get("prompt")
    if not isinstance(prompt, str):
        prompt = ""
        notices.append("There is no prompt in what the file says.")
    request: dict[str, Any] = {"prompt": _readable(prompt, "prompt", notices)}
    for name in NAMES:
        value = raw.get(name)
        if value is None or (name == "seed" and value == RANDOM_SEED):
            continue
        if name == "negative_prompt" and isinstance(value, str):
            value = _readable(value, "negative prompt", notices)
        try:
            request[name] = getattr(Settings(**{name: value}), name)
        except UsageError as error:
            notices.append(shown(f"Its {name.replace('_', ' ')} was left out: {error}", 500))
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
        f"{name} is a {texts.format} file without settings; they are lost when an image is saved in another form, so "
        "take the file that was generated."
    )
