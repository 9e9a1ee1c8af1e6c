"""A model that can generate, read and checked without torch, so that damage is named in a fraction of a second.

A model folder has the layout that `diffusers.PixArtAlphaPipeline.from_pretrained` reads, plus optional files of ours:
`styles.json` ({"3D": {"prompt": "{prompt}, 3D", "negative_prompt": ""}, ...}; without it the general styles of
`pixart.checkpoints.styles`), `pixart.json` (the sampler, steps and guidance scale that suit the model), `fast/` (a
second, few-step transformer, see `pixart.checkpoints.fast`), `hashes.json` (`pixart.checkpoints.hashes`) and the graphs
for ONNX Runtime. It may lie in the cache of the Hugging Face Hub; and its transformer may come from elsewhere, as an
official file or the folder of a transformer alone.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixart.checkpoints.diffusers import (
    CLASS_NAMES,
    NULL_CAPTION,
    NULL_CAPTION_NAME,
    assemble,
    diffusers_config,
    load_transformer,
    read_null_caption,
    read_settings,
)
from pixart.checkpoints.fast import FAST, check_same_network, read_fast_settings
from pixart.checkpoints.folder import ENCODER_CLASSES, check_sizes, read_encoder_config, text_width
from pixart.checkpoints.hashes import hashes_of
from pixart.checkpoints.hub import Wanted, looks_like_hub_id, resolve, revision_of
from pixart.checkpoints.known import known_model
from pixart.checkpoints.official import PLAIN, OfficialFile
from pixart.checkpoints.styles import GENERAL_STYLES, Style, read_styles
from pixart.diffusion.schedule import read_scheduler
from pixart.encoders.text import TEXT_ENCODERS
from pixart.encoders.text_files import tokenizer_folder
from pixart.encoders.tokenizer import MAX_TOKENS, SIGMA_TOKENS
from pixart.errors import PixArtError, UsageError, shown
from pixart.files import read_json_object
from pixart.weights import OnBytes, header_bytes, read_header, refuse_quantised, weight_files

if TYPE_CHECKING:
    import torch

    from pixart.checkpoints.official import Checkpoint
    from pixart.model.pixart import PixArt

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
ENCODER_GRAPH = "encoder.onnx"  # for images to start from; a folder may lack it
GRAPHS = ("text.onnx", "denoiser.onnx", "decoder.onnx", "denoiser_int8.onnx", ENCODER_GRAPH)
# One autoencoder for both.
FAST_GRAPHS = ("fast_text.onnx", "fast_denoiser.onnx", "decoder.onnx", "fast_denoiser_int8.onnx", ENCODER_GRAPH)
PIPELINES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
# The classes that model_index.json may name for a part.
CLASSES = {"text_encoder": TEXT_ENCODERS, "transformer": CLASS_NAMES, "vae": ("AutoencoderKL",)}


@dataclass(frozen=True)
class Source:
    """What somebody gave to have this model, and what to give to have it again; `model` None is the shipped one."""

    model: str | None = None  # a hub id, or an absolute path
    parts: str | None = None
    ema: bool = False
    num_heads: int | None = None
    image_size: int | None = None
    revision: str | None = None  # the commit, where `model`, or else `parts`, is a hub id
    text_encoder: str | None = None  # in the place of the model's

    def for_images(self) -> dict[str, Any]:
        """As image files hold it: a path becomes its last name, since images are given away."""
        return asdict(self) | {name: _shown(getattr(self, name)) for name in ("model", "parts", "text_encoder")}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder in which every needed file is there and complete. Sizes in pixels."""

    path: Path
    scheduler: dict[str, Any]
    transformer: dict[str, Any]  # its config.json, checked
    text_encoder: Path  # its folder, or its one file
    text_encoder_class: str
    text_files: tuple[Path, ...]  # its weights
    tokenizer: Path
    styles: dict[str, Style]
    defaults: dict[str, Any]  # of `pixart.json`: sampler, steps, guidance_scale, each optional
    native_size: int
    size_multiple: int
    max_size: int
    vae_factor: int  # how many pixels wide one latent is
    max_tokens: int  # of a text, as the transformer was trained
    null_tokens: int  # of the null caption that the transformer was trained with; 0: it is not kept here
    weights: tuple[Path, ...]  # of all its networks
    has_graphs: bool
    fast: bool = False  # its few-step transformer is used: transformer, defaults, weights and graphs are of that one
    fast_settings: dict[str, Any] | None = None  # how its few-step transformer samples; None: it has none
    source: Source = field(default_factory=Source)
    # The transformer of an official file or of a folder of its own; None: it is in `path`.
    checkpoint: "Checkpoint | None" = field(default=None, repr=False, compare=False)

    @property
    def transformer_folder(self) -> Path:
        """Where the transformer lies that is used, if it is not a `checkpoint`."""
        return self.path / FAST / "transformer" if self.fast else self.path / "transformer"

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of text, denoiser, decoder, the denoiser in int8, and the encoder."""
        return FAST_GRAPHS if self.fast else GRAPHS

    @property
    def name(self) -> str:
        """What to call the model in image files: ours by our name, a hub id by itself, others by their folder's."""
        if self.path == DEFAULT_MODEL:
            return "pixart-default"
        return _shown(self.source.model) or self.path.resolve().name


def open_model_folder(
    model: str | Path | None = None,
    *,
    parts: str | Path | None = None,
    how: OfficialFile = PLAIN,
    fast: bool = False,
    text_encoder: Path | None = None,
) -> ModelFolder:
    """Find a model, check it, and read its small files.

    Args:
        model: a model folder, or its id on the Hugging Face Hub ("org/name" or "org/name@revision"); None: the shipped
            model. With `parts` also an official `.pth` or safetensors file or the folder of a transformer alone.
        parts: the model folder, or hub id, that has the rest: text encoder, tokenizer, autoencoder, scheduler. Of a
            released model on the Hub that is a transformer alone they are known (`pixart.checkpoints.known`).
        how: of an official file; see `pixart.checkpoints.official.read_official`.
        fast: to sample with the folder's few-step transformer.
        text_encoder: a folder, or one T5 file, in the place of the model's text encoder, which may be missing then.

    Raises:
        PixArtError: names the first file that is missing or damaged and what is wrong with it, or why a hub id cannot
            be had.
        UsageError: `parts` is needed and not given, or given and of no use; an option does not fit; there is no
            few-step transformer.
    """
    if model is None and (parts is not None or how != PLAIN):
        raise UsageError("--parts, --ema, --num-heads and --image-size go with an official file; name it with --model.")
    if fast and parts is not None:
        raise UsageError("An official file has no few-step transformer; leave --fast or --parts out.")
    if text_encoder is not None and not text_encoder.exists():
        raise PixArtError(f"{text_encoder} is not there; give a T5 file or the folder of a text encoder.")
    with_texts = text_encoder is None
    wanted: Wanted = "transformer" if parts is not None else "model" if with_texts else "model without texts"
    place = DEFAULT_MODEL if model is None else resolve(model, wanted)
    if not place.exists():
        raise PixArtError(
            f"{place} is not there; give the folder that holds model_index.json, an official file, or a hub id such as "
            "PixArt-alpha/PixArt-XL-2-512x512."
        )
    if (place / "metrics.jsonl").is_file() and not (place / "model_index.json").is_file():
        made = place / "model"
        made = f"give the model that it has made: {made}" if made.is_dir() else "and no finished model is in it"
        raise UsageError(f"{model} is the folder of a training run; {made}.")
    if parts is None and looks_like_hub_id(model):
        parts = parts_of(model, place)
    if parts is None and place.is_dir() and not _is_transformer(place):
        if how != PLAIN:
            raise UsageError(f"--ema, --num-heads and --image-size are for official files, and {model} is a folder.")
        source = Source() if model is None else Source(_given(model), revision=revision_of(place))
        folder = _open(place, source, None, text_encoder=text_encoder)
        return _with_fast(folder) if fast else folder
    if parts is None:
        example = parts_of(model, place)
        raise UsageError(
            f"{model} is a transformer alone; name a model folder or hub id that has the rest (text encoder, "
            f"tokenizer, autoencoder, scheduler) with --parts{f', such as {example}' if example else ''}."
        )
    if (place / "model_index.json").is_file():
        raise UsageError(f"{model} is a complete model; leave --parts out.")
    from pixart.checkpoints.official import read_source

    checkpoint = read_source(place, how)
    rest = resolve(parts, "parts" if with_texts else "parts without texts")
    if not rest.is_dir():
        raise PixArtError(f"{parts} is not there; --parts needs a model folder, or a hub id.")
    revision = revision_of(place) or revision_of(rest)
    source = Source(_given(model), _given(parts), how.ema, how.num_heads, how.image_size, revision)
    own = place / "scheduler" / "scheduler_config.json"
    return _open(rest, source, checkpoint, own if own.is_file() else None, text_encoder)


def parts_of(model: str | Path, place: Path) -> str | None:
    """The model that has the rest of a released one, which lies in `place` as a transformer alone."""
    known = None if (place / "model_index.json").is_file() else known_model(model)
    return known and known.parts


def check_parts(parts: Path, checkpoint: "Checkpoint") -> None:
    """PixArtError if the model folder `parts` is not complete, or does not fit `checkpoint` as its transformer."""
    _open(parts, Source(model="the transformer"), checkpoint)


def load_denoiser(
    folder: ModelFolder,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    on_bytes: OnBytes | None = None,
) -> "PixArt":
    """The transformer of a checked model folder in `dtype` (None: fp32), wherever it lies; needs torch.

    Raises:
        PixArtError: its weights are damaged, or those of another network.
    """
    import torch

    if folder.checkpoint is None:
        return load_transformer(folder.transformer_folder, dtype, device, on_bytes)
    return assemble(folder.checkpoint.config, folder.checkpoint.state, dtype or torch.float32).to(device)


def load_null_caption(folder: ModelFolder) -> "torch.Tensor":
    """The null caption (L, T) of a model folder with `null_tokens`."""
    if folder.checkpoint is not None:
        return folder.checkpoint.null_caption
    return read_null_caption(folder.transformer_folder, folder.transformer["caption_channels"])


def _given(source: str | Path) -> str:
    return str(source) if looks_like_hub_id(source) else str(Path(source).absolute())


def _shown(source: str | None) -> str | None:
    """A hub id as it is, of a path the last name."""
    return Path(source).resolve().name if source and Path(source).is_absolute() else source


def _is_transformer(folder: Path) -> bool:
    """Whether it is the folder of a transformer alone, or has one and nothing else."""
    if (folder / "model_index.json").is_file():
        return False
    inside = (folder / "transformer" / "config.json").is_file() and not (folder / "vae").is_dir()
    return inside or (folder / "config.json").is_file()


def _open(
    folder: Path,
    source: Source,
    checkpoint: "Checkpoint | None",
    scheduler_file: Path | None = None,
    text_encoder: Path | None = None,
) -> ModelFolder:
    index, known = _read(folder / "model_index.json"), known_model(source.model)
    encoder = text_encoder or folder / "text_encoder"
    if text_encoder is None and not (encoder / "config.json").is_file():
        raise PixArtError(
            f"{encoder / 'config.json'} is missing; copy or download the text encoder, or name a T5 file or folder "
            "with --text-encoder."
        )
    own_parts = [part for part in CLASSES if part != "text_encoder" or text_encoder is None]
    _check_classes(index, folder / "model_index.json", own_parts)
    place = scheduler_file or folder / "scheduler" / "scheduler_config.json"
    scheduler, suited = read_scheduler(_read(place), str(place))
    encoder_config = read_encoder_config(encoder)
    vae = _read_vae(folder / "vae" / "config.json")
    if checkpoint is None:
        transformer = read_settings(folder / "transformer" / "config.json")
        null_tokens = _null_tokens(folder / "transformer" / NULL_CAPTION_NAME)
    else:
        transformer = diffusers_config(checkpoint.config)
        null_tokens = 0 if checkpoint.null_caption is None else len(checkpoint.null_caption)
    # Networks that were not trained together would fail with a shape error deep inside.
    for part, what, given, wanted in (
        (encoder, "text states of width", text_width(encoder_config), transformer["caption_channels"]),
        (folder / "vae", "latent channels:", vae.get("latent_channels"), transformer["in_channels"]),
    ):
        if given != wanted:
            raise PixArtError(
                f"{part if part.is_file() else part / 'config.json'} does not fit the transformer, which reads "
                f"{what} {wanted}, and not {shown(given)}; put the one there that the transformer was trained with."
            )
    beside = encoder.parent if encoder.is_file() else encoder
    tokenizer = tokenizer_folder(beside.parent / "tokenizer", folder / "tokenizer", beside)
    text_files = tuple(weight_files(encoder, WEIGHTS["text_encoder"]))
    parts = ("vae",) if checkpoint is not None else ("transformer", "vae")
    weights = [*text_files, *(file for part in parts for file in weight_files(folder / part, WEIGHTS[part]))]
    refuse_quantised(weights)
    vae_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    native = transformer["sample_size"] * vae_factor
    styles = folder / "styles.json"
    by_pipeline = SIGMA_TOKENS if index["_class_name"] == "PixArtSigmaPipeline" else MAX_TOKENS
    return ModelFolder(
        path=folder,
        scheduler=scheduler,
        transformer=transformer,
        text_encoder=encoder,
        text_encoder_class=ENCODER_CLASSES[encoder_config["model_type"]][0],
        text_files=text_files,
        tokenizer=tokenizer,
        styles=read_styles(_read(styles), str(styles)) if styles.exists() else GENERAL_STYLES,
        defaults=suited | ({} if known is None else known.defaults) | _read_defaults(folder / "pixart.json"),
        native_size=native,
        size_multiple=transformer["patch_size"] * vae_factor,
        max_size=max(1024, 2 * native),
        vae_factor=vae_factor,
        max_tokens=null_tokens or by_pipeline,
        null_tokens=null_tokens,
        weights=(*weights, *(() if checkpoint is None else checkpoint.files)),
        has_graphs=checkpoint is None and text_encoder is None and _has_all(folder, GRAPHS),
        fast_settings=read_fast_settings(folder / FAST) if checkpoint is None else None,
        source=source if text_encoder is None else replace(source, text_encoder=str(text_encoder.absolute())),
        checkpoint=checkpoint,
    )


def _with_fast(folder: ModelFolder) -> ModelFolder:
    """The same model, sampled with its few-step transformer. UsageError where it has none, PixArtError for damage."""
    if folder.fast_settings is None:
        raise UsageError(f"{folder.path} has no few-step transformer; leave --fast out (docs/training.md trains one).")
    path = folder.path
    where = path / FAST / "transformer"
    transformer = read_settings(where / "config.json")
    check_same_network(where / "config.json", transformer, folder.transformer)
    others = [file for file in folder.weights if file.parent != path / "transformer"]
    return replace(
        folder,
        fast=True,
        transformer=transformer,
        defaults=folder.fast_settings,
        null_tokens=0,
        weights=(*weight_files(where, WEIGHTS["transformer"]), *others),
        has_graphs=_has_all(path, FAST_GRAPHS),
    )


def _has_all(folder: Path, graphs: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in graphs if name != ENCODER_GRAPH)


def weight_hashes(folder: ModelFolder) -> dict[str, str]:
    """What names the weights of a model in image metadata; see `pixart.checkpoints.hashes`."""
    own = [path for path in folder.weights if path not in folder.text_files]
    return text_hashes(folder) | hashes_of(folder.path, own)


def text_hashes(folder: ModelFolder) -> dict[str, str]:
    """As `weight_hashes`, of the text encoder."""
    return hashes_of(folder.path, folder.text_files, "text_encoder")


def transformer_hash(hashes: dict[str, str]) -> str:
    """Of `weight_hashes`, the one that tells a model from another: of its transformer, the first file's."""
    places = ("transformer/", f"{FAST}/transformer/")
    return next((hashes[name] for name in sorted(hashes) if name.startswith(places)), "none")


def fingerprint(folder: Path, *, fast: bool = False) -> str:
    """SHA-256 of what a graph takes from a model folder besides the weights' values: configs, places of the weights.

    A graph carries the fingerprint that it was made for, since with other files beside it it would read wrong numbers.
    `fast`: with the few-step transformer in place of the transformer.
    """
    digest = hashlib.sha256()
    for part, name in WEIGHTS.items():
        part = f"{FAST}/{part}" if fast and part == "transformer" else part
        digest.update((folder / part / "config.json").read_bytes())
        digest.update(header_bytes(folder / part / name))
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, nonfinite=True)  # Diffusers writes infinities into scheduler configs


def _check_classes(index: dict[str, Any], path: Path, parts: list[str]) -> None:
    """The pipeline and the class of each of the parts, as model_index.json names them."""
    if index.get("_class_name") not in PIPELINES:
        raise PixArtError(
            f"{path} describes {shown(index.get('_class_name'))}; pixart runs {' and '.join(PIPELINES)}, so give the "
            "folder of such a model."
        )
    for part in parts:
        named, allowed = index.get(part), CLASSES[part]
        if not (isinstance(named, list) and len(named) == 2 and named[1] in allowed):
            name = named[1] if isinstance(named, list) and len(named) == 2 else named
            raise PixArtError(
                f"{path} says {part} is {shown(name)}, and pixart reads {' or '.join(allowed)}; give a model folder "
                "whose parts are of these classes."
            )


def _read_vae(path: Path) -> dict[str, Any]:
    config = _read(path)
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise PixArtError(
            f"{path} describes {shown(config['_class_name'])}, and pixart reads AutoencoderKL; put the autoencoder "
            "there that the transformer was trained with."
        )
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
        raise PixArtError(f"{path} is damaged: block_out_channels is {shown(levels)}, not 1 to 8 sizes.")
    channels = {f"block_out_channels[{number}]": size for number, size in enumerate(levels)}
    most = {"layers_per_block": 32, "latent_channels": 1024, "in_channels": 1024, "out_channels": 1024}
    check_sizes(config | channels, most | dict.fromkeys(channels, 16_384), path)
    return config


def _null_tokens(path: Path) -> int:
    """How long the null caption in this file is; 0 where there is none."""
    if not path.is_file():
        return 0
    stored = read_header(path).get(NULL_CAPTION)
    if stored is None or len(stored.shape) != 2 or not 1 < stored.shape[0] <= 10_000:
        raise PixArtError(f"{path} is damaged: it holds no {NULL_CAPTION} of 2 dimensions.")
    return stored.shape[0]


def _read_defaults(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    defaults = _read(path)
    checks = {
        "steps": lambda value: type(value) is int and value > 0,
        "guidance_scale": lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
        "sampler": lambda value: isinstance(value, str),
    }
    for key, value in defaults.items():
        if key in checks and not checks[key](value):
            raise PixArtError(f"{path} is damaged: {key} is {shown(value)}.")
    return {key: defaults[key] for key in checks if key in defaults}
