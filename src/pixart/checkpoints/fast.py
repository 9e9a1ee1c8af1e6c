"""The few-step transformer of a model folder, distilled from the model's own, in `fast/`.

    fast/transformer/   a stock transformer folder, of the same sizes as the model's own
    fast/scheduler/     the model's scheduler config at order 1, with which stock Diffusers takes the same steps
    fast/pixart.json    steps, the guidance scale that is in its weights, and whose student it is

Text encoder, tokenizer and autoencoder are the model's own. Stock Diffusers does not look at `fast/` by itself; it
takes both as subfolders.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixart.checkpoints.diffusers import SIZES, save_transformer
from pixart.checkpoints.folder import new_folder
from pixart.checkpoints.hashes import HASHES, weights_hash, write_hashes
from pixart.errors import PixArtError, UsageError, shown
from pixart.files import read_json_object, write_json

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
    """Write the folder `dest` with a few-step transformer in half precision, complete or not at all; gives its path.

    Args:
        state: weights of the PixArt, official names.
        scheduler: the config of the model that it belongs to.
        steps: of Euler's method, in which it samples.
        distilled_guidance_scale: the guidance that is in its weights; it samples without any.
        teacher: `pixart.checkpoints.hashes.weights_hash` of the transformer that has taught it.

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
    """How the few-step transformer in `folder`, such as MODEL/fast, samples; None where there is none.

    Raises:
        PixArtError: its `pixart.json` is damaged.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    settings = read_json_object(path)
    checks = {
        "sampler": lambda value: value == "euler",
        "steps": lambda value: type(value) is int and 1 <= value <= 50,
        "guidance_scale": lambda value: value == 1,
        DISTILLED: lambda value: type(value) in (int, float) and 0 <= value <= 50,
        TEACHER: lambda value: isinstance(value, str),
    }
    for key, fits in checks.items():
        if not fits(settings.get(key)):
            raise PixArtError(f"{path} is damaged: {key} is {shown(settings.get(key))}.")
    return {key: settings[key] for key in checks}


def check_same_network(path: Path, fast: dict[str, Any], own: dict[str, Any]) -> None:
    """PixArtError where the config of a few-step transformer, the file `path`, has other sizes than the model's own."""
    for name in (*SIZES, "interpolation_scale", "use_additional_conditions"):
        if fast.get(name) != own.get(name):
            raise PixArtError(
                f"{path} is of another network than the model's transformer: {name} is {fast.get(name)!r} and not "
                f"{own.get(name)!r}. Distil one for this model."
            )


def add_fast(source: Path, model: Path) -> Path:
    """Put the few-step transformer of `source` (a run, a model that has one, or its folder) into the folder `model`.

    Returns:
        Its place there, which appears complete or not at all.

    Raises:
        UsageError: `model` has one already, or is not the model that has taught it.
        PixArtError: there is none at `source`, it is damaged, or the disk refuses.
    """
    place = next((folder for folder in (source, source / FAST) if (folder / SETTINGS).is_file()), source)
    settings, dest = read_fast_settings(place), model / FAST
    if settings is None or not (place / "transformer").is_dir():
        raise PixArtError(f"{source} holds no few-step transformer; give a finished run of a distillation recipe.")
    if dest.exists():
        raise UsageError(f"{dest} exists already; move it away to put another there.")
    if settings[TEACHER] != weights_hash(model / "transformer"):
        raise UsageError(
            f"The few-step transformer in {place} was taught by another model than {model}; distil one with this model "
            "as teacher (docs/training.md)."
        )
    with new_folder(dest, hashed=False) as work:
        shutil.copytree(place, work, dirs_exist_ok=True)
    if (model / HASHES).is_file():
        write_hashes(model)
    return dest
