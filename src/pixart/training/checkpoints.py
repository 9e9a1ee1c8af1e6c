"""Checkpoints of a run: `checkpoint-<step>/` with weights, averages and optimizer as safetensors and `state.json`.

At any instant the newest checkpoint is complete: it is written under another name, forced to the disk and renamed.
`state.json` holds size and SHA-256 of every file, so that a truncated file or a flipped bit is noticed before it is
trained on. Files hold full tensors whatever the number of processes that wrote them, so any number can read them.
Nothing in them is a pickle.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pixart.config import plain, structure
from pixart.errors import PixArtError, reason_of
from pixart.files import file_hash, read_json, remove_partial, replacing, write_json
from pixart.model.adapters import kept
from pixart.training.distribution import full_tensor, shard_like
from pixart.training.ema import Ema, load_kept
from pixart.training.optimizers import Optimizer

KEEP = 2
STATE = "state.json"


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class State:
    """`state.json`. `data` is a hash of what was trained on, `scaler` the state of torch's GradScaler, `hours` and
    `images` what the run has taken so far, `sha256` a hash of all the rest.
    """

    step: int
    files: dict[str, File]
    data: str = ""
    scaler: dict[str, float] = field(default_factory=dict)
    hours: float = 0.0
    images: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files are what `state` says of them."""

    folder: Path
    state: State

    def refuse_other_data(self, data: str) -> None:
        """Raises PixArtError if the run was trained on something else than `data` so far."""
        if self.state.data != data:
            raise PixArtError(
                f"The data of this run has changed since {self.folder} was written, so it would not go on as it began. "
                "Bring the data back as it was, or give another --output."
            )

    def load_weights(self, model: torch.nn.Module, averages: Ema) -> None:
        """Fill both, before they are sharded. Raises PixArtError where they are another network's."""

        def fill() -> None:
            load_kept(model, self.read("model"))
            averages.load_states({name: self.read(name) for name in averages.states()})

        self._fill(fill)

    def load_optimizer(self, optimizer: Optimizer) -> None:
        """Fill it; each process takes its shards. Raises PixArtError where it is another optimizer's."""

        def fill() -> None:
            state = self.read("optimizer")
            parameters = optimizer.parameters
            optimizer.load_state({name: shard_like(v, parameters[name.split("|")[0]]) for name, v in state.items()})

        self._fill(fill)

    def read(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file: `model`, `ema`, `ema-<decay>` or `optimizer`. PixArtError where unreadable."""
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise PixArtError(f"The checkpoint file {path} cannot be loaded: {reason_of(error)}.") from None

    def _fill(self, fill: Callable[[], None]) -> None:
        try:
            fill()
        except (RuntimeError, KeyError, ValueError) as error:
            raise PixArtError(
                f"{self.folder} holds another network or optimizer than this recipe: {reason_of(error)}. "
                "Give the recipe that it was made with, or another --output."
            ) from None


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in run.glob("checkpoint-*")}
    complete = [path for path, step in steps.items() if _is_step(step) and (path / STATE).is_file()]
    return sorted(complete, key=lambda path: int(steps[path]))


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of `run`, every file of it compared with its checksum; None where there is none.

    Raises:
        PixArtError: it is damaged; names the file and the newest older checkpoint that is not.
    """
    folders = found(run)
    if not folders:
        return None
    try:
        return verified(folders[-1])
    except PixArtError as error:
        older = next((folder for folder in reversed(folders[:-1]) if _is_intact(folder)), None)
        advice = f"remove {run} to begin again."
        if older:
            advice = f"remove {folders[-1].name} to continue from {older.name}, which is intact."
        raise PixArtError(f"{str(error).removesuffix('.')}; {advice}") from None


def verified(folder: Path) -> Checkpoint:
    """A checkpoint whose files have the sizes and checksums that they were written with. PixArtError where not."""
    path = folder / STATE
    try:
        table = read_json(path)
        state = structure(table, State, str(path))
        if state.sha256 != _hash_of_state(state) or f"checkpoint-{state.step}" != folder.name:
            raise ValueError("its checksum does not fit")
        if not {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} <= state.files.keys():
            raise ValueError("it names no weights")
        for name, expected in state.files.items():
            path = folder / name
            if path.stat().st_size != expected.bytes:
                raise ValueError(f"it has {path.stat().st_size:,} bytes instead of {expected.bytes:,}")
            if file_hash(path) != expected.sha256:
                raise ValueError("its contents have changed since it was written")
    except (OSError, ValueError, PixArtError) as error:
        raise PixArtError(f"The checkpoint file {path} cannot be loaded: {reason_of(error)}.") from None
    return Checkpoint(folder, state)


def save(
    run: Path, state: State, model: torch.nn.Module, averages: Ema, optimizer: Optimizer, *, main: bool = True
) -> None:
    """Write `checkpoint-<step>` and drop all but the newest two.

    All processes must call it, since each holds its shards; only the main one writes. `state` has no files yet.

    Raises:
        PixArtError: the disk refused (full, read-only); older checkpoints stay as they were.
    """
    final = run / f"checkpoint-{state.step}"
    state_dict = model.state_dict()
    parts = {
        "model": {name: state_dict[name] for name in kept(model)},
        **averages.states(),
        "optimizer": optimizer.state(),
    }
    try:
        with replacing(final) if main else contextlib.nullcontext() as partial:
            if main:
                partial.mkdir(parents=True)
            files = {}
            for name, tensors in parts.items():
                tensors = _gathered(tensors, main)
                if main:
                    path = partial / f"{name}.safetensors"
                    save_file(tensors, path)
                    files[path.name] = File(path.stat().st_size, file_hash(path))
            if not main:
                return
            state = State(**{**vars(state), "files": files})
            write_json(partial / STATE, plain(State(**{**vars(state), "sha256": _hash_of_state(state)})))
    except (OSError, SafetensorError) as error:  # the second is what safetensors makes of a full disk
        raise PixArtError(f"Could not write {final}: {reason_of(error)}. Older checkpoints are kept.") from None
    sweep(run)


def sweep(run: Path) -> None:
    """Remove old checkpoints, and what a kill left of such as were being written, replaced or removed."""
    for old in found(run)[:-KEEP]:
        removed = run / f".{old.name}.removed"  # renamed first, so that half of one never looks like a checkpoint
        shutil.rmtree(removed, ignore_errors=True)
        old.rename(removed)
    for removed in run.glob(".checkpoint-*.removed"):
        shutil.rmtree(removed, ignore_errors=True)
    for partial in run.glob(".checkpoint-*.part"):
        remove_partial(run / ".".join(partial.name.split(".")[1:2]))


def _gathered(tensors: dict[str, torch.Tensor], main: bool) -> dict[str, torch.Tensor]:
    """Full tensors on the CPU, one after the other, so that no device ever holds more than one beside its shards."""
    out = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if main:
            out[name] = tensor.cpu().contiguous()
    return out


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16


def _is_intact(folder: Path) -> bool:
    try:
        verified(folder)
    except PixArtError:
        return False
    return True


def _hash_of_state(state: State) -> str:
    rest = {key: value for key, value in plain(state).items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
