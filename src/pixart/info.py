"""`pixart info`: what a model folder, an official file or a run folder is, without drawing with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pixart.errors import PixArtError


@dataclass
class Info:
    """Say what a model is: its kind, sizes, options, parts and files. Everything is checked on the way."""

    source: Annotated[Path, arg(metavar="SOURCE")]
    """A model folder, a transformer's folder, an official .pth or safetensors file, or a run folder."""
    num_heads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 16)")] = None
    """Heads of an official file, the one size that its tensors do not tell."""
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: by pos_embed)")] = None
    """Side of the pictures that an official file was trained on; needed if it has no pos_embed."""
    json: bool = False
    """Print one JSON object instead of lines."""


def info(options: Info) -> int:
    """Run `pixart info`; prints a line per fact."""
    facts = describe(options.source, num_heads=options.num_heads, image_size=options.image_size)
    if options.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):17}  {_shown(value)}")
    return 0


def describe(source: Path, *, num_heads: int | None = None, image_size: int | None = None) -> dict[str, Any]:
    """What `source` is, as plain values; which keys there are depends on its kind.

    Raises:
        PixArtError: it is not there, damaged, or nothing that pixart knows.
    """
    if not source.exists():
        raise PixArtError(f"{source} is not there.")
    if source.is_dir() and (source / "config.json").is_file() and (source / "metrics.jsonl").is_file():
        return _run(source)
    from pixart.checkpoints.sources import read_source

    checkpoint = read_source(source, num_heads=num_heads, image_size=image_size)
    config, caption = checkpoint.config, checkpoint.null_caption
    facts: dict[str, Any] = {
        "kind": "official file",
        "path": str(source),
        "family": "PixArt-Σ" if _is_sigma(config, caption) else "PixArt-α",
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()})),
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
        "null_caption": None if caption is None else f"{len(caption)} tokens",
    }
    if source.is_file():
        return facts | {"moving_average": checkpoint.has_ema, "files": {source.name: source.stat().st_size}}
    facts["kind"] = "transformer folder"
    if (source / "model_index.json").is_file():
        from pixart.sampling.model_folder import open_model_folder

        folder = open_model_folder(source)
        facts |= {
            "kind": "model folder",
            "image_size": folder.native_size,
            "tokens": folder.max_tokens,
            "text_encoder": folder.text_encoder_class,
            "prediction": folder.scheduler.get("prediction_type", "epsilon"),
            "defaults": folder.defaults,
            "styles": list(folder.styles),
            "graphs": folder.has_graphs,
        }
    return facts | {"licence": _licence(source), "files": _sizes(source, lambda path: path.suffix != ".md")}


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
