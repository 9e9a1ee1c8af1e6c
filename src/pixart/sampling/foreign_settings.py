"""What other image tools write into their pictures -> our names for it; values are not checked here but in restore.py.

The conventions are those of A1111 (and Forge, and many who copy its text), Fooocus, InvokeAI and ComfyUI.
"""

import json
import re
from typing import Any

from pixart.sampling.comfyui import read_graph
from pixart.sampling.picture_texts import parse_json

Raw = dict[str, Any]  # our field name, or "model", "schedule" -> the value as the file has it

MAX_PARAMETERS = 100_000  # characters of A1111's last line
KEY = re.compile(r"\w[\w \-/]{0,100}")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
NEGATIVE = "Negative prompt:"
# What Fooocus calls performance is a number of steps.
FOOOCUS_STEPS = {"quality": 60, "speed": 30, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}


def read_a1111(text: str) -> Raw | None:
    """A1111's `parameters`: the prompt, "Negative prompt: ...", and a last line of at least three "Key: value" pairs.

    None where there is no such last line: then it may be any text at all.
    """
    *lines, last = text.replace("\r\n", "\n").strip().split("\n")
    pairs = read_pairs(last)
    if len(pairs) < 3:
        return None
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines:
        if line.strip().startswith(NEGATIVE) and part is prompt:
            part, line = negative, line.strip().removeprefix(NEGATIVE)
        part.append(line.strip())
    raw: Raw = {"prompt": "\n".join(prompt), "negative_prompt": "\n".join(negative)}
    names = {
        "steps": "steps",
        "sampler": "sampler",
        "schedule type": "schedule",
        "cfg scale": "guidance_scale",
        "seed": "seed",
        "model": "model",
    }
    for key, value in pairs.items():
        if key.lower() in names:
            raw[names[key.lower()]] = value
        elif key.lower() == "size":
            raw["width"], _, raw["height"] = value.partition("x")
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


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def read_fooocus(values: dict[str, Any]) -> Raw:
    """Fooocus' own scheme: `parameters` as JSON."""
    raw: Raw = {name: values.get(name) for name in ("prompt", "negative_prompt", "seed", "guidance_scale", "sampler")}
    raw["schedule"], raw["model"] = values.get("scheduler"), values.get("base_model")
    raw["steps"] = values.get("steps", FOOOCUS_STEPS.get(str(values.get("performance")).lower()))
    numbers = re.findall(r"\d{1,10}", str(values.get("resolution"))[:100])  # "(1152, 896)"
    if len(numbers) == 2:
        raw["width"], raw["height"] = numbers
    return raw


def read_invokeai(values: dict[str, Any]) -> Raw:
    """`invokeai_metadata`; or, from a graph, the node that is written into it."""
    names = {
        "prompt": "positive_prompt",
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "guidance_scale": "cfg_scale",
        "guidance_rescale": "cfg_rescale_multiplier",
        "steps": "steps",
        "width": "width",
        "height": "height",
        "sampler": "scheduler",
    }
    raw: Raw = {ours: values.get(theirs) for ours, theirs in names.items()}
    model = values.get("model")
    raw["model"] = (model.get("name") or model.get("model_name")) if isinstance(model, dict) else model
    return raw


def read_foreign(texts: dict[str, str]) -> tuple[str, Raw] | None:
    """The tool and what it wrote, from the texts of a picture; None where none of the four is recognised."""
    if isinstance(values := _json(texts.get("invokeai_metadata")), dict):
        return "InvokeAI", read_invokeai(values)
    if isinstance(graph := _json(texts.get("invokeai_graph")), dict) and isinstance(graph.get("nodes"), dict):
        for node in graph["nodes"].values():
            if isinstance(node, dict) and node.get("type") == "core_metadata":
                return "InvokeAI", read_invokeai(node)
    parameters = texts.get("parameters", "")
    if isinstance(values := _json(parameters), dict):
        if texts.get("fooocus_scheme") == "fooocus" or {"prompt", "base_model"} <= values.keys():
            return "Fooocus", read_fooocus(values)
    elif (raw := read_a1111(parameters)) is not None:
        return ("Fooocus" if texts.get("fooocus_scheme") == "a1111" else "A1111"), raw
    for keyword in ("prompt", "workflow"):
        if isinstance(values := _json(texts.get(keyword)), dict) and (raw := read_graph(values)):
            return "ComfyUI", raw
    return None


def _json(text: str | None) -> Any:
    try:
        return parse_json(text) if text and text.lstrip().startswith("{") else None
    except ValueError:
        return None
