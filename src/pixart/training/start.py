"""What a run starts from: the averaged weights of an earlier run, or of a model folder."""

from pathlib import Path

import torch
from torch import Tensor

from pixart.checkpoints.diffusers import load_transformer
from pixart.data.encode import load_vae
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt
from pixart.model.reparameterize import reparameterize
from pixart.training import checkpoint
from pixart.training.recipe import ClassRecipe, TextRecipe, from_run

MICRO_EMBEDDERS = ("csize_embedder.", "ar_embedder.")


def finished_model(given: Path, what: str, option: str) -> Path:
    """The model folder `given`, or the one that the run `given` has made.

    Raises PixArtError, naming `what` it is wanted for and the option, where there is none.
    """
    for folder in (given, given / "model"):
        if is_model_folder(folder):
            return folder
    state = "neither a model folder nor a run that has finished one" if given.exists() else "not there"
    raise PixArtError(f"{what} {given} is {state}. Train it first, or give another with {option}.")


def check_start(recipe: ClassRecipe | TextRecipe) -> None:
    """Refuse a starting point that cannot be one, before anything is computed.

    Raises:
        PixArtError: `init` is no run, is not finished, or learned something else.
        UsageError: it has another objective.
    """
    init = recipe.init
    if init is None or is_model_folder(init):
        return
    if not (init / "config.json").is_file():
        what = "no run and no model folder" if init.exists() else "not there"
        raise PixArtError(f"{init}, to start from, is {what}. Train it first, or give another with --init.")
    earlier = from_run(init)
    if not (init / "finished.json").is_file():
        there = checkpoint.found(init)
        at = f"at step {int(there[-1].name.split('-')[1]):,}" if there else "before its first checkpoint"
        steps = sum(phase.steps for phase in earlier.phases)
        raise PixArtError(
            f"The run {init} is not finished: it stands {at} of {steps:,}. Give its own pixart train command again to "
            "finish it, or another run with --init."
        )
    if not isinstance(earlier, ClassRecipe | TextRecipe):
        raise PixArtError(f"{init} is neither a run of stage 1 nor of a text stage; nothing here can start from it.")
    if isinstance(recipe, ClassRecipe) and not isinstance(earlier, ClassRecipe):
        raise PixArtError(f"{init} is a run of a text stage; a class-conditional DiT cannot start from it.")
    if earlier.objective != recipe.objective:
        raise UsageError(
            f"{init} was trained with objective {earlier.objective!r} and this recipe has {recipe.objective!r}; "
            f"give --objective {earlier.objective}, or another run with --init."
        )
    sizes = {
        name: (getattr(earlier.model, name), getattr(recipe.model, name)) for name in ("width", "depth", "num_heads")
    }
    for name, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise UsageError(
                f"{init} holds another network than this recipe: its model.{name} is {theirs}, not {ours}. Give "
                f"--model.{name.replace('_', '-')} {theirs}, or another run with --init."
            )


def vae_from(vae: torch.nn.Module, init: Path) -> None:
    """Fill `vae` from the run `init`, or from a folder that holds a VAE of the same sizes.

    Raises:
        PixArtError: there is no finished VAE. UsageError: its sizes are others.
    """
    folder = init / "vae" if (init / "vae").is_dir() else init
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        state = "neither a finished run of an autoencoder nor the folder of one" if init.exists() else "not there"
        raise PixArtError(f"The autoencoder {init}, to start from, is {state}. Train it first, or give another --init.")
    state = load_vae(folder).state_dict()
    shapes = [{name: part.shape for name, part in each.items()} for each in (state, vae.state_dict())]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"The autoencoder {folder} has other sizes than this recipe; [autoencoder] must have those "
            "of its config.json."
        )
    vae.load_state_dict(state)


def is_model_folder(path: Path) -> bool:
    return (path / "model_index.json").is_file()


def start_from(model: DiT | PixArt, recipe: ClassRecipe | TextRecipe) -> None:
    """Fill `model` from `recipe.init`: the same kind of network as it is, a DiT by re-parameterisation into a PixArt.

    A PixArt with micro-conditions that starts from one without begins as that one: the new embedders' last layers are
    zero.

    Raises:
        PixArtError: the weights are missing or those of another network.
    """
    init = recipe.init
    folder = is_model_folder(init)
    state = load_transformer(init / "transformer").state_dict() if folder else checkpoint.ema_state(init)
    try:
        if isinstance(model, DiT):
            model.load_state_dict(state)
        elif "t_block.1.weight" in state:
            model.load_state_dict(_with_micro_conditions(model, state))
        else:
            dit = dit_of(model, state, init)
            dit.load_state_dict(state)
            reparameterize(dit, model, recipe.reparameterize_timestep)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        first = (reason[1:] or reason)[0].strip()
        raise PixArtError(f"{init} holds another network than this recipe: {first}") from None


def _with_micro_conditions(model: PixArt, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not model.config.micro_conditions or any(name.startswith(MICRO_EMBEDDERS) for name in state):
        return state
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(MICRO_EMBEDDERS)}
    silent = {name: torch.zeros_like(tensor) if ".mlp.2." in name else tensor for name, tensor in fresh.items()}
    return state | silent


def dit_of(model: PixArt, state: dict[str, Tensor], init: Path) -> DiT:
    """A DiT of the sizes of `model`, with as many classes as `state`, which is of `init`, has. PixArtError if none."""
    counts = []
    while (table := f"y_embedders.{len(counts)}.embedding_table.weight") in state:
        counts.append(state[table].shape[0] - 1)
    if not counts:
        raise PixArtError(f"{init} is neither a run of stage 1 nor of a text stage; nothing here can start from it.")
    config = model.config
    return DiT(
        DiTConfig(
            class_counts=tuple(counts),
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            width=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            sample_size=config.sample_size,
        )
    )
