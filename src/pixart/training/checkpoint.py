"""Checkpoints of a run: `checkpoint-<step>/` with weights, EMA and optimiser as safetensors and `state.json`.

A checkpoint is written under another name and renamed when it is whole, so the newest one is always loadable.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pixart.errors import PixArtError
from pixart.training.ema import Ema
from pixart.training.optimizer import Optimizer

KEEP = 2


def found(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in run.glob("checkpoint-*")}
    whole = [path for path, step in steps.items() if step.isdecimal() and (path / "state.json").is_file()]
    return sorted(whole, key=lambda path: int(steps[path]))


def save(run: Path, step: int, model: torch.nn.Module, ema: Ema, optimizer: Optimizer) -> None:
    """Write `checkpoint-<step>` and drop all but the newest two.

    Raises:
        PixArtError: the disk refused (full, read-only); older checkpoints stay as they were.
    """
    final, partial = run / f"checkpoint-{step}", run / f".checkpoint-{step}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_plain(model.state_dict()), partial / "model.safetensors")
        for name, state in ema.states().items():
            save_file(_plain(state), partial / f"{name}.safetensors")
        save_file(_plain(optimizer.state()), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, SafetensorError) as error:  # the second is what safetensors makes of a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise PixArtError(f"Could not write {final}: {error}. Older checkpoints are kept.") from None
    for old in found(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def restore(run: Path, model: torch.nn.Module, ema: Ema, optimizer: Optimizer) -> int:
    """Load the newest checkpoint of `run` into the three and return its step; 0 when there is none.

    Raises:
        PixArtError: the checkpoint is damaged or belongs to another network; names the file and the older one.
    """
    folders = found(run)
    if not folders:
        return 0
    newest = folders[-1]
    loads = {
        "model.safetensors": lambda path: model.load_state_dict(load_file(path)),
        "ema.safetensors": lambda path: ema.load_states({"ema": load_file(path)}),
        "optimizer.safetensors": lambda path: optimizer.load_state(load_file(path)),
        "state.json": lambda path: json.loads(path.read_text(encoding="utf-8"))["step"],
    }
    for name, load in loads.items():
        try:
            last = load(newest / name)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            advice = f"to continue from {folders[-2].name}" if len(folders) > 1 else "to begin again"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise PixArtError(
                f"The checkpoint file {newest / name} cannot be loaded: {reason}. Remove {newest.name} {advice}."
            ) from None
    return last


def ema_state(run: Path) -> dict[str, torch.Tensor]:
    """The EMA weights of the newest checkpoint of `run`, as fp32 tensors.

    Raises:
        PixArtError: the run has no checkpoint, or it is damaged.
    """
    folders = found(run)
    if not folders:
        raise PixArtError(f"{run} has no checkpoint to start from. Train it first, or give another run with --init.")
    try:
        return load_file(folders[-1] / "ema.safetensors")
    except (OSError, SafetensorError) as error:
        raise PixArtError(f"{folders[-1] / 'ema.safetensors'} cannot be read: {error}") from None


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
