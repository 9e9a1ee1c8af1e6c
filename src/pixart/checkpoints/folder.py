"""Model folders are written here, as `diffusers.PixArtAlphaPipeline.from_pretrained(folder)` reads them."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixart.checkpoints.diffusers import CLASS_NAMES, FORMAT_VERSION, MAX_LAYERS, WEIGHTS_NAME, save_transformer
from pixart.checkpoints.hashes import write_hashes
from pixart.checkpoints.tensors import save_tensors
from pixart.encoders.text_files import encoder_config, has_tokenizer
from pixart.errors import PixArtError, UsageError, reason_of, shown
from pixart.files import read_json_object, replacing, write_json
from pixart.weights import map_tensors

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from pixart.checkpoints.official import Checkpoint
    from pixart.model.pixart import PixArtConfig

INDEX = "model_index.json"
PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")  # of a model folder, besides the transformer
SMALL_FILES = ("styles.json", "pixart.json", "README.md", "LICENSE")
MODEL_INDEX = {
    "_class_name": "PixArtAlphaPipeline",
    "_diffusers_version": FORMAT_VERSION,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": FORMAT_VERSION,
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "midpoint",
}
# A rectified flow as that class knows it: x_t = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0, timestep = 1000
# sigma. FlowMatchEulerDiscreteScheduler does not work in PixArtAlphaPipeline; order 1 of this one is Euler.
FLOW_SCHEDULER = SCHEDULER | {"flow_shift": 1.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
# The official noise schedule and prediction, as the released models' folders have it.
DDPM_SCHEDULER = SCHEDULER | {
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "prediction_type": "epsilon",
}
# How a text encoder is named in model_index.json: by the model_type of its config.
ENCODER_CLASSES = {"bert": ("BertModel", "BertTokenizer"), "t5": ("T5EncoderModel", "T5Tokenizer")}
SAMPLE_SIZES = (32, 64, 128)  # the stock pipeline refuses all others
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "spiece.model",
)  # fmt: skip
# The sizes in a text encoder's config; the limits are far above those of any real one.
ENCODER_SIZES = dict.fromkeys(("num_layers", "num_hidden_layers", "num_decoder_layers"), MAX_LAYERS) | dict.fromkeys(
    (
        "vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "hidden_size", "intermediate_size", "num_attention_heads",
        "max_position_embeddings", "type_vocab_size", "relative_attention_num_buckets",
    ),
    2_000_000,
)  # fmt: skip


@contextlib.contextmanager
def new_folder(dest: Path, *, hashed: bool = True) -> Iterator[Path]:
    """An empty folder to write a model into, which appears as `dest` when the block ends well, else not at all.

    `hashed` writes its `hashes.json` (`pixart.checkpoints.hashes`).

    Raises:
        PixArtError: the disk refuses.
    """
    try:
        with replacing(dest) as work:
            work.mkdir()
            yield work
            if hashed:
                write_hashes(work)
    except OSError as error:  # shutil's own error is one, too
        raise PixArtError(f"{dest} cannot be written ({reason_of(error)}).") from None


def write_model_folder(
    dest: Path | str,
    *,
    transformer_state: "dict[str, torch.Tensor]",
    config: "PixArtConfig",
    vae: "AutoencoderKL",
    text_encoder_folder: Path | str,
    tokenizer_folder: Path | str,
    dtype: "torch.dtype",
    styles: dict[str, dict[str, str]] | None,
    objective: Literal["flow", "ddpm"] = "flow",
    flow_shift: float = 1.0,
    guidance_scale: float | None = None,
) -> None:
    """Write a model with all that sampling needs; `dest` appears complete or not at all.

    Args:
        dest: the new folder; must not exist, or be empty.
        transformer_state: weights of the PixArt, official names.
        config: its sizes; sample_size 32, 64 or 128.
        vae: the transformer was trained on its latents times its scaling_factor.
        text_encoder_folder: config.json and weights of a BertModel, or of a T5EncoderModel, which is copied as it is.
        tokenizer_folder: the files of its tokenizer.
        dtype: of all weights on disk, for example torch.float16. The text encoder's config asks for fp32 in memory, as
            Diffusers does for the rest, so that the stock call needs no argument.
        objective: what the transformer predicts: the velocity of a rectified flow, or eps of the official process.
        flow_shift: for a flow: above 1, sampling spends more of its steps at high noise, where the layout is decided.
        guidance_scale: the default of this model, written as pixart.json; None leaves it out.
        styles: written as styles.json if given: name -> {"prompt": "{prompt}, ...", "negative_prompt": ...}.

    Raises:
        UsageError: the parts do not fit each other, or `dest` is in use.
        PixArtError: a source file is missing or damaged, or the disk refuses.
    """
    dest, text_encoder_folder, tokenizer_folder = Path(dest), Path(text_encoder_folder), Path(tokenizer_folder)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} exists already; give a new folder for the model.")
    encoder = read_encoder_config(text_encoder_folder)
    check_fit(config, vae, encoder)
    if dest.is_dir():
        dest.rmdir()
    model_type = encoder["model_type"]
    model_class, tokenizer_class = ENCODER_CLASSES[model_type]
    index = {"text_encoder": ["transformers", model_class], "tokenizer": ["transformers", tokenizer_class]}
    scheduler = FLOW_SCHEDULER | {"flow_shift": flow_shift} if objective == "flow" else DDPM_SCHEDULER
    with new_folder(dest) as work:
        write_json(work / INDEX, MODEL_INDEX | index)
        write_json(work / "scheduler" / "scheduler_config.json", scheduler)
        save_transformer(transformer_state, config, work / "transformer", dtype)
        _write_vae(vae, work / "vae", dtype)
        if model_type == "bert":
            _write_text_encoder(encoder, text_encoder_folder / "model.safetensors", work / "text_encoder", dtype)
        else:
            copy_text_encoder(text_encoder_folder, work / "text_encoder")
        _copy_tokenizer(tokenizer_folder, work / "tokenizer")
        if styles is not None:
            write_json(work / "styles.json", styles)
        if guidance_scale is not None:
            write_json(work / "pixart.json", {"guidance_scale": guidance_scale})


def write_with_vae(source: Path, dest: Path, vae: "AutoencoderKL", dtype: "torch.dtype") -> Path:
    """Write the new model folder `dest`: that of `source` with another autoencoder; gives its path.

    `dest` appears complete or not at all. Graphs are left out, since one of them is the decoder; `pixart convert` makes
    them again. Raises PixArtError where the disk refuses.
    """
    with new_folder(dest) as work:
        shutil.copytree(source, work, ignore=shutil.ignore_patterns("vae", "*.onnx"), dirs_exist_ok=True)
        _write_vae(vae, work / "vae", dtype)
    return dest


def write_diffusers(checkpoint: "Checkpoint", dest: Path, parts: Path | None) -> None:
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


def check_fit(config: "PixArtConfig", vae: "AutoencoderKL", encoder: dict[str, Any]) -> None:
    """UsageError if the parts do not fit each other or the stock pipeline could not sample with them."""
    if config.sample_size not in SAMPLE_SIZES:
        raise UsageError(f"The sample size is {config.sample_size}; the stock pipeline generates only {SAMPLE_SIZES}.")
    if config.in_channels != vae.config.latent_channels:
        raise UsageError(
            f"The denoiser has {config.in_channels} latent channels and the VAE {vae.config.latent_channels}."
        )
    if vae.config.shift_factor:
        raise UsageError(
            f"The VAE has shift_factor {vae.config.shift_factor}, which the stock pipeline does not apply; fold it "
            "into quant_conv and post_quant_conv, and set it to None."
        )
    width = text_width(encoder)
    if config.text_dim != width:
        raise UsageError(f"The denoiser reads text states of width {config.text_dim}; the text encoder makes {width}.")


def text_width(encoder: dict[str, Any]) -> int:
    """Width of a text encoder's states, by its config."""
    return encoder["hidden_size" if encoder["model_type"] == "bert" else "d_model"]


def read_encoder_config(place: Path) -> dict[str, Any]:
    """The config of a BERT or T5, in a folder or of a file, its sizes checked; PixArtError where it is another."""
    path = place if place.is_file() else place / "config.json"
    config = {"model_type": "t5"} | encoder_config(place)
    if {"bert": "hidden_size", "t5": "d_model"}.get(str(config["model_type"])) not in config:
        raise PixArtError(
            f"{path} describes a text encoder of type {shown(config['model_type'])}, or without its width; pixart "
            "reads bert and t5, so put the text encoder there that the transformer was trained with."
        )
    check_sizes(config, ENCODER_SIZES, path)
    return config


def check_sizes(config: dict[str, Any], most: dict[str, int], path: Path) -> None:
    """Networks are built from these before their weights are looked at, so an absurd one would take all memory."""
    for name, limit in most.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= limit):
            raise PixArtError(f"{path} has {name} = {shown(value)}; it must be a whole number up to {limit:,}.")


def _write_text_encoder(config: dict[str, Any], weights: Path, folder: Path, dtype: "torch.dtype") -> None:
    """Config with fp32 in memory, weights with `dtype` on disk."""
    kept = {name: value for name, value in config.items() if name not in ("_name_or_path", "torch_dtype")}
    write_json(folder / "config.json", kept | {"architectures": ["BertModel"], "dtype": "float32"})
    save_tensors(map_tensors(weights), folder / "model.safetensors", dtype)


def copy_text_encoder(source: Path, folder: Path) -> None:
    """Config and safetensors files as they are: a T5 has 19 GB, and overflows in half precision."""
    if not source.is_dir():
        raise PixArtError(f"{source} is not there; it should hold the text encoder.")
    files = [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json"), source / "config.json"]
    if len(files) < 2:
        raise PixArtError(f"{source} holds no safetensors weights; the text encoder needs them.")
    _copy(files, folder)


def _write_vae(vae: "AutoencoderKL", folder: Path, dtype: "torch.dtype") -> None:
    vae.save_config(folder)
    save_tensors(vae.state_dict(), folder / WEIGHTS_NAME, dtype)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if not has_tokenizer(source):
        raise PixArtError(f"{source / 'tokenizer.json'} is missing; the tokenizer needs it.")
    _copy([source / name for name in TOKENIZER_FILES if (source / name).is_file()], folder)


def _copy(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
