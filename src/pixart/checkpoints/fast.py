"""The fast denoiser of a model folder: a second transformer that draws in a few steps, in `fast/`.

    fast/transformer/   a stock transformer folder, of the same sizes as the model's own
    fast/scheduler/     the model's scheduler config at order 1, with which stock Diffusers takes the same steps
    fast/pixart.json    how it is drawn, the guidance scale that is in its weights, and whose student it is

Text encoder, tokenizer and autoencoder are the model's own. Stock Diffusers does not look at `fast/` by itself; it
takes both as subfolders.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixart.checkpoints.diffusers import SIZES, WEIGHTS_NAME, save_transformer
from pixart.checkpoints.folder import new_folder
from pixart.checkpoints.hashes import HASHES, write_hashes
from pixart.checkpoints.weight_files import read_object, weight_files
from pixart.errors import PixArtError, UsageError
from pixart.files import write_json

if TYPE_CHECKING:
    import torch

    from pixart.model.pixart import PixArtConfig

FAST = "fast"
SETTINGS = "pixart.json"
DISTILLED, TEACHER = "distilled_guidance_scale", "teacher"  # keys there


def write_fast(
    dest: Path,
    *,
    state: "dict[str, torch.Tensor]",
    config: "PixArtConfig",
    scheduler: dict[str, Any],
    steps: int,
    distilled_guidance_scale: float,
    teacher: str,
) -> Path:
    """Write the folder `dest` with a fast denoiser in half precision, whole or not at all; gives its path.

    Args:
        state: weights of the PixArt, official names.
        scheduler: the config of the model that it belongs to.
        steps: of Euler's method, in which it draws.
        distilled_guidance_scale: the guidance that is in its weights; it is drawn without any.
        teacher: `weights_hash` of the transformer that has taught it.

    Raises:
        PixArtError: the disk refuses.
    """
    import torch

    settings = {"sampler": "euler", "steps": steps, "guidance_scale": 1.0}
    with new_folder(dest, hashed=False) as work:
        save_transformer(state, config, work / "transformer", torch.float16)
        write_json(work / "scheduler" / "scheduler_config.json", scheduler | {"solver_order": 1}, nonfinite=True)
        write_json(work / SETTINGS, settings | {DISTILLED: distilled_guidance_scale, TEACHER: teacher})
    return dest


def read_fast_settings(folder: Path) -> dict[str, Any] | None:
    """How the fast denoiser in `folder`, such as MODEL/fast, is drawn; None where there is none.

    Raises:
        PixArtError: its `pixart.json` is damaged.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    settings = read_object(path)
    checks = {
        "sampler": lambda value: value == "euler",
        "steps": lambda value: type(value) is int and 1 <= value <= 50,
        "guidance_scale": lambda value: value == 1,
        DISTILLED: lambda value: type(value) in (int, float) and 0 <= value <= 50,
        TEACHER: lambda value: isinstance(value, str),
    }
    for key, fits in checks.items():
        if not fits(settings.get(key)):
            raise PixArtError(f"The model folder is damaged: {path} says {key} is {settings.get(key)!r}.")
    return {key: settings[key] for key in checks}


def check_same_network(path: Path, fast: dict[str, Any], own: dict[str, Any]) -> None:
    """PixArtError where the config of a fast denoiser, of the file `path`, has other sizes than the model's own."""
    for name in (*SIZES, "interpolation_scale", "use_additional_conditions"):
        if fast.get(name) != own.get(name):
            raise PixArtError(
                f"{path} is of another network than the model's transformer: {name} is {fast.get(name)!r} and not "
                f"{own.get(name)!r}. Train a fast denoiser for this model."
            )


def add_fast(source: Path, model: Path) -> Path:
    """Put the fast denoiser of `source` (a run, a model that has one, or its folder) into the model folder `model`.

    Returns:
        Its place there, which appears whole or not at all.

    Raises:
        UsageError: `model` has one already, or is not the model that has taught it.
        PixArtError: there is none at `source`, it is damaged, or the disk refuses.
    """
    place = next((folder for folder in (source, source / FAST) if (folder / SETTINGS).is_file()), None)
    settings = None if place is None else read_fast_settings(place)
    if settings is None or not (place / "transformer").is_dir():
        raise PixArtError(f"{source} holds no fast denoiser; give a finished run of a distillation recipe.")
    dest = model / FAST
    if dest.exists():
        raise UsageError(f"{dest} exists already; move it away to put another there.")
    if settings[TEACHER] != weights_hash(model / "transformer"):
        raise UsageError(
            f"The fast denoiser in {place} was taught by another model than {model}; train one with "
            "this model as teacher (docs/training.md)."
        )
    with new_folder(dest, hashed=False) as work:
        shutil.copytree(place, work, dirs_exist_ok=True)
    if (model / HASHES).is_file():
        write_hashes(model)
    return dest


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights files of a `transformer/` folder, which says whose student a fast denoiser is."""
    digest = hashlib.sha256()
    for path in weight_files(folder, WEIGHTS_NAME):
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
