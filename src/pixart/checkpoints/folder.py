"""A whole model folder, as `diffusers.PixArtAlphaPipeline.from_pretrained(folder)` reads it."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pixart.checkpoints.diffusers import FORMAT_VERSION, WEIGHTS_NAME, save_tensors, save_transformer
from pixart.checkpoints.hashes import write_hashes
from pixart.errors import PixArtError, UsageError
from pixart.files import replacing

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from pixart.model.pixart import PixArtConfig

MODEL_INDEX = {
    "_class_name": "PixArtAlphaPipeline",
    "_diffusers_version": FORMAT_VERSION,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# A rectified flow as that class knows it: x_t = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0, timestep = 1000
# sigma. FlowMatchEulerDiscreteScheduler does not work in PixArtAlphaPipeline; order 1 of this one is Euler.
FLOW_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": FORMAT_VERSION,
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "flow_shift": 1.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "use_flow_sigmas": True,
}
# The official noise schedule and prediction, as the released models' folders have it.
DDPM_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": FORMAT_VERSION,
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "solver_order": 2,
    "solver_type": "midpoint",
}
# How a text encoder is named in model_index.json: by the model_type of its config.
ENCODER_CLASSES = {"bert": ("BertModel", "BertTokenizer"), "t5": ("T5EncoderModel", "T5Tokenizer")}
SAMPLE_SIZES = (32, 64, 128)  # the stock pipeline refuses all others
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "spiece.model",
)


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
    """Write a model with all that drawing needs; `dest` appears whole or not at all.

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
        flow_shift: for a flow: above 1, drawing spends more of its steps at high noise, where the layout is decided.
        guidance_scale: what `pixart` draws with unless told otherwise, written as pixart.json; None leaves it out.
        styles: written as styles.json if given: name -> {"prompt": "{prompt}, ...", "negative_prompt": ...}.

    Raises:
        UsageError: the parts do not fit each other, or `dest` is in use.
        PixArtError: a source file is missing or damaged, or the disk refuses.
    """
    dest, text_encoder_folder, tokenizer_folder = Path(dest), Path(text_encoder_folder), Path(tokenizer_folder)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} exists already; give a new folder for the model.")
    encoder_config = read_encoder_config(text_encoder_folder / "config.json")
    check_fit(config, vae, encoder_config)
    if dest.is_dir():
        dest.rmdir()
    try:
        with replacing(dest) as work:
            work.mkdir(parents=True)
            model_class, tokenizer_class = ENCODER_CLASSES[encoder_config["model_type"]]
            index = {"text_encoder": ["transformers", model_class], "tokenizer": ["transformers", tokenizer_class]}
            write_json(work / "model_index.json", MODEL_INDEX | index)
            scheduler = FLOW_SCHEDULER | {"flow_shift": flow_shift} if objective == "flow" else DDPM_SCHEDULER
            write_json(work / "scheduler" / "scheduler_config.json", scheduler)
            save_transformer(transformer_state, config, work / "transformer", dtype)
            write_vae(vae, work / "vae", dtype)
            if encoder_config["model_type"] == "bert":
                weights = text_encoder_folder / "model.safetensors"
                write_text_encoder(encoder_config, weights, work / "text_encoder", dtype)
            else:
                copy_text_encoder(text_encoder_folder, work / "text_encoder")
            copy_tokenizer(tokenizer_folder, work / "tokenizer")
            if styles is not None:
                write_json(work / "styles.json", styles)
            if guidance_scale is not None:
                write_json(work / "pixart.json", {"guidance_scale": guidance_scale})
            write_hashes(work)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written ({error.strerror}).") from error


def write_with_vae(source: Path, dest: Path, vae: "AutoencoderKL", dtype: "torch.dtype") -> Path:
    """Write the new model folder `dest`: that of `source` with another autoencoder; gives its path.

    `dest` appears whole or not at all. Graphs are left out, since one of them is the decoder; `pixart convert` makes
    them again. Raises PixArtError where the disk refuses.
    """
    try:
        with replacing(dest) as work:
            shutil.copytree(source, work, ignore=shutil.ignore_patterns("vae", "*.onnx"))
            write_vae(vae, work / "vae", dtype)
            write_hashes(work)
    except OSError as error:  # shutil's own error is one, too
        raise PixArtError(f"{dest} cannot be written ({error.strerror or error}).") from None
    return dest


def check_fit(config: "PixArtConfig", vae: "AutoencoderKL", encoder_config: dict) -> None:
    """UsageError if the parts do not fit each other or the stock pipeline could not draw with them."""
    if config.sample_size not in SAMPLE_SIZES:
        raise UsageError(f"The sample size is {config.sample_size}; the stock pipeline draws only {SAMPLE_SIZES}.")
    if config.in_channels != vae.config.latent_channels:
        raise UsageError(
            f"The denoiser has {config.in_channels} latent channels and the VAE {vae.config.latent_channels}."
        )
    if vae.config.shift_factor:
        raise UsageError(
            f"The VAE has shift_factor {vae.config.shift_factor}, which the stock pipeline does not apply; fold it "
            "into quant_conv and post_quant_conv, and set it to None."
        )
    if config.text_dim != text_width(encoder_config):
        raise UsageError(
            f"The denoiser reads text states of width {config.text_dim}; the text encoder makes "
            f"{text_width(encoder_config)}."
        )


def text_width(encoder_config: dict) -> int:
    """Width of a text encoder's states."""
    return encoder_config["hidden_size" if encoder_config["model_type"] == "bert" else "d_model"]


def read_encoder_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(f"{path} cannot be read as JSON ({error}).") from error
    width = {"bert": "hidden_size", "t5": "d_model"}.get(config.get("model_type")) if isinstance(config, dict) else None
    if width is None or width not in config:
        raise PixArtError(f"{path} does not describe a BERT or T5 text encoder.")
    return config


def write_text_encoder(config: dict, weights: Path, folder: Path, dtype: "torch.dtype") -> None:
    """Config with fp32 in memory, weights with `dtype` on disk."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise PixArtError(f"{weights} is missing; the text encoder needs it.")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise PixArtError(f"{weights} is damaged ({error}); install or copy it again.") from error
    kept = {name: value for name, value in config.items() if name not in ("_name_or_path", "torch_dtype")}
    write_json(folder / "config.json", kept | {"architectures": ["BertModel"], "dtype": "float32"})
    save_tensors(state, folder / "model.safetensors", dtype)


def copy_text_encoder(source: Path, folder: Path) -> None:
    """Config and safetensors files as they are: a T5 has 19 GB, and overflows in half precision."""
    if not source.is_dir():
        raise PixArtError(f"{source} is not there; it should hold the text encoder.")
    folder.mkdir()
    files = [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json"), source / "config.json"]
    if len(files) < 2:
        raise PixArtError(f"{source} holds no safetensors weights; the text encoder needs them.")
    for file in files:
        shutil.copyfile(file, folder / file.name)


def write_vae(vae: "AutoencoderKL", folder: Path, dtype: "torch.dtype") -> None:
    vae.save_config(folder)
    save_tensors(vae.state_dict(), folder / WEIGHTS_NAME, dtype)


def copy_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir()
    if not any((source / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise PixArtError(f"{source / 'tokenizer.json'} is missing; the tokenizer needs it.")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
