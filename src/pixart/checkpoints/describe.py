"""What a model folder, a hub id, an official file or a DiT is, as plain values."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixart.checkpoints.adapters import is_adapter, made_for, read_adapter
from pixart.checkpoints.diffusers import CONFIG_NAME, check_transformer, official_shapes, read_config, read_null_caption
from pixart.checkpoints.dit import is_dit, read_dit
from pixart.checkpoints.hub import left_to_fetch, looks_like_hub_id, resolve, revision_of
from pixart.checkpoints.known import known_model
from pixart.checkpoints.model_folder import DEFAULT_MODEL, ModelFolder, open_model_folder, parts_of
from pixart.checkpoints.official import PLAIN, OfficialFile, read_source, transformer_folder
from pixart.errors import PixArtError
from pixart.weights import stored_dtypes

if TYPE_CHECKING:
    import torch

    from pixart.model.pixart import PixArtConfig


def describe(
    source: str | Path | None = None, *, parts: str | Path | None = None, how: OfficialFile = PLAIN
) -> tuple[dict[str, Any], ModelFolder | None]:
    """What `source` (None: the shipped model) is; the keys depend on its kind. And the model, where it can sample.

    Raises:
        PixArtError: it is not there, damaged, or nothing that pixart knows.
    """
    path = DEFAULT_MODEL if source is None else resolve(source, "configs")
    if not path.exists():
        raise PixArtError(f"{path} is not there.")
    if is_adapter(path):
        return _adapter(path), None
    if is_dit(path):
        return _dit(path, how), None
    hub_id = str(source) if source is not None and looks_like_hub_id(source) else None
    missing = 0 if hub_id is None else left_to_fetch(hub_id)
    if hub_id is not None and parts is None and (parts := parts_of(hub_id, path)) is not None:
        more = left_to_fetch(str(parts), "parts")
        missing = None if missing is None or more is None else missing + more
    folder = None
    if missing == 0 and (parts is not None or (path / "model_index.json").is_file()):
        folder = open_model_folder(source, parts=parts, how=how)
    facts = _file(path, how) if path.is_file() or how != PLAIN else _folder(path, missing == 0)
    if (known := known_model(source)) is not None:
        facts |= {"family": known.family, "licence": facts.get("licence") or known.licence or None}
    if folder is not None:
        facts |= {"kind": "model folder"} if parts is None else {"parts": str(parts)}
        facts |= _sampling(folder)
    if hub_id is not None:
        facts |= {"kind": "hub model", "hub_id": hub_id, "revision": revision_of(path)}
    if missing != 0:
        facts["bytes_not_in_the_cache"] = missing
    return facts, folder


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


def _file(path: Path, how: OfficialFile) -> dict[str, Any]:
    """Of an official file, every number of which is looked at."""
    checkpoint = read_source(path, how)
    return {
        "kind": "official file",
        "path": str(path),
        **_network(checkpoint.config, checkpoint.null_caption),
        "dtype": ", ".join(checkpoint.dtypes),
        "moving_average": checkpoint.has_ema,
        "files": {path.name: path.stat().st_size},
    }


def _folder(path: Path, complete: bool) -> dict[str, Any]:
    """Of a folder, by its configs and the headers of its weights; of those that are not here, by the configs alone."""
    place = transformer_folder(path)
    facts: dict[str, Any] = {"kind": "transformer folder", "path": str(path)}
    if complete:
        config, weights = check_transformer(place)
        facts |= _network(config, read_null_caption(place, config.text_dim))
        facts["dtype"] = ", ".join(stored_dtypes(weights))
    else:
        facts |= _network(read_config(place / CONFIG_NAME), None)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".md")
    facts["licence"] = _licence(path)
    return facts | {"files": {file.relative_to(path).as_posix(): file.stat().st_size for file in files}}


def _network(config: "PixArtConfig", caption: "torch.Tensor | None") -> dict[str, Any]:
    """`caption` is the null caption (L, T), where there is one.

    A PixArt-Σ is known by what only it has; one of 512 px without its null caption by its name alone.
    """
    sigma = (
        config.qk_norm
        or config.kv_compress_blocks
        or (config.sample_size >= 128 and not config.micro_conditions)
        or config.interpolation_scale is not None
        or (caption is not None and len(caption) > 120)
    )
    return {
        "family": "PixArt-Σ" if sigma else "PixArt-α",
        "parameters": sum(math.prod(shape) for shape in official_shapes(config).values()),
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


def _dit(path: Path, how: OfficialFile) -> dict[str, Any]:
    model = read_dit(path, how)
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


def _licence(folder: Path) -> str | None:
    """What the model card's header says."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(20_000).splitlines()[:50]
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)
