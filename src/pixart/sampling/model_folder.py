"""What a model folder holds, read and checked without torch, so that damage is named in a fraction of a second.

The layout is the one that `diffusers.PixArtAlphaPipeline.from_pretrained` reads, plus optional files of ours:
`styles.json` ({"3D": {"prompt": "{prompt}, 3D", "negative_prompt": ""}, ...}; without it the general styles of
`pixart.sampling.styles`), `pixart.json` (the sampler, steps and guidance scale that suit the model) and the graphs for ONNX Runtime.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixart.checkpoints.diffusers import NULL_CAPTION, NULL_CAPTION_NAME, read_settings
from pixart.checkpoints.tensors import is_pickle
from pixart.encoders.tokenizer import MAX_TOKENS
from pixart.errors import PixArtError
from pixart.sampling.prompts import Style, read_styles
from pixart.sampling.schedule import check_config
from pixart.sampling.styles import GENERAL_STYLES

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
GRAPHS = ("text.onnx", "denoiser.onnx", "decoder.onnx", "denoiser_int8.onnx")
SIGMA_TOKENS = 300  # what the stock PixArtSigmaPipeline cuts at
MAX_HEADER = 100_000_000  # bytes of JSON at the head of a safetensors file, the format's own limit


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose every needed file is there and whole. Sizes in pixels."""

    path: Path
    scheduler: dict[str, Any]
    transformer: dict[str, Any]  # its config.json, checked
    text_encoder_class: str
    styles: dict[str, Style]
    defaults: dict[str, Any]  # of `pixart.json`: sampler, steps, guidance_scale, each optional
    native_size: int
    size_multiple: int
    max_size: int
    vae_factor: int  # how many pixels wide one latent is
    max_tokens: int  # of a text, as the transformer was trained
    weights: tuple[Path, ...]
    has_graphs: bool

    @property
    def name(self) -> str:
        """What to call the model in picture files: the shipped one by our name, others by their folder's."""
        return "pixart-default" if self.path == DEFAULT_MODEL else self.path.resolve().name


def open_model_folder(path: str | Path | None = None) -> ModelFolder:
    """Check a model folder (None: the shipped one) and read its small files.

    Raises PixArtError naming the first file that is missing or damaged and what is wrong with it.
    """
    folder = DEFAULT_MODEL if path is None else Path(path)
    if not folder.is_dir():
        if path is None:
            raise PixArtError(
                f"The shipped model is missing: there is no folder {folder}. Install pixart again, or name a model "
                "folder with --model."
            )
        what = "a file, not a folder" if folder.exists() else "not there"
        raise PixArtError(f"The model folder {folder} is {what}. Give the folder that holds model_index.json.")
    index = _read_json(folder / "model_index.json")
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    check_config(scheduler, str(folder / "scheduler" / "scheduler_config.json"))
    text_encoder = _read_json(folder / "text_encoder" / "config.json")
    transformer = read_settings(folder / "transformer" / "config.json")
    vae = _read_json(folder / "vae" / "config.json")
    vae_factor = _vae_factor(vae, folder / "vae" / "config.json")
    _check_fit(folder, transformer, text_encoder, vae)
    _check_tokenizer(folder / "tokenizer")
    weights = [file for part, name in WEIGHTS.items() for file in _check_weights(folder / part, name)]
    styles = folder / "styles.json"
    native = transformer["sample_size"] * vae_factor
    match index.get("text_encoder"):
        case [str(), str(encoder)]:
            pass
        case other:
            raise PixArtError(
                f"The model folder is damaged: {folder / 'model_index.json'} says text_encoder is {other!r}; it must "
                "be a list of a library and a class."
            )
    return ModelFolder(
        path=folder,
        scheduler=scheduler,
        transformer=transformer,
        text_encoder_class=encoder,
        styles=read_styles(_read_json(styles), str(styles)) if styles.exists() else GENERAL_STYLES,
        defaults=_read_defaults(folder / "pixart.json"),
        native_size=native,
        size_multiple=transformer["patch_size"] * vae_factor,
        max_size=max(1024, 2 * native),
        vae_factor=vae_factor,
        max_tokens=_max_tokens(folder / "transformer" / NULL_CAPTION_NAME, index.get("_class_name")),
        weights=tuple(weights),
        has_graphs=all((folder / name).is_file() for name in GRAPHS),
    )


def hash_weights(folder: ModelFolder) -> dict[str, str]:
    """SHA-256 of every weights file, by its name inside the folder."""
    hashes = {}
    for path in folder.weights:
        with path.open("rb") as file:
            hashes[path.relative_to(folder.path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def fingerprint(folder: Path) -> str:
    """SHA-256 of what a graph takes from a model folder besides the weights' values: configs, and where each weight is.

    A graph carries the fingerprint that it was made for, since with other files beside it it would read wrong numbers.
    """
    digest = hashlib.sha256()
    for part, name in WEIGHTS.items():
        digest.update((folder / part / "config.json").read_bytes())
        with (folder / part / name).open("rb") as file:
            digest.update(file.read(struct.unpack("<Q", file.read(8))[0]))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PixArtError(f"The model folder is not complete: {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise PixArtError(f"The model folder is damaged: {path} cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise PixArtError(f"The model folder is damaged: {path} does not hold a JSON object.")
    return value


def _check_fit(folder: Path, transformer: dict[str, Any], text_encoder: dict[str, Any], vae: dict[str, Any]) -> None:
    """Networks that were not trained together would fail with a shape error deep inside; say it here instead."""
    width = text_encoder.get("d_model") or text_encoder.get("hidden_size")
    if transformer["caption_channels"] != width:
        raise PixArtError(
            f"The parts of {folder} do not fit: its transformer reads text states of width "
            f"{transformer['caption_channels']}, and its text encoder gives {width}."
        )
    if transformer["in_channels"] != vae.get("latent_channels"):
        raise PixArtError(
            f"The parts of {folder} do not fit: its transformer has {transformer['in_channels']} latent channels, and "
            f"its autoencoder {vae.get('latent_channels')}."
        )


def _vae_factor(config: dict[str, Any], path: Path) -> int:
    """How many pixels wide one latent is: the autoencoder halves its picture between one level and the next."""
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
        raise PixArtError(
            f"The model folder is damaged: {path} says block_out_channels is {levels!r}, not 1 to 8 sizes."
        )
    return 2 ** (len(levels) - 1)


def _check_tokenizer(folder: Path) -> None:
    names = ("tokenizer.json", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        raise PixArtError(f"The model folder is not complete: {folder / names[0]} is missing.")


def _check_weights(folder: Path, name: str) -> list[Path]:
    """The safetensors file of one part, or the several that its index names, each checked for being whole."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        paths = [folder / name]
    elif folder.name == "transformer":
        raise PixArtError(
            f"The transformer in {folder} is in several files, and pixart reads it from one; save it again with "
            'Diffusers\' save_pretrained and max_shard_size="1TB".'
        )
    else:
        try:
            names = sorted(set(_read_json(index)["weight_map"].values()))
            outside = any(Path(shard).name != shard for shard in names)
        except (KeyError, AttributeError, TypeError):
            raise PixArtError(f"The model folder is damaged: {index} has no weight_map in it.") from None
        if outside or not names:
            raise PixArtError(f"The model folder is damaged: {index} names no files, or files outside {folder}.")
        paths = [folder / shard for shard in names]
    for path in paths:
        _check_safetensors(path)
    return paths


def _max_tokens(null_caption: Path, pipeline: Any) -> int:
    """As long as the null caption, where there is one; else what the stock pipeline of that class cuts at."""
    if not null_caption.is_file():
        return SIGMA_TOKENS if pipeline == "PixArtSigmaPipeline" else MAX_TOKENS
    shape = _check_safetensors(null_caption).get(NULL_CAPTION, {}).get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and 1 < shape[0] <= 10_000):
        raise PixArtError(f"The model folder is damaged: {null_caption} holds no {NULL_CAPTION} of 2 dimensions.")
    return shape[0]


def _check_safetensors(path: Path) -> dict[str, Any]:
    """Compare the file's length with what its header promises; a cut-short download fails here and says so.

    Returns the header.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
    except FileNotFoundError:
        pickles = sorted(path.parent.glob("*.bin"))
        why = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"The model folder is not complete: {path} is missing{why}.") from None
    except (OSError, ValueError):
        header = None
    try:
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (AttributeError, KeyError, TypeError, IndexError):
        why = " but a pickle, which pixart does not open" if is_pickle(path) else ""
        raise PixArtError(f"The model folder is damaged: {path} is not a whole safetensors file{why}.") from None
    found = path.stat().st_size
    if found != expected:
        raise PixArtError(
            f"The model folder is damaged: {path} should be {expected:,} bytes long and is {found:,}; copy it again."
        )
    return header


def _read_defaults(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    defaults = _read_json(path)
    checks = {
        "steps": lambda value: type(value) is int and value > 0,
        "guidance_scale": lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
        "sampler": lambda value: isinstance(value, str),
    }
    for key, value in defaults.items():
        if key in checks and not checks[key](value):
            raise PixArtError(f"The model folder is damaged: {path} says {key} is {value!r}.")
    return {key: defaults[key] for key in checks if key in defaults}
