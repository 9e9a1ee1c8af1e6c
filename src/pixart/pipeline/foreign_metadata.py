"""What other image tools write into their images -> our names for it; values are checked in restore.py, not here.

The conventions are those of A1111 (and Forge, and many who copy its text), Fooocus, InvokeAI and ComfyUI.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from pixart.pipeline.comfyui_graph import read_graph
from pixart.pipeline.image_metadata import parse_json

Raw = dict[str, Any]  # our field name, or "model", "schedule" -> the value as the file has it

MAX_PARAMETERS = 100_000  # characters of A1111's line of settings
KEY = re.compile(r"\w[\w \-/]{0,100}")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
LABEL = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)
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
# Our name -> the keys of JSON metadata that mean it: InvokeAI's, then Fooocus'.
JSON_NAMES = {
    "prompt": ("positive_prompt", "prompt"),
    "negative_prompt": ("negative_prompt",),
    "seed": ("seed",),
    "steps": ("steps",),
    "guidance_scale": ("cfg_scale", "guidance_scale"),
    "guidance_rescale": ("cfg_rescale_multiplier",),
    "width": ("width",),
    "height": ("height",),
    "model": ("base_model", "model"),
}
# What Fooocus calls performance is a number of steps.
FOOOCUS_STEPS = {"quality": 60, "speed": 30, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}


@dataclass
class Foreign:
    """The tool, what it wrote, and a sentence for each thing that was not understood."""

    source: str
    raw: Raw
    notices: list[str] = field(default_factory=list)


def read_foreign(texts: dict[str, str]) -> Foreign | None:
    """From the texts of an image, by keyword; None where none of the four tools is recognised."""
    scheme = texts.get("fooocus_scheme", "")
    objects = {keyword: values for keyword, text in texts.items() for keyword, values in _objects(keyword, text)}
    for keyword, values in objects.items():
        if invokeai := values if keyword == "invokeai_metadata" else _invokeai(values):
            return Foreign("InvokeAI", _read_json(invokeai, "scheduler"))
    values = objects.get("parameters", {})
    if scheme == "fooocus" or {"prompt", "base_model"} <= values.keys():
        return Foreign("Fooocus", _read_json(values, "sampler"))
    for keyword in ("parameters", "comment", "description"):
        if (raw := read_a1111(texts.get(keyword, ""))) is not None:
            return Foreign("Fooocus" if scheme == "a1111" else "A1111", raw, raw.pop("notices"))
    for name in ("prompt", "workflow"):
        # As a text of its own, or together in one object of another text.
        graphs = [objects.get(name), *(_object(values.get(name)) for values in objects.values()), *objects.values()]
        for graph in graphs:
            if isinstance(graph, dict) and (found := read_graph(graph)):
                return Foreign("ComfyUI", *found)
    return None


def read_a1111(text: str) -> Raw | None:
    """A1111's `parameters`: the prompt, "Negative prompt: ...", and a line of settings as "Key: value" pairs.

    None where no line holds at least three pairs and two known keys: then it may be any text at all. What extensions
    write after that line is no part of the settings.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    known = (at for at in range(len(lines) - 1, -1, -1) if _is_settings(read_pairs(lines[at])))
    at = next(known, None)
    if at is None:
        return None
    after = _end_of_quotes(lines, at)
    pairs = read_pairs("\n".join(lines[at:after]))
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines[:at]:
        if line.strip().startswith(NEGATIVE) and part is prompt:
            part, line = negative, line.strip().removeprefix(NEGATIVE)
        part.append(line.strip())
    raw: Raw = {"prompt": "\n".join(prompt), "negative_prompt": "\n".join(negative), "notices": []}
    for key, value in pairs.items():
        if name := A1111_NAMES.get(key.lower()):
            raw[name] = value
    if size := raw.pop("size", None):
        raw["width"], _, raw["height"] = size.partition("x")
    if any(line.strip() for line in lines[after:]):
        raw["notices"].append("What stands after the line of settings in the file was left out.")
    return raw


def read_pairs(line: str) -> dict[str, str]:
    """ "Steps: 20, Style: \"a, b\", ..." -> its keys and values, in one pass; what fits no pair is passed over."""
    pairs: dict[str, str] = {}
    at = 0
    line = line if len(line) <= MAX_PARAMETERS else ""
    while (colon := line.find(":", at)) != -1:
        key = line[at:colon].rpartition(",")[2].strip()
        at = colon + 1
        while line[at : at + 1] == " ":
            at += 1
        quoted = QUOTED.match(line, at)
        if quoted:
            value, at = _unquoted(quoted.group()), quoted.end()
        else:
            end = line.find(",", at)
            end = len(line) if end == -1 else end
            value, at = line[at:end].strip(), end
        if KEY.fullmatch(key) and value:
            pairs.setdefault(key, value)
    return pairs


def _is_settings(pairs: dict[str, str]) -> bool:
    return len(pairs) >= 3 and sum(key.lower() in A1111_NAMES for key in pairs) >= 2


def _end_of_quotes(lines: list[str], at: int) -> int:
    """The line after the settings, which go on over line breaks inside quotation marks."""
    odd = False
    for number in range(at, len(lines)):
        odd ^= len(re.findall(r'(?<!\\)"', lines[number])) % 2 == 1
        if not odd:
            return number + 1
    return at + 1  # the mark is never closed, so it is part of a value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _read_json(values: dict[str, Any], sampler: str) -> Raw:
    raw: Raw = {
        name: next((values[key] for key in keys if values.get(key) is not None), None)
        for name, keys in JSON_NAMES.items()
    }
    raw["sampler"] = values.get(sampler)
    raw["schedule"] = values.get("scheduler") if sampler != "scheduler" else None
    if isinstance(raw["model"], dict):
        raw["model"] = raw["model"].get("name") or raw["model"].get("model_name")
    if raw["steps"] is None:
        raw["steps"] = FOOOCUS_STEPS.get(str(values.get("performance"))[:40].lower())
    numbers = re.findall(r"\d{1,10}", str(values.get("resolution"))[:100])  # Fooocus': "(1152, 896)"
    if raw["width"] is None and len(numbers) == 2:
        raw["width"], raw["height"] = numbers
    return raw


def _invokeai(values: dict[str, Any]) -> dict[str, Any] | None:
    """InvokeAI's metadata; or, from its graph, the node that is written into it."""
    if {"positive_prompt", "generation_mode"} <= values.keys():
        return values
    nodes = values.get("nodes")
    nodes = list(nodes.values())[:5000] if isinstance(nodes, dict) else []
    return next((node for node in nodes if isinstance(node, dict) and node.get("type") == "core_metadata"), None)


def _objects(keyword: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """The JSON objects in a text; "prompt:{...}" and "workflow:{...}" are known by these labels."""
    found, at = [], 0
    while label := LABEL.match(text, at):
        try:
            values, at = json.JSONDecoder(parse_constant=lambda name: None).raw_decode(text, label.end())
        except (ValueError, RecursionError):
            return found
        found.append((label.group(1).lower(), values))
    return found or ([(keyword, values)] if (values := _object(text)) is not None else [])


def _object(value: Any) -> dict[str, Any] | None:
    """A JSON object, also one that is written as a text inside of another."""
    try:
        if isinstance(value, str):
            value = parse_json(value) if value.lstrip().startswith("{") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
