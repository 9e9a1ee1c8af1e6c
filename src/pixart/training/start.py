"""What a training starts from: a run, a model folder, a model on the Hub, or an official file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart.checkpoints.diffusers import read_config
from pixart.checkpoints.model_folder import load_denoiser, open_model_folder
from pixart.checkpoints.official import read_source
from pixart.config import structure
from pixart.errors import PixArtError
from pixart.files import read_json_object
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.model.reparameterize import reparameterize
from pixart.training import checkpoints
from pixart.training.recipe import ADAPTER, CONFIG

MICRO_EMBEDDERS = ("csize_embedder.", "ar_embedder.")


@dataclass(frozen=True)
class Start:
    """A network to start from. `objective` is what it predicts; `scheduler` its model folder's scheduler config.

    `styles` is the folder's styles.json and `guidance_scale` its default, where it has them.
    """

    name: str
    config: PixArtConfig | DiTConfig
    state: dict[str, Tensor]
    objective: str
    scheduler: dict[str, Any]
    styles: Path | None = None
    guidance_scale: float | None = None


def read_start(init: str) -> Start:
    """The network that `init` names.

    Raises:
        PixArtError: it is not there, damaged, not finished, or no denoiser.
    """
    path = Path(init)
    if (path / CONFIG).is_file() and "task" in read_json_object(path / CONFIG):
        return _of_run(path)
    if path.is_file():
        official = read_source(path)
        return Start(init, official.config, official.state, "ddpm", {})
    folder = open_model_folder(init)
    network = load_denoiser(folder)
    objective = "flow" if folder.scheduler.get("use_flow_sigmas") else "ddpm"
    styles, scale = folder.path / "styles.json", folder.defaults.get("guidance_scale")
    styles = styles if styles.is_file() else None
    return Start(init, network.config, network.state_dict(), objective, folder.scheduler, styles, scale)


def fill(model: DiT | PixArt, start: Start, timestep: float) -> None:
    """Fill `model` from the start: the same kind of network as it is, a DiT by re-parameterisation into a PixArt.

    A PixArt with micro-conditions that starts from one without begins as that one: the new embedders' last layers are
    zero. `timestep` is where a re-parameterised network equals its DiT.

    Raises:
        PixArtError: the weights are those of another network.
    """
    try:
        if isinstance(start.config, DiTConfig) and isinstance(model, PixArt):
            dit = DiT(start.config)
            dit.load_state_dict(start.state)
            reparameterize(dit, model, timestep)
        elif isinstance(model, PixArt):
            model.load_state_dict(_with_micro_conditions(model, start.state))
        else:
            model.load_state_dict(start.state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        raise PixArtError(f"{start.name} holds another network than this recipe: {(reason[1:] or reason)[0].strip()}")  # noqa: B904


def model_folder_of(init: str | Path) -> Path:
    """The model folder `init`, or the one that the run `init` has made. PixArtError where there is none."""
    for folder in (Path(init), Path(init) / "model"):
        if (folder / "model_index.json").is_file():
            return folder
    if not Path(init).exists():
        return open_model_folder(str(init)).path  # a hub id, or the sentence that says why not
    raise PixArtError(f"{init} is neither a model folder nor a finished run of a text-to-image model.")


def vae_folder_of(init: Path) -> Path:
    """The folder of an autoencoder: `init` itself, or that of a finished run or model folder."""
    for folder in (init, init / "vae", init / "model" / "vae"):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    state = "holds no autoencoder; if it is a run, finish it first" if init.exists() else "is not there"
    raise PixArtError(f"{init} {state}.")


def _of_run(run: Path) -> Start:
    task = read_json_object(run / CONFIG)["task"]
    if not (run / "finished.json").is_file():
        raise PixArtError(f"The run {run} is not finished. Give its own pixart train command again to finish it.")
    checkpoint = checkpoints.newest(run)
    if checkpoint is None:
        raise PixArtError(f"{run} has no checkpoint to start from.")
    if (run / ADAPTER).is_file():
        raise PixArtError(f"{run} has made an adapter; put it into its model first: pixart merge.")
    if task == "class_dit":
        about = read_json_object(run / "dit" / "config.json")
        config = structure(about.get("network"), DiTConfig, str(run / "dit" / "config.json"))
        return Start(str(run), config, checkpoint.read("ema"), str(about.get("objective")), {})
    if task == "text_to_image":
        config = read_config(run / "model" / "transformer" / "config.json")
        scheduler = read_json_object(run / "model" / "scheduler" / "scheduler_config.json")
        objective = "flow" if scheduler.get("use_flow_sigmas") else "ddpm"
        return Start(str(run), config, checkpoint.read("ema"), objective, scheduler)
    raise PixArtError(f"{run} is a run of {task}, not of a denoiser; nothing here can start from it.")


def _with_micro_conditions(model: PixArt, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not model.config.micro_conditions or any(name.startswith(MICRO_EMBEDDERS) for name in state):
        return state
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(MICRO_EMBEDDERS)}
    silent = {name: torch.zeros_like(tensor) if ".mlp.2." in name else tensor for name, tensor in fresh.items()}
    return state | silent
