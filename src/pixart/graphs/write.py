"""Write a model folder's graphs for ONNX Runtime; they get their names only once they are checked."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx

from pixart.checkpoints.model_folder import ModelFolder, fingerprint
from pixart.errors import PixArtError, reason_of
from pixart.graphs.autoencoder import build_decoder, build_encoder
from pixart.graphs.denoiser import build_denoiser
from pixart.graphs.text import build_text

MAX_BYTES = 4_000_000_000  # of weights; ONNX Runtime holds them in fp32, and larger models want a GPU anyway


def build_graphs(folder: ModelFolder) -> dict[str, onnx.ModelProto]:
    """The graphs of a checked model folder, by their file names; of a fast denoiser, those that it has for itself.

    Raises:
        PixArtError: the model is too large, in several files, or has a part that graphs do not know.
    """
    size = sum(path.stat().st_size for path in folder.weights)
    if size > MAX_BYTES:
        raise PixArtError(
            f"{folder.path} has {size / 1e9:.1f} GB of weights; graphs are for models of up to {MAX_BYTES / 1e9:.0f} "
            "GB. Use it with --engine torch."
        )
    if len(folder.weights) != 3:
        raise PixArtError(
            f"{folder.path} has a text encoder or transformer in several files, and graphs need each in one; use it "
            "with --engine torch."
        )
    configs = {
        part: json.loads((folder.path / part / "config.json").read_text(encoding="utf-8"))
        for part in ("text_encoder", "vae")
    }
    text, denoiser, decoder, denoiser_int8, encoder = folder.graphs
    fast = folder.fast
    graphs = {
        text: build_text(folder.path, configs["text_encoder"], folder.transformer, fast=fast),
        denoiser: build_denoiser(folder.path, folder.transformer, fast=fast),
        decoder: build_decoder(folder.path, configs["vae"]),
        denoiser_int8: build_denoiser(folder.path, folder.transformer, int8=True, fast=fast),
        encoder: build_encoder(folder.path, configs["vae"]),
    }
    if fast:
        del graphs[decoder], graphs[encoder]  # the model's own
    made_for = fingerprint(folder.path, fast=fast)
    for graph in graphs.values():
        graph.metadata_props.add(key="fingerprint", value=made_for)
    return graphs


def write_graphs(folder: ModelFolder, check: Callable[[tuple[str, ...]], None]) -> list[Path]:
    """Build the graphs, write them under other names, `check` those, and rename them; returns their paths.

    Raises:
        PixArtError: as `build_graphs`; what `check` raises; or the disk refuses. Older graphs then stay.
    """
    graphs = build_graphs(folder)
    parts = {name: folder.path / f".{name}.part" for name in graphs}
    try:
        for name, graph in graphs.items():
            parts[name].write_bytes(graph.SerializeToString())
        check(tuple(parts[name].name if name in parts else name for name in folder.graphs))
        return [part.replace(folder.path / name) for name, part in parts.items()]
    except OSError as error:
        raise PixArtError(f"The graphs cannot be written into {folder.path}: {reason_of(error)}.") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
