"""One door to a PixArt wherever it lies: a model folder, a `transformer/` folder, or an official file."""

from pathlib import Path

from pixart.checkpoints.diffusers import CONFIG_NAME, WEIGHTS_NAME, read_null_caption, read_transformer
from pixart.checkpoints.official import NUM_HEADS, Checkpoint, read_official
from pixart.errors import PixArtError, UsageError
from pixart.weights import stored_dtypes, weight_files


def transformer_folder(source: Path) -> Path:
    """The folder in `source` with a transformer's config.json: its `transformer/`, or itself, else PixArtError."""
    for folder in (source / "transformer", source):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise PixArtError(f"{source} holds no transformer: there is no {source / 'transformer' / CONFIG_NAME}.")


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
    config, state = read_transformer(folder)
    files = tuple(weight_files(folder, WEIGHTS_NAME))
    return Checkpoint(config, state, read_null_caption(folder, config.text_dim), False, files, stored_dtypes(files))
