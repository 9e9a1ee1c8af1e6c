"""Where a text encoder lies: a folder in Hugging Face layout, or one T5 file as ComfyUI users have it."""

import re
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError
from pixart.files import read_json_object
from pixart.weights import read_header

WEIGHTS = "model.safetensors"  # in a folder
BLOCK = re.compile(r"encoder\.block\.(\d{1,3})\.")
ATTENTION = "encoder.block.0.layer.0.SelfAttention"
FEED_FORWARD = "encoder.block.0.layer.1.DenseReluDense"


def encoder_config(place: Path) -> dict[str, Any]:
    """The config.json of a folder, or what the shapes in a T5 file say; no weights are read.

    Raises:
        PixArtError: it is missing or damaged, or no T5.
    """
    return _config_of_file(place) if place.is_file() else read_json_object(place / "config.json", nonfinite=True)


def tokenizer_folder(*folders: Path) -> Path:
    """The first of the folders that holds a tokenizer.

    Raises:
        PixArtError: none does.
    """
    for folder in folders:
        if has_tokenizer(folder):
            return folder
    files = " or ".join(dict.fromkeys(str(folder / "tokenizer.json") for folder in folders))
    raise PixArtError(f"{files} is missing, and there is no spiece.model either; copy or download it.")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def _config_of_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            raise PixArtError(
                f"{path} is a GGUF file, whose weights would have to be unpacked into memory; give the same text "
                "encoder as safetensors, such as t5xxl_fp8_e4m3fn.safetensors, which takes no memory of its own."
            )
    shapes = {name: stored.shape for name, stored in read_header(path).items()}
    words = shapes.get("shared.weight") or shapes.get("encoder.embed_tokens.weight")
    table, query = (shapes.get(f"{ATTENTION}.{name}.weight") for name in ("relative_attention_bias", "q"))
    gated = f"{FEED_FORWARD}.wi_0.weight" in shapes
    hidden = shapes.get(f"{FEED_FORWARD}.{'wi_0' if gated else 'wi'}.weight")
    if not all(shape is not None and len(shape) == 2 and min(shape) > 0 for shape in (words, table, query, hidden)):
        raise PixArtError(f"{path} holds no T5 text encoder by its usual names, such as {ATTENTION}.q.weight.")
    if f"{ATTENTION.replace('.0.', '.1.', 1)}.relative_attention_bias.weight" in shapes:
        raise PixArtError(f"{path} holds a UMT5, which was not trained for PixArt; give a T5 v1.1, such as t5xxl_fp16.")
    return {
        "model_type": "t5",
        "vocab_size": words[0],
        "d_model": words[1],
        "d_kv": query[0] // table[1],
        "d_ff": hidden[0],
        "num_layers": 1 + max(int(match[1]) for name in shapes if (match := BLOCK.match(name))),
        "num_heads": table[1],
        "relative_attention_num_buckets": table[0],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
