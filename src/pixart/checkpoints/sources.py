"""One door to a PixArt wherever it lies: a model folder, a `transformer/` folder, or an official file."""

from pathlib import Path

from pixart.checkpoints.diffusers import CONFIG_NAME, WEIGHTS_NAME, read_null_caption, read_transformer
from pixart.checkpoints.official import PLAIN, Checkpoint, OfficialFile, read_official
from pixart.errors import PixArtError, UsageError
from pixart.weights import stored_dtypes, weight_files


def transformer_folder(source: Path) -> Path:
    """The folder in `source` with a transformer's config.json: its `transformer/`, or itself, else PixArtError."""
    for folder in (source / "transformer", source):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise PixArtError(f"{source} holds no transformer: there is no {source / 'transformer' / CONFIG_NAME}.")


def read_source(source: Path, how: OfficialFile = PLAIN) -> Checkpoint:
    """Read a PixArt; only an official file takes `how`.

    Raises:
        PixArtError: `source` is not there, damaged, or something else.
        UsageError: `how` is given and the source says it itself.
    """
    if not source.is_dir():
        return read_official(source, how)
    if how != PLAIN:
        raise UsageError("--num-heads, --ema and --image-size are for official files; a folder says its own sizes.")
    folder = transformer_folder(source)
    config, state = read_transformer(folder)
    files = tuple(weight_files(folder, WEIGHTS_NAME))
    return Checkpoint(config, state, read_null_caption(folder, config.text_dim), False, files, stored_dtypes(files))
