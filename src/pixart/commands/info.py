"""`pixart info`: what a model folder, a hub id, an official file or a run folder is."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from pixart.config import shown

if TYPE_CHECKING:
    from pixart.checkpoints.model_folder import ModelFolder

MEMORY_SIZES = (256, 512, 1024)  # sides of the images whose memory is estimated


@dataclass
class Info:
    """Say what a model is: its kind, sizes, options, parts and files. Everything is checked on the way.

    Of a hub id whose weights are not in the cache, only the small files are fetched.
    """

    source: Positional[Annotated[str | None, shown("SOURCE", "ours")]] = None
    """A model folder, a hub id, a transformer's folder, an official .pth or safetensors file, a DiT, a run folder."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id whose other parts it would sample with."""
    ema: bool = False
    """Of an official file: the moving average that it holds."""
    num_heads: Annotated[int | None, shown("N", "16")] = None
    """Heads of an official file, the one size that its tensors do not tell."""
    image_size: Annotated[int | None, shown("PIXELS", "by pos_embed")] = None
    """Side of the images that an official file was trained on; needed if it has no pos_embed."""
    json: bool = False
    """Print one JSON object instead of lines."""


def info(options: Info) -> int:
    """Run `pixart info`; prints a line per fact."""
    from pixart.checkpoints.describe import describe

    facts, folder = describe(
        options.source,
        parts=options.parts,
        ema=options.ema,
        num_heads=options.num_heads,
        image_size=options.image_size,
    )
    if folder is not None:
        facts["memory"] = _memory(folder)
    if options.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if name not in ("files", "memory"):
            print(f"{name.replace('_', ' '):17}  {_text(value)}")
    for number, (file, size) in enumerate(facts.get("files", {}).items()):
        print(f"{'' if number else 'files, in bytes':17}  {size:13,}  {file}")
    for line in _memory_lines(facts.get("memory")):
        print(line)
    return 0


def _memory(folder: "ModelFolder") -> dict[str, Any]:
    """The estimated peaks of generating one image with torch on this machine's CPU, in bytes."""
    from pixart.pipeline.memory_estimate import WAYS, estimate
    from pixart.runtime.device import find_cpu

    free, estimates = find_cpu().free_bytes, []
    for way in WAYS:
        for size in MEMORY_SIZES:
            needs = estimate(folder, way.dtype, way.memory, size, size)
            estimates.append({"options": way.options, "size": size, "needs": needs, "fits": needs <= free})
    return {"free": free, "estimates": estimates}


def _memory_lines(memory: dict[str, Any] | None) -> list[str]:
    """A table: a line for every way to generate, a column for every size."""
    if memory is None:
        return []
    rows: dict[str, list[str]] = {}
    for one in memory["estimates"]:
        fits = "  fits" if one["fits"] else "    no"
        rows.setdefault(one["options"], []).append(f"{one['needs'] / 1e9:8.2f} GB{fits}")
    longest = max(map(len, rows)) + 2
    return [
        f"memory             {memory['free'] / 1e9:.1f} GB free here; what generating one image with torch on the CPU "
        "takes, estimated:",
        f"  {'options':{longest}}" + "".join(f"{f'{size} px':>17}" for size in MEMORY_SIZES),
        *(f"  {options:{longest}}{''.join(cells)}" for options, cells in rows.items()),
    ]


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{name} {_text(number)}" for name, number in value.items()) or "none"
        case list():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)
