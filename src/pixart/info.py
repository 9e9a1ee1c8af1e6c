"""`pixart info`: what a model folder, a hub id, an official file or a run folder is, without drawing with it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from pixart.checkpoints.hub import left_to_fetch, looks_like_hub_id, resolve, revision_of
from pixart.errors import PixArtError

if TYPE_CHECKING:
    from pixart.checkpoints.model_folder import ModelFolder
    from pixart.model.pixart import PixArtConfig

MEMORY_SIZES = (256, 512, 1024)  # sides of the pictures whose memory is estimated


@dataclass
class Info:
    """Say what a model is: its kind, sizes, options, parts and files. Everything is checked on the way.

    Of a hub id whose weights are not in the cache, only the small files are fetched.
    """

    source: Positional[Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="(default: ours)")]] = None
    """A model folder, a hub id, a transformer's folder, an official .pth or safetensors file, a DiT, a run folder."""
    parts: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """For an official file: the model folder or hub id that it would be drawn with."""
    ema: bool = False
    """Of an official file: the moving average that it holds."""
    num_heads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 16)")] = None
    """Heads of an official file, the one size that its tensors do not tell."""
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: by pos_embed)")] = None
    """Side of the pictures that an official file was trained on; needed if it has no pos_embed."""
    json: bool = False
    """Print one JSON object instead of lines."""


def info(options: Info) -> int:
    """Run `pixart info`; prints a line per fact."""
    facts = describe(
        options.source,
        parts=options.parts,
        ema=options.ema,
        num_heads=options.num_heads,
        image_size=options.image_size,
    )
    if options.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if name not in ("files", "memory"):
            print(f"{name.replace('_', ' '):17}  {_shown(value)}")
    for number, (file, size) in enumerate((facts.get("files") or {}).items()):
        print(f"{'' if number else 'files, in bytes':17}  {size:13,}  {file}")
    for line in _memory_lines(facts.get("memory")):
        print(line)
    return 0


def describe(
    source: str | Path | None = None,
    *,
    parts: str | Path | None = None,
    ema: bool = False,
    num_heads: int | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """What `source` (None: the shipped model) is, as plain values; which keys there are depends on its kind.

    Raises:
        PixArtError: it is not there, damaged, or nothing that pixart knows.
    """
    from pixart.checkpoints.model_folder import DEFAULT_MODEL, open_model_folder

    path = DEFAULT_MODEL if source is None else resolve(source, "configs")
    if not path.exists():
        raise PixArtError(f"{path} is not there.")
    if path.is_dir() and (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return _run(path)
    hub_id = str(source) if source is not None and looks_like_hub_id(source) else None
    missing = None if hub_id is None else left_to_fetch(hub_id)
    if hub_id is not None and missing != 0:
        return _of_configs(hub_id, path, missing)
    from pixart.checkpoints.dit import is_dit
    from pixart.checkpoints.sources import read_source

    if is_dit(path):
        return _dit(path, num_heads, ema, image_size)
    checkpoint = read_source(path, num_heads=num_heads, ema=ema, image_size=image_size)
    caption = checkpoint.null_caption
    facts: dict[str, Any] = {
        "kind": "official file" if path.is_file() else "transformer folder",
        "path": str(path),
        "family": "PixArt-Σ" if _is_sigma(checkpoint.config, caption) else "PixArt-α",
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtype": ", ".join(checkpoint.dtypes),
        **_sizes_of(checkpoint.config),
        "null_caption": None if caption is None else f"{len(caption)} tokens",
    }
    if path.is_file():
        facts["moving_average"] = checkpoint.has_ema
    if parts is not None:
        given = {"ema": ema, "num_heads": num_heads, "image_size": image_size}
        facts |= {"parts": str(parts), **_drawn(open_model_folder(path, parts=parts, **given))}
    elif (path / "model_index.json").is_file():
        facts |= {"kind": "model folder", **_drawn(open_model_folder(path))}
    if hub_id is not None:
        facts |= {"kind": "hub model", "hub_id": hub_id, "revision": revision_of(path)}
    if path.is_file():
        return facts | {"files": {path.name: path.stat().st_size}}
    return facts | {"licence": _licence(path), "files": _sizes(path, lambda path: path.suffix != ".md")}


def _sizes_of(config: "PixArtConfig") -> dict[str, Any]:
    return {
        "width": config.width,
        "depth": config.depth,
        "heads": config.num_heads,
        "patch": config.patch_size,
        "latent_channels": config.in_channels,
        "learned_variance": config.out_channels == 2 * config.in_channels,
        "text_width": config.text_dim,
        "image_size": 8 * config.sample_size,
        "position_scale": config.position_scale,
        "micro_conditions": config.micro_conditions,
        "qk_norm": config.qk_norm,
        "kv_compression": config.kv_compress if config.kv_compress_blocks else None,
    }


def _drawn(folder: "ModelFolder") -> dict[str, Any]:
    """How a whole model is drawn."""
    return {
        "memory": _memory(folder),
        "image_size": folder.native_size,
        "tokens": folder.max_tokens,
        "text_encoder": folder.text_encoder_class,
        "prediction": folder.scheduler.get("prediction_type", "epsilon"),
        "defaults": folder.defaults,
        "styles": list(folder.styles),
        "graphs": folder.has_graphs,
        "fast": folder.fast_settings,
    }


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


def _of_configs(hub_id: str, folder: Path, missing: int | None) -> dict[str, Any]:
    """Of a model on the Hub of which only the small files are here; `missing` bytes (None: unknown) are not."""
    from pixart.checkpoints.diffusers import official_shapes, read_config
    from pixart.checkpoints.sources import transformer_folder

    place = transformer_folder(folder)
    if place is None:
        raise PixArtError(f"{hub_id} on the Hub holds no transformer: there is no transformer/config.json.")
    config = read_config(place / "config.json")
    count = sum(math.prod(shape) for shape in official_shapes(config).values())
    return {
        "kind": "hub model",
        "hub_id": hub_id,
        "revision": revision_of(folder),
        "path": str(folder),
        "family": "PixArt-Σ" if _is_sigma(config, None) else "PixArt-α",
        "parameters": count,
        **_sizes_of(config),
        "licence": _licence(folder),
        "bytes_not_in_the_cache": missing,
    }


def _dit(path: Path, num_heads: int | None, ema: bool, image_size: int | None) -> dict[str, Any]:
    from pixart.checkpoints.dit import read_dit
    from pixart.checkpoints.official import NUM_HEADS

    model = read_dit(path, num_heads=num_heads or NUM_HEADS, ema=ema, image_size=image_size)
    return {
        "kind": "class-conditional DiT, from which pixart convert --to reparameterized makes a start",
        "path": str(path),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": sum(model.config.class_counts),
        "width": model.config.width,
        "depth": model.config.depth,
        "heads": model.config.num_heads,
        "image_size": 8 * model.config.sample_size,
    }


def _run(run: Path) -> dict[str, Any]:
    try:
        recipe = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(f"{run / 'config.json'} cannot be read as JSON ({error}).") from None
    models = [path.parent for path in sorted(run.glob("*/model_index.json"))]
    return {
        "kind": "run folder",
        "path": str(run),
        "recipe": recipe.get("kind") if isinstance(recipe, dict) else None,
        "reports": sum(1 for _ in (run / "metrics.jsonl").open(encoding="utf-8")),
        "model": str(models[0]) if models else None,
        "files": _sizes(run, lambda path: path.suffix == ".safetensors"),
    }


def _is_sigma(config, caption) -> bool:
    """Only PixArt-Σ has these; a Σ of 512 px without its null caption looks like an α, and is one to every reader."""
    no_conditions = config.sample_size >= 128 and not config.micro_conditions
    sigma_scale = config.interpolation_scale is not None
    return bool(config.qk_norm or config.kv_compress_blocks or no_conditions or sigma_scale) or (
        caption is not None and len(caption) > 120
    )


def _licence(folder: Path) -> str | None:
    """What the model card's header says."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:50]
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)


def _sizes(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and wanted(path))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{name} {_shown(number)}" for name, number in value.items()) or "none"
        case list():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)
