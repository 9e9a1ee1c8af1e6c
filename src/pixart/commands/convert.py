"""`pixart convert`: a model in another form."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np
from tyro.conf import Positional, arg

from pixart.checkpoints.hub import looks_like_hub_id, resolve
from pixart.checkpoints.official import PLAIN, OfficialFile
from pixart.config import shown
from pixart.errors import PixArtError, UsageError

if TYPE_CHECKING:
    from pixart.checkpoints.model_folder import ModelFolder
    from pixart.checkpoints.official import Checkpoint

Form = Literal[
    "onnx", "diffusers", "official", "reparameterized", "fast", "peft", "comfyui", "kohya", "lycoris"
]  # fmt: skip
ADAPTER_FORMS = ("diffusers", "peft", "comfyui", "official", "kohya", "lycoris")
LARGEST_DIFFERENCE = 2  # of 255, between the engines on the same noise


@dataclass
class Convert:
    """Write a model in another form; prints the path of what is written.

    onnx: add the graphs to a model folder with which `pixart generate` needs no torch, and check that both engines
    generate the same image. The graphs hold no weights: they point into the folder's safetensors files.

    diffusers: a folder in the layout of Diffusers, for `pixart generate --model`. official: a file with the names of
    the PixArt repositories. Both keep every bit of the weights (float8 as bfloat16), and the null caption.

    reparameterized: a PixArt to start training from, of a class-conditional DiT such as facebook/DiT-XL-2-256.

    fast: put the few-step transformer of SOURCE, the run of a distillation, into the model folder DEST that was its
    teacher, with graphs if that has some.

    An adapter (LoRA and its kin) as SOURCE: diffusers, peft (a folder), comfyui, official, kohya, lycoris are the ways
    in which programs name its layers; docs/lora.md says who reads which.

    A ControlNet as SOURCE: official, a file, with its base of --parts; diffusers, a folder as of Diffusers' research
    project. No bit of it changes.
    """

    source: Annotated[str, arg(metavar="SOURCE")]
    """A model folder, a transformer's folder, an official .pth or safetensors file, or a hub id; for onnx a model
    folder."""
    dest: Positional[Annotated[Path | None, arg(metavar="DEST")]] = None
    """What to write: a new folder; for official a .pth or .safetensors file; for fast a model folder. Not for onnx."""
    to: Annotated[Form | None, arg(help_behavior_hint="(required)")] = None
    """The form."""
    parts: Annotated[str | None, shown("FOLDER", "SOURCE, if it has them")] = None
    """A model folder, or hub id, to copy autoencoder, text encoder, tokenizer and scheduler from."""
    file: Annotated[OfficialFile, arg(name="")] = PLAIN
    text_dim: Annotated[int, arg(metavar="N")] = 4096
    """reparameterized: width of the text states that the new network will read."""
    timestep: Annotated[float, arg(metavar="T")] = 500.0
    """reparameterized: where the new network equals the DiT; 500 suits DDPM, 775 a rectified flow."""
    class_free: Literal["null", "timestep"] = "null"
    """reparameterized: what the DiT sees without a class: null (timestep plus null class), or timestep alone."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """reparameterized: for the fresh layers that will read the text."""


def convert(options: Convert) -> int:
    """Run `pixart convert`; prints the path of every file or folder written."""
    if options.to is None:
        raise UsageError(f"pixart convert needs the form to write, with --to: one of {', '.join(get_args(Form))}.")
    if options.to == "onnx":
        return _to_onnx(options)
    from pixart.checkpoints.adapters import is_adapter, read_adapter, write_adapter
    from pixart.checkpoints.controlnet import is_controlnet

    if options.dest is None:
        raise UsageError(f"Say what to write: pixart convert {options.source} DEST --to {options.to}")
    if options.to == "fast":
        return _to_fast(Path(options.source), options.dest)
    if options.dest.exists():
        raise UsageError(f"{options.dest} exists already; give a new name.")
    if is_adapter(Path(options.source)):
        if options.to not in ADAPTER_FORMS:
            raise UsageError(f"{options.source} is an adapter; it becomes {', '.join(ADAPTER_FORMS)}.")
        adapter = read_adapter(Path(options.source))
        for notice in adapter.notices:
            _say(notice)
        write_adapter(adapter, options.dest, options.to)
        print(options.dest)
        return 0
    if is_controlnet(Path(options.source)):
        _control(options)
        print(options.dest)
        return 0
    if options.to in ("peft", "comfyui", "kohya", "lycoris"):
        raise UsageError(f"{options.source} is no adapter; {options.to} is a form of adapters.")
    complete = options.to == "diffusers" and options.parts is None
    source = resolve(options.source, "model" if complete else "transformer")
    if not source.exists():
        raise PixArtError(f"{source} is not there.")
    if options.to == "official":
        _to_official(options, source)
    else:
        _to_folder(options, source)
    print(options.dest)
    return 0


def _control(options: Convert) -> None:
    from pixart.checkpoints.controlnet import read_controlnet, write_controlnet
    from pixart.checkpoints.official import official_state, read_source

    as_file = options.dest.suffix in (".pth", ".safetensors")
    if options.to not in ("diffusers", "official") or as_file != (options.to == "official"):
        raise UsageError(
            f"{options.source} is a ControlNet; it becomes diffusers, a folder, or official, a .pth or .safetensors "
            "file."
        )
    found = read_controlnet(options.source)
    base = found.base if options.to == "official" else {}
    if options.to == "official" and options.parts is not None:
        base = official_state(read_source(resolve(options.parts, "transformer")))
    if options.to == "official" and not base:
        _say("The official code reads a ControlNet only together with its base; --parts MODEL puts that in as well.")
    write_controlnet(found.state, options.dest, copies=found.copies, sample_size=found.sample_size, base=base)


def _to_official(options: Convert, source: Path) -> None:
    from pixart.checkpoints.official import read_source, write_official

    if options.dest.suffix not in (".pth", ".safetensors"):
        raise UsageError(f"{options.dest} must end in .pth or .safetensors.")
    checkpoint = read_source(source, options.file)
    if checkpoint.null_caption is None:
        _say(
            "The source has no null caption, so the file has none either; the official code would sample with a random "
            f"one, so give it y_embedder.y_embedding of {checkpoint.config.text_dim} columns."
        )
    write_official(checkpoint, options.dest)


def _to_folder(options: Convert, source: Path) -> None:
    from pixart.checkpoints.folder import INDEX, PARTS, write_diffusers
    from pixart.checkpoints.model_folder import check_parts
    from pixart.checkpoints.official import read_source

    parts = None if options.parts is None else resolve(options.parts, "parts")
    if parts is not None and not parts.is_dir():
        raise PixArtError(f"{parts} is not a folder; --parts needs a complete model folder.")
    if options.to == "reparameterized":
        checkpoint = _from_dit(options, source)
    else:
        checkpoint = read_source(source, options.file)
        if parts is None and (source / INDEX).is_file():
            parts = source
            if options.to == "diffusers":
                _say(f"{options.source} is in the layout of Diffusers already; this is a copy, with its parts.")
        if checkpoint.has_ema and not options.file.ema:
            _say("The file holds a moving average too; --ema takes that instead.")
    if parts is not None:
        check_parts(parts, checkpoint)
    write_diffusers(checkpoint, options.dest, parts)
    if parts is None:
        _say(
            f"Only the transformer was written. To sample, it still needs {', '.join([INDEX, *PARTS])}: convert again "
            "with --parts FOLDER, a model folder that has them."
        )


def _from_dit(options: Convert, source: Path) -> "Checkpoint":
    from pixart.checkpoints.dit import read_dit, reparameterized

    if not 0 <= options.timestep <= 1000 or options.text_dim < 1:
        raise UsageError("--timestep must be from 0 to 1000, and --text-dim at least 1.")
    return reparameterized(
        read_dit(source, options.file),
        text_dim=options.text_dim,
        timestep=options.timestep,
        class_free=options.class_free,
        seed=options.seed,
    )


def _to_fast(source: Path, dest: Path) -> int:
    from pixart.checkpoints.fast import add_fast
    from pixart.checkpoints.model_folder import open_model_folder

    had_graphs = open_model_folder(dest).has_graphs
    print(add_fast(source, dest))
    folder = open_model_folder(dest, fast=True)
    if had_graphs:
        _write_graphs(folder)
    return 0


def _to_onnx(options: Convert) -> int:
    from pixart.checkpoints.model_folder import open_model_folder

    if options.dest is not None:
        raise UsageError("The graphs are written into the model folder itself; leave DEST out.")
    if looks_like_hub_id(options.source):
        raise UsageError(
            f"The graphs are written beside the weights, and {options.source} is a hub id, whose files are the "
            f"cache's; make a folder of it first: pixart convert {options.source} FOLDER --to diffusers"
        )
    folder = open_model_folder(Path(options.source))
    _write_graphs(folder)
    if folder.fast_settings:
        _write_graphs(open_model_folder(Path(options.source), fast=True))
    return 0


def _write_graphs(folder: "ModelFolder") -> None:
    """Of a checked model folder, those of the transformer that it was opened with; prints their paths."""
    from pixart.graphs.engine import GraphNetworks
    from pixart.graphs.write import write_graphs
    from pixart.pipeline.networks import choose_runtime, load_networks
    from pixart.pipeline.pipeline import Pipeline

    source = folder.path
    if folder.transformer.get("qk_norm") or folder.transformer.get("kv_compress_blocks"):
        raise PixArtError(
            f"{source} norms queries and keys or compresses keys and values, which graphs do not know; sample "
            "with --engine torch."
        )

    def check(names: tuple[str, ...]) -> None:
        in_torch = load_networks(folder, choose_runtime(folder, "torch", "float32", device="cpu"))
        options = {} if folder.fast else {"negative_prompt": "a house", "steps": 4}
        first, second = (
            np.asarray(Pipeline(folder, networks)("a red apple", seed=0, **options).images[0]).astype(int)
            for networks in (in_torch, GraphNetworks(folder, graphs=names))
        )
        difference = int(np.abs(first - second).max())
        if difference > LARGEST_DIFFERENCE:
            raise PixArtError(
                f"The engines differ by {difference} of 255 on {source}, more than {LARGEST_DIFFERENCE}; no "
                "graphs were written. Sample this model with --engine torch."
            )
        _say(f"The engines give the same image (largest difference: {difference} of 255).")

    for path in write_graphs(folder, check):
        print(path)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
