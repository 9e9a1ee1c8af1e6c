"""ComfyUI's graphs -> our names: from the nodes that sample, backwards along the links to what feeds them.

`prompt` is the graph as it was run: {"3": {"class_type": "KSampler", "inputs": {"steps": 20, "model": ["4", 0]}}}, a
link being a node and one of its outputs. `workflow` is the drawing of it, where a node's values have no names.

Anybody can write nodes, and the graph does not say what they compute. So a prompt is taken only where every node on the
way to it is known to keep a text as it is or to join texts in a known way; else it is left out, with a notice.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from pixart.errors import shown

MAX_NODES = 5_000
MAX_DEPTH = 100  # nodes on the way from a sampler to a text
MAX_VISITS = 2_000  # of nodes, for one text: ways may part and meet again
MAX_LENGTH = 200_000  # characters of a text that nodes make
MAX_SAMPLERS = 10
SEEDS = ("seed", "noise_seed")
TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "clip_g", "prompt")  # inputs of nodes that encode a text
# The words that the class of a node may have that only holds a value.
HOLDERS = {
    "primitive", "string", "text", "prompt", "multiline", "multi", "line", "literal", "value", "number", "int",
    "integer", "float", "constant", "input", "box", "field", "node", "seed", "simple", "cr", "ttn", "easy", "jjk",
    "was", "positive", "negative", "rgthree",
}  # fmt: skip
SHOWS = {"show", "display", "preview", "reroute"}
# The values of the drawing's nodes by their place, for the nodes that matter; None is for what does not.
WIDGETS = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler"),
    "KSamplerAdvanced": (None, "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodePixArtAlpha": ("width", "height", "text"),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "StringReplace": ("string", "find", "replace"),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
}

Inputs = dict[str, Any]
Nodes = dict[str, tuple[str, Inputs]]  # name -> class and inputs


class _Unknown(Exception):
    """A text that cannot be known from the graph; says why, as the end of a sentence."""


def read_graph(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]] | None:
    """`prompt` or `workflow`, as parsed JSON, in our field names, and what was not understood.

    None where no node samples an image. What several samplers of different images do not agree on is left out.
    """
    nodes = _from_workflow(values) if isinstance(values.get("nodes"), list) else _from_prompt(values)
    samplers = _find_samplers(nodes)
    if not samplers:
        return None
    notices: dict[str, None] = {}
    found = [_read_sampler(nodes, sampler, notices) for sampler in samplers]
    raw = {key: value for key, value in found[0].items() if all(other[key] == value for other in found)}
    if apart := [key.replace("_", " ") for key in found[0] if key not in raw]:
        notices[f"The graph samples several images, which differ in {', '.join(apart)}; that was left out."] = None
    raw.setdefault("prompt", "")
    return raw, list(notices)


def _read_sampler(nodes: Nodes, sampler: Inputs, notices: dict[str, None]) -> dict[str, Any]:
    texts = {}
    for field, side in (("prompt", "positive"), ("negative_prompt", "negative")):
        try:
            texts[field] = _Texts(nodes).conditioned(sampler, side)
        except _Unknown as why:
            texts[field] = ""
            notices[f"ComfyUI's {field.replace('_', ' ')} was left out: {why}."] = None
    own = ("positive", "negative", "latent_image", "vae", "clip")
    latent = {"latent": sampler.get("latent_image")}
    return {
        **texts,
        "seed": _find(nodes, sampler, SEEDS, own),
        "steps": _find(nodes, sampler, ("steps",), own),
        "guidance_scale": _find(nodes, sampler, ("cfg",), own),
        "sampler": _find(nodes, sampler, ("sampler_name",), own),
        "schedule": _find(nodes, sampler, ("scheduler",), own),
        "width": _find(nodes, latent, ("width",), ("model", "positive", "negative")),
        "height": _find(nodes, latent, ("height",), ("model", "positive", "negative")),
        "model": _find(nodes, sampler, ("ckpt_name", "unet_name", "model_name"), own),
    }


class _Texts:
    """The text behind an input; every method raises _Unknown where it cannot be known."""

    def __init__(self, nodes: Nodes):
        self.nodes, self.visits = nodes, 0

    def conditioned(self, inputs: Inputs, side: str, depth: int = 0) -> str:
        """The text that a sampler, or its guider, is conditioned on; "" where it is on none."""
        if side in inputs:
            return self.encoded(inputs[side], side, depth)
        if "guider" in inputs and depth < 3:
            return self.conditioned(self._node(inputs["guider"], depth)[1], side, depth + 1)
        if side == "positive" and "conditioning" in inputs:
            return self.encoded(inputs["conditioning"], side, depth)
        if side == "negative" and ("conditioning" in inputs or "positive" in inputs):
            return ""
        raise _Unknown("nothing that is known conditions the sampler")

    def encoded(self, value: Any, side: str, depth: int) -> str:
        """The text of a conditioning, a link to one being its `value`; `side` is what it is wanted for."""
        kind, inputs = self._node(value, depth)
        depth += 1
        if "zeroout" in kind.lower():
            return ""
        if {"positive", "negative"} <= inputs.keys():
            side = self._side(value, side, inputs)
            inner = inputs[side]
            return inner if isinstance(inner, str) else self.encoded(inner, side, depth)
        keys = [key for key in TEXTS if key in inputs]
        links = {key: one for key, one in inputs.items() if _linked(one) in self.nodes}
        ways = [one for key, one in links.items() if "cond" in key.lower()] or list(links.values())[: len(links) == 1]
        changes = any(re.search("style|prefix|suffix|wildcard|template|system", key.lower()) for key in inputs)
        if keys and "encode" in kind.lower() and not changes and not any("cond" in key.lower() for key in links):
            texts = {text for key in keys if (text := self.text(inputs[key], depth))}
        elif ways and not keys:
            texts = {self.encoded(one, side, depth) for one in ways}
        else:
            raise _Unknown(f'the node "{shown(kind, 60)}" is not known')
        if len(texts) > 1:
            raise _Unknown(f'the node "{shown(kind, 60)}" puts several texts together')
        return texts.pop() if texts else ""

    def text(self, value: Any, depth: int) -> str:
        """The text of an input: itself, or of the nodes that hold, join or replace texts."""
        if isinstance(value, str):
            return value
        kind, inputs = self._node(value, depth)
        depth += 1
        words = _words(kind)
        given = {key: one for key, one in inputs.items() if isinstance(one, str)}
        links = [one for one in inputs.values() if _linked(one) is not None]
        if kind == "StringReplace" and {"string", "find", "replace"} <= inputs.keys():
            string, old, new = (self.text(inputs[key], depth) for key in ("string", "find", "replace"))
            if len(string) + string.count(old) * len(new) > MAX_LENGTH:
                raise _Unknown("it is too long")
            return string.replace(old, new)
        if words & {"concat", "concatenate", "join"}:
            return self._joined(kind, inputs, depth)
        if words <= HOLDERS and {"positive", "negative"} <= inputs.keys():
            return self.text(inputs[self._side(value, "", inputs)], depth)
        if words <= HOLDERS and not links and len(given) == 1:
            return next(iter(given.values()))
        if (words & SHOWS and len(links) == 1) or (words <= HOLDERS and len(links) == 1 and not given):
            return self.text(links[0], depth)
        raise _Unknown(f'the node "{shown(kind, 60)}" makes it in a way that is not known')

    def _joined(self, kind: str, inputs: Inputs, depth: int) -> str:
        """The texts of a node that joins, in their order. Any input of an unknown name may change the result."""
        inputs = dict(inputs)
        between = [inputs.pop(key) for key in ("delimiter", "separator") if key in inputs]
        clean = str(inputs.pop("clean_whitespace", False)).lower() == "true"
        names = [key for key in inputs if re.fullmatch(r"(?:string|text|prompt)s?_?(?:[a-z]|\d{1,3})", key)]
        parts = [self.text(inputs.pop(key), depth) for key in sorted(names, key=lambda key: (len(key), key))]
        parts = [part.strip() for part in parts] if clean else parts
        plain = len(between) == 1 and isinstance(between[0], str) and "\\" not in between[0]
        # Whether an empty text leaves its delimiter behind is different from node to node.
        if inputs or not parts or not plain or not (all(parts) or kind == "StringConcatenate"):
            raise _Unknown(f'the node "{shown(kind, 60)}" joins texts in a way that is not known')
        if sum(map(len, parts)) + len(parts) * len(between[0]) > MAX_LENGTH:
            raise _Unknown("it is too long")
        return between[0].join(parts)

    def _side(self, link: Any, wanted: str, inputs: Inputs) -> str:
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
            first = min(used) if len(used) == 2 else 0
            return "positive" if slot == first else "negative"
        raise _Unknown("a node gives both prompts, and which is at which output is not known")

    def _node(self, link: Any, depth: int) -> tuple[str, Inputs]:
        self.visits += 1
        name = _linked(link)
        if depth > MAX_DEPTH or self.visits > MAX_VISITS:
            raise _Unknown("its nodes go in circles, or are too many")
        if name not in self.nodes:
            raise _Unknown("a node that it comes from is missing")
        return self.nodes[name]


def _from_prompt(values: dict[str, Any]) -> Nodes:
    nodes: Nodes = {}
    for name, node in list(values.items())[:MAX_NODES]:
        match node:
            case {"class_type": str(kind), "inputs": dict(inputs)}:
                nodes[name] = (kind, {key: one for key, one in inputs.items() if key != "control_after_generate"})
    return nodes


def _from_workflow(values: dict[str, Any]) -> Nodes:
    links = {}
    for link in values.get("links") if isinstance(values.get("links"), list) else []:
        match link:
            case [int(number), int() | str() as origin, int(slot), *_]:
                links[number] = [str(origin), slot]
    nodes: Nodes = {}
    for node in values["nodes"][:MAX_NODES]:
        match node:
            case {"mode": 2 | 4}:  # switched off
                pass
            case {"id": int() | str() as name, "type": str(kind)}:
                inputs: Inputs = {}
                slots, widgets = node.get("inputs"), node.get("widgets_values")
                if isinstance(widgets, list):
                    inputs |= {key: value for key, value in zip(WIDGETS.get(kind, ()), widgets, strict=False) if key}
                for slot in slots if isinstance(slots, list) else []:
                    match slot:
                        case {"name": str(key), "link": int(number)} if number in links:
                            inputs[key] = links[number]
                nodes[str(name)] = (kind, inputs)
    return nodes


def _find_samplers(nodes: Nodes) -> list[Inputs]:
    """The nodes that sample, without those that go on from another one's image."""
    samplers = [inputs for _, inputs in nodes.values() if "latent_image" in inputs and {*SEEDS, "noise"} & {*inputs}]
    samplers = samplers[:MAX_SAMPLERS]
    first = []
    for inputs in samplers:
        before = list(_behind(nodes, {"latent": inputs["latent_image"]}))
        if not any(other is sampler for other in before for sampler in samplers if sampler is not inputs):
            first.append(inputs)
    return first or samplers[:1]


def _behind(nodes: Nodes, inputs: Inputs) -> Iterator[Inputs]:
    """The inputs themselves and those of all nodes that feed them, nearest first."""
    waiting, seen = deque([inputs]), set()
    while waiting:
        inputs = waiting.popleft()
        yield inputs
        for value in inputs.values():
            if (name := _linked(value)) in nodes and name not in seen:
                seen.add(name)
                waiting.append(nodes[name][1])


def _find(nodes: Nodes, inputs: Inputs, keys: tuple[str, ...], skip: tuple[str, ...]) -> str | int | float | None:
    """The nearest value under one of `keys`, along all links but those under `skip`.

    None where it comes out of a node that computes it.
    """
    waiting, seen = deque([inputs]), set()
    while waiting:
        inputs = waiting.popleft()
        for key in keys:
            if key in inputs:
                return _held(nodes, inputs[key], key)
        for key, value in inputs.items():
            if (name := _linked(value)) in nodes and name not in seen and key not in skip:
                seen.add(name)
                waiting.append(nodes[name][1])
    return None


def _held(nodes: Nodes, value: Any, key: str) -> str | int | float | None:
    """A value, or the only one of the node that holds it, or the one of the same name in any node."""
    for _ in range(MAX_DEPTH):
        if isinstance(value, str | int | float):
            return value
        if (name := _linked(value)) not in nodes:
            return None
        kind, inputs = nodes[name]
        if key in inputs:
            value = inputs[key]
        elif len(inputs) == 1 and _words(kind) <= HOLDERS | SHOWS:
            value = next(iter(inputs.values()))
        else:
            return None
    return None


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
