"""`pixart merge`: a model with adapters written into its weights."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from pixart.checkpoints.hub import resolve
from pixart.config import shown
from pixart.errors import PixArtError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from pixart.checkpoints.adapters import Changes


@dataclass
class Merge:
    """Write a model with adapters in its weights, for programs that read no adapters; prints its path.

    Changed weights keep their dtype, all others their bits. To generate, `pixart generate --lora` is enough.
    """

    source: Annotated[str, arg(metavar="MODEL")]
    """A model folder, a hub id, a transformer's folder or an official file; default: the model in the package."""
    dest: Annotated[Path, arg(metavar="DEST")]
    """The new folder."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:X]")] = ()
    """An adapter, a safetensors file or folder, at strength X: style.safetensors:0.8. Repeat the option for several."""
    parts: Annotated[str | None, shown("FOLDER", "MODEL, if it has them")] = None
    """A model folder, or hub id, to copy autoencoder, text encoder, tokenizer and scheduler from."""


def merge(options: Merge) -> int:
    """Run `pixart merge`."""
    from pixart.checkpoints.adapters import changes, check_fit, linear_shapes, read_loras
    from pixart.checkpoints.diffusers import diffusers_config
    from pixart.checkpoints.folder import INDEX, write_diffusers
    from pixart.checkpoints.hashes import write_hashes
    from pixart.checkpoints.model_folder import DEFAULT_MODEL, check_parts
    from pixart.checkpoints.official import read_source
    from pixart.files import replacing

    if not options.lora:
        raise UsageError("Name the adapters to merge: pixart merge MODEL DEST --lora FILE[:X] ...")
    if options.dest.exists():
        raise UsageError(f"{options.dest} exists already; give a new name.")
    loras = read_loras(options.lora)
    for notice in (notice for lora in loras for notice in lora.adapter.notices):
        print(notice, file=sys.stderr)
    source = DEFAULT_MODEL if options.source == "default" else resolve(options.source, "model")
    if not source.exists():
        raise PixArtError(f"{source} is not there.")
    checkpoint = read_source(source)
    parts = source if (source / INDEX).is_file() else None
    parts = parts if options.parts is None else resolve(options.parts, "parts")
    text = {} if parts is None else linear_shapes(parts / "text_encoder")
    check_fit(loras, diffusers_config(checkpoint.config), text)
    if parts is not None:
        check_parts(parts, checkpoint)
    checkpoint = replace(checkpoint, state=_merged(checkpoint.state, changes(loras)))
    with replacing(options.dest) as work:
        write_diffusers(checkpoint, work, parts)
        if changes(loras, text=True):
            _merge_text_encoder(work / "text_encoder", changes(loras, text=True))
            write_hashes(work)
    print(options.dest)
    return 0


def _merged(state: "dict[str, Tensor]", changes: "Changes") -> "dict[str, Tensor]":
    """The state dict with changes by layer; those of layers that are not in it are left out."""
    import torch

    from pixart.model.deltas import Delta, merged

    result = dict(state)
    for layer, deltas in changes.items():
        weight = state.get(f"{layer}.weight")
        if weight is not None:
            mine = [
                (Delta(d.start, d.stop, {n: torch.from_numpy(t) for n, t in d.tensors.items()}, d.scale), strength)
                for d, strength in deltas
            ]
            result[f"{layer}.weight"] = merged(weight.float(), mine).to(weight.dtype)
    return result


def _merge_text_encoder(folder: Path, changes: "Changes") -> None:
    from pixart.checkpoints.tensors import save_tensors
    from pixart.weights import map_tensors, weight_files

    for file in weight_files(folder, "model.safetensors"):
        save_tensors(_merged(map_tensors(file), changes), file, None)
