"""What the configs of a model folder must say so that pixart can draw with its parts; torch is not needed."""

import math
from pathlib import Path
from typing import Any

from pixart.checkpoints.diffusers import CLASS_NAMES, NULL_CAPTION
from pixart.checkpoints.weight_files import check_whole, read_object
from pixart.encoders.text import TEXT_ENCODERS
from pixart.errors import PixArtError

PIPELINES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
# The classes that model_index.json may name for a part.
CLASSES = {"text_encoder": TEXT_ENCODERS, "transformer": CLASS_NAMES, "vae": ("AutoencoderKL",)}


def check_classes(index: dict[str, Any], path: Path) -> None:
    """The pipeline and the class of each part, as model_index.json names them."""
    if index.get("_class_name") not in PIPELINES:
        raise PixArtError(
            f"{path} describes {index.get('_class_name')!r}; pixart draws {' and '.join(PIPELINES)}, so give the "
            "folder of such a model."
        )
    for part, allowed in CLASSES.items():
        match index.get(part):
            case [str(), str(name)] if name in allowed:
                pass
            case [str(), str(name)]:
                raise PixArtError(
                    f"{path} says {part} is a {name}, and pixart reads {' or '.join(allowed)}; give a model folder "
                    "whose parts are of these classes."
                )
            case other:
                raise PixArtError(
                    f"The model folder is damaged: {path} says {part} is {other!r}; it must be a list of a library and "
                    "a class."
                )


def read_text_encoder(path: Path) -> dict[str, Any]:
    config = read_object(path)
    if config.get("model_type", "t5") not in ("bert", "t5"):
        raise PixArtError(
            f"{path} describes a text encoder of type {config['model_type']!r}, and pixart reads bert and t5; put the "
            "text encoder there that the transformer was trained with."
        )
    return config


def read_vae(path: Path) -> dict[str, Any]:
    config = read_object(path)
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise PixArtError(
            f"{path} describes {config['_class_name']!r}, and pixart reads AutoencoderKL; put the autoencoder there "
            "that the transformer was trained with."
        )
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
        raise PixArtError(
            f"The model folder is damaged: {path} says block_out_channels is {levels!r}, not 1 to 8 sizes."
        )
    return config


def check_fit(
    folder: Path, where: Path, transformer: dict[str, Any], text_encoder: dict[str, Any], vae: dict[str, Any]
) -> None:
    """Networks that were not trained together would fail with a shape error deep inside; say it here instead."""
    width = text_encoder.get("d_model") or text_encoder.get("hidden_size")
    if transformer["caption_channels"] != width:
        raise PixArtError(
            f"{folder / 'text_encoder' / 'config.json'} does not fit {where}: the transformer reads text states of "
            f"width {transformer['caption_channels']}, and this text encoder gives {width}; put the one there that the "
            "transformer was trained with."
        )
    if transformer["in_channels"] != vae.get("latent_channels"):
        raise PixArtError(
            f"{folder / 'vae' / 'config.json'} does not fit {where}: the transformer has {transformer['in_channels']} "
            f"latent channels, and this autoencoder {vae.get('latent_channels')}; put the one there that the "
            "transformer was trained with."
        )


def check_tokenizer(folder: Path) -> None:
    names = ("tokenizer.json", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        raise PixArtError(f"The model folder is not complete: {folder / names[0]} is missing.")


def null_tokens_in(path: Path) -> int:
    """How long the null caption in this file is; 0 where there is none."""
    if not path.is_file():
        return 0
    shape = check_whole(path).get(NULL_CAPTION, {}).get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and 1 < shape[0] <= 10_000):
        raise PixArtError(f"The model folder is damaged: {path} holds no {NULL_CAPTION} of 2 dimensions.")
    return shape[0]


def read_defaults(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    defaults = read_object(path)
    checks = {
        "steps": lambda value: type(value) is int and value > 0,
        "guidance_scale": lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
        "sampler": lambda value: isinstance(value, str),
    }
    for key, value in defaults.items():
        if key in checks and not checks[key](value):
            raise PixArtError(f"The model folder is damaged: {path} says {key} is {value!r}.")
    return {key: defaults[key] for key in checks if key in defaults}
