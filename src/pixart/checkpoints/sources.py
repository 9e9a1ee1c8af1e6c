"""One door to a PixArt wherever it lies: a model folder, a `transformer/` folder, or an official file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pixart.checkpoints.diffusers import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_null_caption,
    read_transformer,
    save_transformer,
)
from pixart.checkpoints.folder import write_json
from pixart.checkpoints.hashes import write_hashes
from pixart.checkpoints.official import NUM_HEADS, Checkpoint, read_official
from pixart.checkpoints.weight_files import stored_dtypes, weight_files
from pixart.errors import PixArtError, UsageError

PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")  # of a model folder, besides the transformer
SMALL_FILES = ("model_index.json", "styles.json", "pixart.json", "README.md", "LICENSE")


def transformer_folder(source: Path) -> Path | None:
    """The folder in `source` that holds a transformer's config.json: its `transformer/`, or itself."""
    return next((folder for folder in (source / "transformer", source) if (folder / CONFIG_NAME).is_file()), None)


def read_source(
    source: Path, *, num_heads: int | None = None, ema: bool = False, image_size: int | None = None
) -> Checkpoint:
    """Read a PixArt; the options are those of `read_official`, and only an official file takes them.

    Raises:
        PixArtError: `source` is not there, damaged, or something else.
        UsageError: an option is given that the source says itself.
    """
    if not source.is_dir():
        return read_official(source, num_heads=num_heads or NUM_HEADS, ema=ema, image_size=image_size)
    if num_heads or ema or image_size:
        raise UsageError("--num-heads, --ema and --image-size are for official files; a folder says its own sizes.")
    folder = transformer_folder(source)
    if folder is None:
        raise PixArtError(f"{source} holds no transformer: there is no {source / 'transformer' / CONFIG_NAME}.")
    config, state = read_transformer(folder)
    files = tuple(weight_files(folder, WEIGHTS_NAME))
    return Checkpoint(config, state, read_null_caption(folder, config.text_dim), False, files, stored_dtypes(files))


def write_diffusers(
    checkpoint: Checkpoint, dest: Path, *, parts: Path | None, check: Callable[[Path], object]
) -> list[str]:
    """Write the transformer, and the other parts of a model copied from the folder `parts`, into the new folder `dest`.

    `check` is called with a whole model folder before it gets its name. What `parts` holds besides (graphs, other
    weights) stays behind. Returns the names of the parts that are not there.

    Raises:
        PixArtError: a part is missing, `check` complains, or the disk refuses; then nothing is written.
    """
    work = dest.parent / f".{dest.name}.{os.getpid()}.part"
    try:
        work.mkdir(parents=True)
        save_transformer(checkpoint.state, checkpoint.config, work / "transformer", None, checkpoint.null_caption)
        missing = ["model_index.json", *PARTS] if parts is None else []
        if parts is not None:
            lacking = [name for name in ("model_index.json", *PARTS) if not (parts / name).exists()]
            if lacking:
                raise PixArtError(f"{parts} lacks {', '.join(lacking)}; give a whole model folder with --parts.")
            for name in PARTS:
                shutil.copytree(parts / name, work / name)
            for name in SMALL_FILES:
                if (parts / name).is_file():
                    shutil.copyfile(parts / name, work / name)
            _name_the_transformer(work / "model_index.json")
            _check(work, parts, dest, check)
            write_hashes(work)
        work.replace(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return missing


def _check(work: Path, parts: Path, dest: Path, check: Callable[[Path], object]) -> None:
    try:
        check(work)
    except PixArtError as error:  # by the names that last
        sentence = str(error)
        for name in (*PARTS, "model_index.json"):
            sentence = sentence.replace(str(work / name), str(parts / name))
        raise PixArtError(sentence.replace(str(work), str(dest))) from None


def _name_the_transformer(path: Path) -> None:
    """The first releases say Transformer2DModel in model_index.json; what we write is a PixArtTransformer2DModel."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PixArtError(f"{path.name} of the parts cannot be read as JSON ({error}).") from None
    if isinstance(index, dict):
        write_json(path, index | {"transformer": ["diffusers", "PixArtTransformer2DModel"]})
