"""One door to a PixArt wherever it lies: a model folder, a `transformer/` folder, or an official file."""

import shutil
from pathlib import Path

from pixart.checkpoints.diffusers import (
    CLASS_NAMES,
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_null_caption,
    read_transformer,
    save_transformer,
)
from pixart.checkpoints.folder import new_folder
from pixart.checkpoints.official import NUM_HEADS, Checkpoint, read_official
from pixart.checkpoints.weight_files import stored_dtypes, weight_files
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object, write_json

INDEX = "model_index.json"
PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")  # of a model folder, besides the transformer
SMALL_FILES = ("styles.json", "pixart.json", "README.md", "LICENSE")


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
        heads = NUM_HEADS if num_heads is None else num_heads
        return read_official(source, num_heads=heads, ema=ema, image_size=image_size)
    if ema or num_heads is not None or image_size is not None:
        raise UsageError("--num-heads, --ema and --image-size are for official files; a folder says its own sizes.")
    folder = transformer_folder(source)
    if folder is None:
        raise PixArtError(f"{source} holds no transformer: there is no {source / 'transformer' / CONFIG_NAME}.")
    config, state = read_transformer(folder)
    files = tuple(weight_files(folder, WEIGHTS_NAME))
    return Checkpoint(config, state, read_null_caption(folder, config.text_dim), False, files, stored_dtypes(files))


def write_diffusers(checkpoint: Checkpoint, dest: Path, parts: Path | None) -> None:
    """Write the transformer, and the other parts of a model copied from the folder `parts`, into the new folder `dest`.

    `parts` is one that `pixart.checkpoints.model_folder.check_parts` has looked over. What it holds besides (graphs,
    other weights) stays behind.

    Raises:
        PixArtError: the disk refuses; then nothing is written.
    """
    with new_folder(dest, hashed=parts is not None) as work:
        save_transformer(checkpoint.state, checkpoint.config, work / "transformer", None, checkpoint.null_caption)
        if parts is None:
            return
        for name in PARTS:
            shutil.copytree(parts / name, work / name)
        for name in SMALL_FILES:
            if (parts / name).is_file():
                shutil.copyfile(parts / name, work / name)
        index = read_json_object(parts / INDEX)  # the first releases call the class Transformer2DModel
        write_json(work / INDEX, index | {"transformer": ["diffusers", CLASS_NAMES[0]]})
