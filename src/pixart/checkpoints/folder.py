"""A whole model folder, as `diffusers.PixArtAlphaPipeline.from_pretrained(folder)` reads it."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.checkpoints.diffusers import FORMAT_VERSION, WEIGHTS_NAME, save_tensors, save_transformer
from pixart.errors import PixArtError, UsageError

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
SAMPLE_SIZES = (32, 64, 128)  # the stock pipeline refuses all others
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


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
    flow_shift: float = 1.0,
) -> None:
    """Write a flow model with all that drawing needs; `dest` appears whole or not at all.

    Args:
        dest: the new folder; must not exist, or be empty.
        transformer_state: weights of the PixArt, official names.
        config: its sizes; sample_size 32, 64 or 128.
        vae: its latents are already scaled to unit deviation (scaling_factor 1).
        text_encoder_folder: a BertModel's config.json and model.safetensors.
        tokenizer_folder: the files of its tokenizer.
        dtype: of all weights on disk, for example torch.float16. The text encoder's config asks for fp32 in memory, as
            Diffusers does for the rest, so that the stock call needs no argument.
        flow_shift: above 1, drawing spends more of its steps at high noise, where the layout is decided.
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
    work = dest.parent / f".{dest.name}.{os.getpid()}.part"
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written ({error.strerror}).") from error
    try:
        write_json(work / "model_index.json", MODEL_INDEX)
        write_json(work / "scheduler" / "scheduler_config.json", FLOW_SCHEDULER | {"flow_shift": flow_shift})
        save_transformer(transformer_state, config, work / "transformer", dtype)
        write_vae(vae, work / "vae", dtype)
        write_text_encoder(encoder_config, text_encoder_folder / "model.safetensors", work / "text_encoder", dtype)
        copy_tokenizer(tokenizer_folder, work / "tokenizer")
        if styles is not None:
            write_json(work / "styles.json", styles)
        work.replace(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_fit(config: "PixArtConfig", vae: "AutoencoderKL", encoder_config: dict) -> None:
    """UsageError if the parts do not fit each other or the stock pipeline could not draw with them."""
    if config.sample_size not in SAMPLE_SIZES:
        raise UsageError(f"The sample size is {config.sample_size}; the stock pipeline draws only {SAMPLE_SIZES}.")
    if config.in_channels != vae.config.latent_channels:
        raise UsageError(
            f"The denoiser has {config.in_channels} latent channels and the VAE {vae.config.latent_channels}."
        )
    if vae.config.scaling_factor != 1 or vae.config.shift_factor:
        raise UsageError(
            f"The VAE has scaling_factor {vae.config.scaling_factor} and shift_factor {vae.config.shift_factor}; fold "
            "them into quant_conv and post_quant_conv, and set them to 1.0 and None."
        )
    if config.text_dim != encoder_config["hidden_size"]:
        raise UsageError(
            f"The denoiser reads text states of width {config.text_dim}; the text encoder makes "
            f"{encoder_config['hidden_size']}."
        )


def read_encoder_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(config, dict) or config.get("model_type") != "bert" or "hidden_size" not in config:
        raise PixArtError(f"{path} does not describe a BERT text encoder.")
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


def write_vae(vae: "AutoencoderKL", folder: Path, dtype: "torch.dtype") -> None:
    vae.save_config(folder)
    save_tensors(vae.state_dict(), folder / WEIGHTS_NAME, dtype)


def copy_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir()
    if not (source / "tokenizer.json").is_file():
        raise PixArtError(f"{source / 'tokenizer.json'} is missing; the tokenizer needs it.")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
