"""What a model folder, a hub id, an official file, a DiT or a run folder is, as plain values."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixart.checkpoints.adapters import is_adapter, made_for, read_adapter
from pixart.checkpoints.diffusers import official_shapes, read_config
from pixart.checkpoints.dit import is_dit, read_dit
from pixart.checkpoints.hub import left_to_fetch, looks_like_hub_id, resolve, revision_of
from pixart.checkpoints.model_folder import DEFAULT_MODEL, ModelFolder, open_model_folder
from pixart.checkpoints.sources import read_source, transformer_folder
from pixart.errors import PixArtError
from pixart.files import read_json_object

if TYPE_CHECKING:
    from pixart.model.pixart import PixArtConfig


def describe(
    source: str | Path | None = None,
    *,
    parts: str | Path | None = None,
    ema: bool = False,
    num_heads: int | None = None,
    image_size: int | None = None,
) -> tuple[dict[str, Any], ModelFolder | None]:
    """What `source` (None: the shipped model) is; the keys depend on its kind. And the model, where it can sample.

    Raises:
        PixArtError: it is not there, damaged, or nothing that pixart knows.
    """
    path = DEFAULT_MODEL if source is None else resolve(source, "configs")
    if not path.exists():
        raise PixArtError(f"{path} is not there.")
    if path.is_dir() and (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return _run(path), None
    if is_adapter(path):
        return _adapter(path), None
    hub_id = str(source) if source is not None and looks_like_hub_id(source) else None
    missing = None if hub_id is None else left_to_fetch(hub_id)
    if hub_id is not None and missing != 0:
        return _of_configs(hub_id, path, missing), None
    given = {"ema": ema, "num_heads": num_heads, "image_size": image_size}
    if is_dit(path):
        return _dit(path, **given), None
    checkpoint = read_source(path, **given)
    caption = checkpoint.null_caption
    facts: dict[str, Any] = {
        "kind": "official file" if path.is_file() else "transformer folder",
        "path": str(path),
        "family": _family(checkpoint.config, caption),
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtype": ", ".join(checkpoint.dtypes),
        **_sizes(checkpoint.config),
        "null_caption": None if caption is None else f"{len(caption)} tokens",
    }
    if path.is_file():
        facts["moving_average"] = checkpoint.has_ema
    folder = None
    if parts is not None:
        folder = open_model_folder(path, parts=parts, **given)
        facts["parts"] = str(parts)
    elif (path / "model_index.json").is_file():
        folder = open_model_folder(path)
        facts["kind"] = "model folder"
    if folder is not None:
        facts |= _sampling(folder)
    if hub_id is not None:
        facts |= {"kind": "hub model", "hub_id": hub_id, "revision": revision_of(path)}
    if path.is_file():
        return facts | {"files": {path.name: path.stat().st_size}}, folder
    return facts | {"licence": _licence(path), "files": _files(path, lambda path: path.suffix != ".md")}, folder


def _adapter(path: Path) -> dict[str, Any]:
    adapter = read_adapter(path)
    deltas = [delta for part in (adapter.layers, adapter.text_layers) for each in part.values() for delta in each]
    named = {
        name.removeprefix("modelspec."): text for name, text in (adapter.header or {}).items() if "modelspec" in name
    }
    return {
        "kind": f"adapter ({adapter.kind})",
        "path": str(path),
        "for": made_for(adapter),
        "layers": len(adapter.layers),
        "text_encoder_layers": len(adapter.text_layers),
        "parameters": sum(tensor.size for delta in deltas for tensor in delta.tensors.values()),
        "dtype": adapter.dtype,
        "scales": ", ".join(f"{scale:g}" for scale in sorted({delta.scale for delta in deltas})[:5]),
        **named,
        "notices": " ".join(adapter.notices) or None,
    }


def _sizes(config: "PixArtConfig") -> dict[str, Any]:
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


def _sampling(folder: ModelFolder) -> dict[str, Any]:
    return {
        "image_size": folder.native_size,
        "tokens": folder.max_tokens,
        "text_encoder": folder.text_encoder_class,
        "prediction": folder.scheduler.get("prediction_type", "epsilon"),
        "defaults": folder.defaults,
        "styles": list(folder.styles),
        "graphs": folder.has_graphs,
        "fast": folder.fast_settings,
    }


def _of_configs(hub_id: str, folder: Path, missing: int | None) -> dict[str, Any]:
    """Of a model on the Hub of which only the small files are here; `missing` bytes (None: unknown) are not."""
    place = transformer_folder(folder)
    if place is None:
        raise PixArtError(f"{hub_id} on the Hub holds no transformer: there is no transformer/config.json.")
    config = read_config(place / "config.json")
    return {
        "kind": "hub model",
        "hub_id": hub_id,
        "revision": revision_of(folder),
        "path": str(folder),
        "family": _family(config, None),
        "parameters": sum(math.prod(shape) for shape in official_shapes(config).values()),
        **_sizes(config),
        "licence": _licence(folder),
        "bytes_not_in_the_cache": missing,
    }


def _dit(path: Path, **given: Any) -> dict[str, Any]:
    model = read_dit(path, **given)
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
    models = [path.parent for path in sorted(run.glob("*/model_index.json"))]
    with (run / "metrics.jsonl").open("rb") as reports:
        return {
            "kind": "run folder",
            "path": str(run),
            "recipe": read_json_object(run / "config.json").get("kind"),
            "reports": sum(1 for _ in reports),
            "model": str(models[0]) if models else None,
            "files": _files(run, lambda path: path.suffix == ".safetensors"),
        }


def _family(config: "PixArtConfig", caption: Any) -> str:
    """PixArt-Σ by what only it has; a Σ of 512 px without its null caption looks like an α, and is one to every reader.

    `caption` is the null caption (L, T), or None.
    """
    no_conditions = config.sample_size >= 128 and not config.micro_conditions
    of_sigma = (
        config.qk_norm
        or config.kv_compress_blocks
        or no_conditions
        or config.interpolation_scale is not None
        or (caption is not None and len(caption) > 120)
    )
    return "PixArt-Σ" if of_sigma else "PixArt-α"


def _licence(folder: Path) -> str | None:
    """What the model card's header says."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(20_000).splitlines()[:50]
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)


def _files(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and wanted(path))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
