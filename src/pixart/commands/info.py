"""`pixart info`: what a model folder, a hub id or an official file is."""

import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from pixart.checkpoints.official import PLAIN, OfficialFile
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
    """A model folder, a hub id, a transformer's folder, an official .pth or safetensors file, or a DiT."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id whose other parts it would sample with."""
    file: Annotated[OfficialFile, arg(name="")] = PLAIN
    json: bool = False
    """Print one JSON object instead of lines."""


def info(options: Info) -> int:
    """Run `pixart info`; prints a line per fact."""
    from pixart.checkpoints.describe import describe

    facts, folder = describe(options.source, parts=options.parts, how=options.file)
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


def _memory(folder: "ModelFolder") -> dict[str, Any] | None:
    """The estimated peaks of generating one image with torch on this machine, in bytes; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from pixart.pipeline.networks import sizes_of
    from pixart.runtime.device import choose_device, choose_precision, find_cpu, find_devices
    from pixart.runtime.plan import estimate, in_words, ways

    device, host_free, estimates = choose_device(find_devices()), find_cpu().free_bytes, []
    precision = choose_precision(device)
    for side in MEMORY_SIZES:
        sizes = sizes_of(folder, side, side)
        for memory in ways(sizes, once=False):
            need = estimate(sizes, device, precision, memory)
            fits = need.fits(device, host_free)
            estimates.append({"way": in_words(memory), "size": side, "needs": need.device, "fits": fits})
    return {"device": device.name, "free": device.free_bytes, "dtype": precision.storage, "estimates": estimates}


def _memory_lines(memory: dict[str, Any] | None) -> list[str]:
    """A table: a line for every way to generate, a column for every size; the first that fits is taken."""
    if memory is None:
        return []
    rows: dict[str, list[str]] = {}
    for one in memory["estimates"]:
        fits = "  fits" if one["fits"] else "    no"
        rows.setdefault(one["way"], []).append(f"{one['needs'] / 1e9:8.2f} GB{fits}")
    longest = max(map(len, rows)) + 2
    return [
        f"memory             {memory['free'] / 1e9:.1f} GB free on {memory['device']}; what generating one image with "
        f"torch in {memory['dtype']} takes there, estimated:",
        f"  {'':{longest}}" + "".join(f"{f'{size} px':>17}" for size in MEMORY_SIZES),
        *(f"  {way:{longest}}{''.join(cells)}" for way, cells in rows.items()),
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
