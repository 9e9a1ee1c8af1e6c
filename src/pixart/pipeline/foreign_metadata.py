"""What other image tools write into their images -> our names for it; values are checked in restore.py, not here.

A1111's text (also of Forge, and of many who copy it), ComfyUI's graph, and JSON with well-known keys, as Fooocus and
InvokeAI write it.

ComfyUI's text `prompt` is the graph as it was run: {"3": {"class_type": "KSampler", "inputs": {"steps": 20,
"model": ["4", 0]}}}, a link being a node and one of its outputs. Anybody can write nodes, and the graph does not say
what they compute. So a prompt is taken only where every node on the way to it is known to keep a text as it is or to
join texts in a known way; else it is left out, with a notice.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from pixart.errors import PixArtError, shown
from pixart.files import parse_json

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


MAX_NODES = 5_000
MAX_VISITS = 200  # of nodes, for one text: ways may part and meet again, or go in circles
MAX_LENGTH = 200_000  # characters of a text that nodes make
MAX_SAMPLERS = 10
SEEDS = ("seed", "noise_seed")
TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "clip_g", "prompt")  # inputs of nodes that encode a text
CHANGES = re.compile("style|prefix|suffix|wildcard|template|system")  # inputs of nodes that encode something else
# The words that the class of a node may have that only holds a value, and of one that shows it.
HOLDERS = {
    "primitive", "string", "text", "prompt", "multiline", "multi", "line", "literal", "value", "number", "int",
    "integer", "float", "constant", "input", "box", "field", "node", "seed", "simple", "cr", "ttn", "easy", "jjk",
    "was", "positive", "negative", "rgthree",
}  # fmt: skip
SHOWS = {"show", "display", "preview", "reroute"}
# What feeds a sampler, but neither its model nor its settings.
OTHERS = ("positive", "negative", "latent_image", "vae", "clip")
# Our name -> what it is called in the nodes.
NUMBERS = {
    "seed": SEEDS,
    "steps": ("steps",),
    "guidance_scale": ("cfg",),
    "sampler": ("sampler_name",),
    "schedule": ("scheduler",),
    "model": ("ckpt_name", "unet_name", "model_name"),
}

Inputs = dict[str, Any]


class _Unknown(Exception):
    """A text that cannot be known from the graph; says why, as the end of a sentence."""


def read_graph(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]] | None:
    """`prompt`, as parsed JSON, in our field names, and what was not understood; None where no node samples an image.

    What several samplers of different images do not agree on is left out.
    """
    nodes = {}
    for name, node in list(values.items())[:MAX_NODES]:
        match node:
            case {"class_type": str(kind), "inputs": dict(inputs)}:
                nodes[name] = kind, {key: one for key, one in inputs.items() if key != "control_after_generate"}
    graph = _Graph(nodes)
    notices: dict[str, None] = {}
    found = [graph.read(sampler, notices) for sampler in graph.samplers()]
    if not found:
        return None
    raw = {key: value for key, value in found[0].items() if all(other[key] == value for other in found)}
    if apart := [key.replace("_", " ") for key in found[0] if key not in raw]:
        notices[f"The graph samples several images, which differ in {', '.join(apart)}; that was left out."] = None
    raw.setdefault("prompt", "")
    return raw, list(notices)


class _Graph:
    """Nodes by their name: class and inputs. What gives a text raises _Unknown where it cannot be known."""

    def __init__(self, nodes: dict[str, tuple[str, Inputs]]):
        self.nodes, self.visits = nodes, 0

    def samplers(self) -> list[Inputs]:
        """Of the nodes that sample, without those that go on from another one's image."""
        found = [
            inputs for _, inputs in self.nodes.values() if "latent_image" in inputs and {*SEEDS, "noise"} & {*inputs}
        ]
        found = found[:MAX_SAMPLERS]
        first = []
        for inputs in found:
            before = list(self.behind({"latent": inputs["latent_image"]}))
            if not any(other is sampler for other in before for sampler in found if sampler is not inputs):
                first.append(inputs)
        return first or found[:1]

    def read(self, sampler: Inputs, notices: dict[str, None]) -> dict[str, Any]:
        raw = {name: self.find(sampler, keys, OTHERS) for name, keys in NUMBERS.items()}
        for side in ("width", "height"):
            raw[side] = self.find({"latent": sampler["latent_image"]}, (side,), ("model", "positive", "negative"))
        for field, side in (("prompt", "positive"), ("negative_prompt", "negative")):
            self.visits = 0
            try:
                raw[field] = self.conditioned(sampler, side)
            except _Unknown as why:
                raw[field] = ""
                notices[f"ComfyUI's {field.replace('_', ' ')} was left out: {why}."] = None
        return raw

    def behind(self, inputs: Inputs, skip: tuple[str, ...] = ()) -> Iterator[Inputs]:
        """The inputs themselves and those of all nodes that feed them, nearest first, but not through `skip`."""
        waiting, seen = deque([inputs]), set()
        while waiting:
            inputs = waiting.popleft()
            yield inputs
            for key, value in inputs.items():
                if (name := _linked(value)) in self.nodes and name not in seen and key not in skip:
                    seen.add(name)
                    waiting.append(self.nodes[name][1])

    def find(self, inputs: Inputs, keys: tuple[str, ...], skip: tuple[str, ...]) -> str | int | float | None:
        """The nearest value under one of `keys`; None where it comes out of a node that computes it."""
        for node in self.behind(inputs, skip):
            for key in keys:
                if key in node:
                    return self.held(node[key], key)
        return None

    def held(self, value: Any, key: str) -> str | int | float | None:
        """A value, or the one of the same name, or the only one, of the node that holds it."""
        for _ in range(MAX_VISITS):
            if isinstance(value, str | int | float):
                return value
            kind, inputs = self.nodes.get(_linked(value), ("", {}))
            if key in inputs:
                value = inputs[key]
            elif len(inputs) == 1 and _words(kind) <= HOLDERS | SHOWS:
                value = next(iter(inputs.values()))
            else:
                return None
        return None

    def conditioned(self, inputs: Inputs, side: str) -> str:
        """The text that a sampler, or its guider, is conditioned on; "" where it is on none."""
        if side in inputs:
            return self.encoded(inputs[side], side)
        if "guider" in inputs:
            return self.conditioned(self.node(inputs["guider"])[1], side)
        if side == "positive" and "conditioning" in inputs:
            return self.encoded(inputs["conditioning"], side)
        if side == "negative" and ("conditioning" in inputs or "positive" in inputs):
            return ""
        raise _Unknown("nothing that is known conditions the sampler")

    def encoded(self, value: Any, side: str) -> str:
        """The text of the conditioning that the link `value` leads to; `side` is what it is wanted for."""
        kind, inputs = self.node(value)
        if "zeroout" in kind.lower():
            return ""
        if {"positive", "negative"} <= inputs.keys():
            side = self.side(value, inputs)
            inner = inputs[side]
            return inner if isinstance(inner, str) else self.encoded(inner, side)
        keys = [key for key in TEXTS if key in inputs]
        links = {key: one for key, one in inputs.items() if _linked(one) in self.nodes}
        ways = [one for key, one in links.items() if "cond" in key.lower()]
        if keys and "encode" in kind.lower() and not ways and not CHANGES.search(" ".join(inputs).lower()):
            texts = {text for key in keys if (text := self.text(inputs[key]))}
        elif (ways or len(links) == 1) and not keys:
            texts = {self.encoded(one, side) for one in ways or links.values()}
        else:
            raise _Unknown(f'the node "{shown(kind, 60)}" is not known')
        if len(texts) > 1:
            raise _Unknown(f'the node "{shown(kind, 60)}" puts several texts together')
        return texts.pop() if texts else ""

    def text(self, value: Any) -> str:
        """The text of an input: itself, or of the nodes that hold, join or replace texts."""
        if isinstance(value, str):
            return value
        kind, inputs = self.node(value)
        words = _words(kind)
        if kind == "StringReplace" and {"string", "find", "replace"} <= inputs.keys():
            string, old, new = (self.text(inputs[key]) for key in ("string", "find", "replace"))
            return _short(string, string.count(old) * len(new)).replace(old, new)
        if words & {"concat", "concatenate", "join"}:
            return self.joined(kind, inputs)
        if words <= HOLDERS and {"positive", "negative"} <= inputs.keys():
            return self.text(inputs[self.side(value, inputs)])
        links = [one for one in inputs.values() if _linked(one) is not None]
        given = links if words & SHOWS else links + [one for one in inputs.values() if isinstance(one, str)]
        if (words <= HOLDERS or words & SHOWS) and len(given) == 1:
            return self.text(given[0])
        raise _Unknown(f'the node "{shown(kind, 60)}" makes it in a way that is not known')

    def joined(self, kind: str, inputs: Inputs) -> str:
        """The texts of a node that joins, in their order. Any input of an unknown name may change the result."""
        inputs = dict(inputs)
        between = [inputs.pop(key) for key in ("delimiter", "separator") if key in inputs]
        clean = str(inputs.pop("clean_whitespace", False)).lower() == "true"
        names = [key for key in inputs if re.fullmatch(r"(?:string|text|prompt)s?_?(?:[a-z]|\d{1,3})", key)]
        parts = [self.text(inputs.pop(key)) for key in sorted(names, key=lambda key: (len(key), key))]
        parts = [part.strip() for part in parts] if clean else parts
        plain = len(between) == 1 and isinstance(between[0], str) and "\\" not in between[0]
        # Whether an empty text leaves its delimiter behind is different from node to node.
        if inputs or not parts or not plain or not (all(parts) or kind == "StringConcatenate"):
            raise _Unknown(f'the node "{shown(kind, 60)}" joins texts in a way that is not known')
        return _short(between[0], sum(map(len, parts)) + len(parts) * len(between[0])).join(parts)

    def side(self, link: Any, inputs: Inputs) -> str:
        """Which of a node's "positive" and "negative" comes out at a link: by convention, at the lower output first."""
        name, slot = _linked(link), link[1]
        used = {
            one[1]
            for _, others in self.nodes.values()
            for key, one in others.items()
            if _linked(one) == name and re.search("positive|negative|cond|text|prompt", key.lower())
        }
        passes = not {"model", "ckpt_name", "latent_image"} & inputs.keys()  # these have other outputs before
        if len(used) == 2 or (used <= {0, 1} and passes):
            return "positive" if slot == (min(used) if len(used) == 2 else 0) else "negative"
        raise _Unknown("a node gives both prompts, and which is at which output is not known")

    def node(self, link: Any) -> tuple[str, Inputs]:
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise _Unknown("its nodes go in circles, or are too many")
        name = _linked(link)
        if name not in self.nodes:
            raise _Unknown("a node that it comes from is missing")
        return self.nodes[name]


def _short(text: str, more: int) -> str:
    """The text, unless it is to become too long by `more` characters."""
    if len(text) + more > MAX_LENGTH:
        raise _Unknown("it is too long")
    return text


def _words(kind: str) -> frozenset[str]:
    """The words of a node's class: "Text Concatenate (JPS)", "StringConcatenate", "ShowText|pysssss"."""
    plain = kind[:80].partition("|")[0]
    return frozenset(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", plain))


def _linked(value: Any) -> str | None:
    """The name of the node that a link leads to; None if the value is no link."""
    match value:
        case [str() | int() as name, int()]:
            return str(name)
    return None
