"""Checkpoints of a run: `checkpoint-<step>/` with weights, EMA and optimiser as safetensors and `state.json`.

At any instant the newest checkpoint is whole. It is written under another name, forced to the disk and renamed; an old
one is renamed before it is deleted. `state.json` holds size and SHA-256 of every file, so that a truncated file or a
flipped bit is noticed before it is trained on. Files hold whole tensors whatever the number of processes that wrote
them, so any number can read them. Nothing in them is a pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pixart.errors import PixArtError
from pixart.training.distributed import cut_like, whole
from pixart.training.ema import Ema
from pixart.training.files import force, write_whole
from pixart.training.optimizers.optimizer import Optimizer

KEEP = 2
STATE = "state.json"
BAD_FILE = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files are what `state` says of them."""

    folder: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    def refuse_other_data(self, data: str | None) -> None:
        """Raises PixArtError if the run was trained on something else than `data` so far; None is not known."""
        if data and self.state.get("data") not in (None, data):
            raise PixArtError(
                f"The data of this run has changed since {self.folder} was written, so it would not go on as it began. "
                "Bring the data back as it was, or give another --run."
            )

    def load_weights(self, model: torch.nn.Module, averages: Ema) -> None:
        """Fill both, before they are sharded. Raises PixArtError where they are another network's."""

        def fill() -> None:
            model.load_state_dict(self.read("model"))
            averages.load_states({name: self.read(name) for name in averages.states()})

        self._matching(fill)

    def load_optimizer(self, optimizer: Optimizer) -> None:
        """Fill it; each process takes its shards. Raises PixArtError where it is another optimiser's."""

        def fill() -> None:
            state = self.read("optimizer")
            optimizer.load_state(
                {name: cut_like(value, optimizer.parameters[name.split("|")[0]]) for name, value in state.items()}
            )

        self._matching(fill)

    def read(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file: `model`, `ema`, `ema-<decay>` or `optimizer`. PixArtError where it cannot be."""
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except BAD_FILE as error:
            raise PixArtError(f"The checkpoint file {path} cannot be loaded: {_reason(error)}.") from None

    def _matching(self, fill: Callable[[], None]) -> None:
        try:
            fill()
        except (RuntimeError, KeyError, ValueError) as error:
            raise PixArtError(
                f"{self.folder} holds another network or optimiser than this recipe: {_reason(error)}. "
                "Give the recipe that it was made with, or another --run."
            ) from None


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in run.glob("checkpoint-*")}
    complete = [path for path, step in steps.items() if step.isdecimal() and (path / STATE).is_file()]
    return sorted(complete, key=lambda path: int(steps[path]))


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of `run`, every file of it compared with its checksum; None where there is none.

    Raises:
        PixArtError: it is damaged; names the file and the newest older checkpoint that is whole.
    """
    folders = found(run)
    if not folders:
        return None
    try:
        return verified(folders[-1])
    except PixArtError as error:
        older = next((folder for folder in reversed(folders[:-1]) if _is_whole(folder)), None)
        advice = f"Remove {folders[-1].name} to continue from {older.name}, which is whole." if older else (
            f"No older one is whole: remove {run} to begin again."
        )  # fmt: skip
        raise PixArtError(f"{error} {advice}") from None


def verified(folder: Path) -> Checkpoint:
    """A checkpoint whose files have the sizes and checksums that they were written with. PixArtError where not."""
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        files = state.get("files", {})
        if set(state) != {"step"} and state["sha256"] != _digest_of_state(state):  # the first format had no checksums
            raise ValueError("its checksum does not fit")
        int(state["step"])
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                raise ValueError(f"it has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
            if _digest(path) != expected["sha256"]:
                raise ValueError("its contents have changed since it was written")
    except (*BAD_FILE, AttributeError) as error:
        raise PixArtError(f"The checkpoint file {path} cannot be loaded: {_reason(error)}.") from None
    return Checkpoint(folder, state)


def _is_whole(folder: Path) -> bool:
    try:
        verified(folder)
    except PixArtError:
        return False
    return True


def save(
    run: Path,
    step: int,
    model: torch.nn.Module,
    averages: Ema,
    optimizer: Optimizer,
    *,
    main: bool = True,
    extra: dict | None = None,
) -> None:
    """Write `checkpoint-<step>` and drop all but the newest two.

    All processes must call it, since each holds its shards; only the main one writes. `extra` goes into `state.json`.

    Raises:
        PixArtError: the disk refused (full, read-only); older checkpoints stay as they were.
    """
    final, partial = run / f"checkpoint-{step}", run / f".checkpoint-{step}.partial"
    parts = {"model": model.state_dict(), **averages.states(), "optimizer": optimizer.state()}
    try:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        files = {}
        for part, tensors in parts.items():
            tensors = _gathered(tensors, main)
            if main:
                path = partial / f"{part}.safetensors"
                save_file(tensors, path)
                force(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        if not main:
            return
        state = {"step": step, **(extra or {}), "files": files}
        write_whole(partial / STATE, json.dumps({**state, "sha256": _digest_of_state(state)}, indent=1))
        _discard(final)
        partial.rename(final)
        force(run)
    except (OSError, SafetensorError, PixArtError) as error:  # the second is what safetensors makes of a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise PixArtError(f"Could not write {final}: {_reason(error)}. Older checkpoints are kept.") from None
    for old in found(run)[:-KEEP]:
        _discard(old)


def sweep(run: Path) -> None:
    """Remove what a kill left of checkpoints that were being written, replaced or deleted."""
    for old in found(run)[:-KEEP]:
        _discard(old)
    for pattern in (".checkpoint-*.partial", ".checkpoint-*.old"):
        for path in run.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def ema_state(run: Path) -> dict[str, torch.Tensor]:
    """The EMA weights of the newest checkpoint of `run`, as fp32 tensors.

    Raises:
        PixArtError: the run has no checkpoint, or it is damaged.
    """
    folders = found(run)
    if not folders:
        raise PixArtError(f"{run} has no checkpoint to start from. Train it first, or give another run with --init.")
    checkpoint = newest(run)
    return checkpoint.read("ema")


def _gathered(tensors: dict[str, torch.Tensor], main: bool) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, one after the other, so that no device ever holds more than one beside its shards."""
    out = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor.detach())
        if main:
            out[name] = tensor.cpu().contiguous()
    return out


def _discard(folder: Path) -> None:
    """Delete a checkpoint in such a way that half of one never looks like a whole one."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_state(state: dict) -> str:
    rest = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """The first line that says something; torch begins with the name of the class and goes on with each weight."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1 if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else 0].rstrip(".:")
