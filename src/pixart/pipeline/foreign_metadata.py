"""What other image tools write into their images -> our names for it; values are checked in restore.py, not here.

A1111's text (also of Forge, and of many who copy it), ComfyUI's graph, and JSON with well-known keys, as Fooocus and
InvokeAI write it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from pixart.errors import PixArtError, shown
from pixart.files import parse_json
from pixart.pipeline.comfyui_graph import read_graph

Raw = dict[str, Any]  # our field name, or "model", "schedule" -> the value as the file has it

MAX_PARAMETERS = 100_000  # characters of A1111's line of settings
# "Steps: 20, Style: "a, b", ...": each in one pass, since what may follow a position is bounded or possessive.
PAIR = re.compile(r'(\w[\w \-/]{0,100}):[ ]*+("(?:[^"\\]|\\.)*+"|[^,\n]*+)')
LABEL = re.compile(r"(?:^|\n)[ ]{0,9}(prompt|workflow)[ ]{0,9}:[ ]{0,9}(?=\{)", re.IGNORECASE)
NEGATIVE = "Negative prompt:"
A1111_NAMES = {
    "steps": "steps",
    "sampler": "sampler",
    "schedule type": "schedule",
    "cfg scale": "guidance_scale",
    "seed": "seed",
    "model": "model",
    "size": "size",
}
HASHES = re.compile(r"(hash(es)?|version|vae)$", re.IGNORECASE)  # keys that change no image of ours
MOST_NAMED = 12  # keys of a file, in a notice
# Our name -> the keys of JSON metadata that mean it: InvokeAI's, then Fooocus', then NovelAI's.
JSON_NAMES = {
    "prompt": ("positive_prompt", "prompt"),
    "negative_prompt": ("negative_prompt", "uc"),
    "seed": ("seed",),
    "steps": ("steps",),
    "guidance_scale": ("cfg_scale", "guidance_scale", "scale"),
    "guidance_rescale": ("cfg_rescale_multiplier",),
    "width": ("width",),
    "height": ("height",),
    "sampler": ("sampler", "scheduler"),
    "model": ("base_model", "model"),
}
# What Fooocus calls performance is a number of steps.
FOOOCUS_STEPS = {"quality": 60, "speed": 30, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}


def read_foreign(texts: dict[str, str]) -> tuple[str, Raw, list[str]] | None:
    """From the texts of an image, by keyword: the tool, what it wrote, and what was not understood; None where there
    is nothing of the kind."""
    objects = [values for text in texts.values() for values in _objects(text)]
    for values in objects:
        if (raw := read_json(values)) is not None:
            tool = (
                "InvokeAI" if "positive_prompt" in values else "Fooocus" if "base_model" in values else "Another tool"
            )
            known = {"resolution", "performance", "scheduler"}.union(*JSON_NAMES.values())
            return tool, raw, _left_out([key for key, value in values.items() if key not in known and value])
    for keyword in ("parameters", "comment", "description"):
        if found := read_a1111(texts.get(keyword, "")):
            return "Fooocus" if texts.get("fooocus_scheme") == "a1111" else "A1111", *found
    for values in objects:
        if found := read_graph(values):
            return "ComfyUI", *found
    return None


def read_a1111(text: str) -> tuple[Raw, list[str]] | None:
    """A1111's `parameters`: the prompt, "Negative prompt: ...", and a line of settings as "Key: value" pairs.

    The last line that holds at least three pairs and two known keys; None where there is none, since then it may be any
    text at all. What extensions write after that line is no part of the settings.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    known = (at for at in range(len(lines) - 1, -1, -1) if _is_settings(read_pairs(lines[at])))
    at = next(known, None)
    if at is None:
        return None
    prompt, mark, negative = "\n".join(line.strip() for line in lines[:at]).partition(f"\n{NEGATIVE}")
    if not mark and prompt.startswith(NEGATIVE):
        prompt, negative = "", prompt.removeprefix(NEGATIVE)
    raw: Raw = {"prompt": prompt, "negative_prompt": negative.strip()}
    pairs = read_pairs(lines[at])
    for key, value in pairs.items():
        if name := A1111_NAMES.get(key.lower()):
            raw[name] = value
    notices = _left_out([key for key in pairs if key.lower() not in A1111_NAMES])
    raw["width"], _, raw["height"] = raw.pop("size", "").partition("x")
    if any(line.strip() for line in lines[at + 1 :]):
        notices.append("What stands after the line of settings in the file was left out.")
    return raw, notices


def _left_out(keys: list[str]) -> list[str]:
    """A sentence that names settings for which there is nothing here, so that none is lost silently."""
    keys = [key for key in keys if not HASHES.search(key)]
    named = ", ".join(shown(key, 40) for key in keys[:MOST_NAMED]) + (", ..." if len(keys) > MOST_NAMED else "")
    return [f"Settings that have no counterpart here were left out: {named}."] if keys else []


def read_pairs(line: str) -> dict[str, str]:
    """Of two pairs with one key, the first counts; what fits no pair is passed over."""
    pairs: dict[str, str] = {}
    for key, value in PAIR.findall(line if len(line) <= MAX_PARAMETERS else ""):
        if value.strip():
            pairs.setdefault(key.strip(), _unquoted(value.strip()))
    return pairs


def read_json(values: dict[str, Any]) -> Raw | None:
    """Settings by their keys; None unless there are a prompt and two others, so that they are of an image."""
    raw = {
        name: next((values[key] for key in keys if values.get(key) is not None), None)
        for name, keys in JSON_NAMES.items()
    }
    numbers = re.findall(r"\d{1,10}", str(values.get("resolution"))[:100])  # Fooocus': "(1152, 896)"
    if raw["width"] is None and len(numbers) == 2:
        raw["width"], raw["height"] = numbers
    if not isinstance(raw["prompt"], str) or sum(value is not None for value in raw.values()) < 3:
        return None
    if isinstance(raw["model"], dict):
        raw["model"] = raw["model"].get("name") or raw["model"].get("model_name")
    if raw["steps"] is None:
        raw["steps"] = FOOOCUS_STEPS.get(str(values.get("performance"))[:40].lower())
    raw["schedule"] = values.get("scheduler") if "sampler" in values else None
    return raw


def _is_settings(pairs: dict[str, str]) -> bool:
    return len(pairs) >= 3 and sum(key.lower() in A1111_NAMES for key in pairs) >= 2


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text: it itself, or what stands in it after the labels "prompt:" and "workflow:"; in an
    object that holds a graph, as an object or again as a text, that; InvokeAI's settings among the nodes of its graph.
    """
    for piece in LABEL.split(text):
        values = _object(piece)
        if values is None:
            continue
        yield values
        if (graph := _object(values.get("prompt"))) is not None:
            yield graph
        if isinstance(values.get("nodes"), dict):
            nodes = list(values["nodes"].values())[:5000]
            yield from (node for node in nodes if isinstance(node, dict) and node.get("type") == "core_metadata")


def _object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_json(value, "The text", nonfinite=True)
        except PixArtError:
            return None
    return value if isinstance(value, dict) else None
