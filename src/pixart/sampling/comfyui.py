"""ComfyUI's graphs -> our names: from the node that samples, backwards along the links to what feeds it.

`prompt` is the graph as it was run: {"3": {"class_type": "KSampler", "inputs": {"steps": 20, "model": ["4", 0]}}}, a
link being a node and one of its outputs. `workflow` is the drawing of it, where a node's values have no names.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

MAX_NODES = 5_000
SEEDS = ("seed", "noise_seed")
TEXTS = ("text", "text_g", "t5xxl", "prompt", "clip_l")
VALUES = ("value", "string", "text", "int", "float", "number", "seed", "Number")  # of nodes that only hold one
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
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
}

Inputs = dict[str, Any]
Nodes = dict[str, tuple[str, Inputs]]  # name -> class and inputs


def read_graph(values: dict[str, Any]) -> dict[str, Any] | None:
    """`prompt` or `workflow`, as parsed JSON, in our field names; None where no node samples a picture."""
    nodes = _from_workflow(values) if isinstance(values.get("nodes"), list) else _from_prompt(values)
    sampler = _find_sampler(nodes)
    if sampler is None:
        return None
    texts = {}
    for field, keys in (("prompt", ("positive", "conditioning")), ("negative_prompt", ("negative",))):
        link = next((inputs[key] for _, inputs in _behind(nodes, sampler) for key in keys if key in inputs), None)
        texts[field] = "" if link is None else _find(nodes, {"text": link}, TEXTS, ("clip", "model", "vae")) or ""
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


def _from_prompt(values: dict[str, Any]) -> Nodes:
    nodes: Nodes = {}
    for name, node in list(values.items())[:MAX_NODES]:
        match node:
            case {"class_type": str(kind), "inputs": dict(inputs)}:
                nodes[name] = (kind, inputs)
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


def _find_sampler(nodes: Nodes) -> Inputs | None:
    """The node that samples; of several, the one that does not go on from another one's picture."""
    samplers = [inputs for _, inputs in nodes.values() if "latent_image" in inputs and {*SEEDS, "noise"} & {*inputs}]
    for inputs in samplers[:10]:
        before = _behind(nodes, {"latent": inputs["latent_image"]})
        if not any(other is sampler for _, other in before for sampler in samplers[:10] if sampler is not inputs):
            return inputs
    return samplers[0] if samplers else None


def _behind(nodes: Nodes, inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """The inputs themselves and all nodes that feed them, nearest first."""
    waiting, seen = deque([("", inputs)]), set()
    while waiting:
        kind, inputs = waiting.popleft()
        yield kind, inputs
        for value in inputs.values():
            if (name := _linked(value)) in nodes and name not in seen:
                seen.add(name)
                waiting.append(nodes[name])


def _find(nodes: Nodes, inputs: Inputs, keys: tuple[str, ...], skip: tuple[str, ...]) -> str | int | float | None:
    """The nearest value under one of `keys`, along all links but those under `skip`; links under `keys` go first."""
    waiting, seen = deque([(inputs, keys)]), set()
    while waiting:
        inputs, wanted = waiting.popleft()
        later = []
        for key in (*(key for key in wanted if key in inputs), *(key for key in inputs if key not in wanted)):
            value, is_wanted = inputs[key], key in wanted
            name = _linked(value)
            if name is None:
                if is_wanted and isinstance(value, str | int | float):
                    return value
            elif name in nodes and name not in seen and key not in skip and "ZeroOut" not in nodes[name][0]:
                seen.add(name)
                later.append((is_wanted, (nodes[name][1], (*keys, *VALUES) if is_wanted else keys)))
        waiting.extendleft(reversed([item for is_wanted, item in later if is_wanted]))
        waiting.extend(item for is_wanted, item in later if not is_wanted)
    return None


def _linked(value: Any) -> str | None:
    """The name of the node that a link leads to; None if the value is no link."""
    match value:
        case [str() | int() as name, int()]:
            return str(name)
    return None
