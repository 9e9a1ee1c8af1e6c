"""A checkpoint of a run as a model folder that draws: any stage of a denoiser, any step and moving average it has."""

import json
from pathlib import Path

import torch

from pixart.checkpoints.folder import read_encoder_config, text_width, write_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.model.pixart import PixArt
from pixart.model.reparameterize import reparameterize
from pixart.training import checkpoint
from pixart.training.ema import file_of
from pixart.training.networks import text_config
from pixart.training.recipe import (
    DEFAULT_MODEL,
    ClassRecipe,
    DecoderRecipe,
    FastRecipe,
    TextRecipe,
    from_run,
    text_folders,
)
from pixart.training.start import dit_of

# Where a re-parameterised network equals the DiT of stage 1; see model/reparameterize.py.
TIMESTEP = {"flow": 775.0, "ddpm": 500.0}


def find_checkpoint(run: Path, *, step: int | None = None, ema: float | None = None) -> tuple[Path, int, float]:
    """The run folder, step and decay that are meant by a run folder or one of its `checkpoint-N`; None: the newest, the
    first decay.

    Raises:
        UsageError: the run has no such step or average, or its result does not draw (an autoencoder's).
        PixArtError: it has no checkpoint at all, or is no run folder.
    """
    if run.name.startswith("checkpoint-") and not (run / "config.json").is_file():
        named = int(run.name.removeprefix("checkpoint-"))
        if step not in (None, named):
            raise UsageError(f"{run} is step {named}, not {step}; give the run folder to choose another step.")
        run, step = run.parent, named
    recipe = from_run(run)
    if isinstance(recipe, FastRecipe):
        raise UsageError(
            f"{run} is the run of a fast denoiser, which is drawn from the model that taught it: pixart convert {run} "
            "MODEL --to fast."
        )
    if isinstance(recipe, DecoderRecipe):
        raise UsageError(f"{run} is the run of a decoder; what it made is the model folder {run / 'model'}. Give that.")
    if not isinstance(recipe, ClassRecipe | TextRecipe):
        raise UsageError(f"{run} is a run that trains no denoiser, so there is nothing to draw with.")
    steps = [int(folder.name.removeprefix("checkpoint-")) for folder in checkpoint.found(run)]
    if not steps:
        raise PixArtError(f"{run} has no checkpoint yet. Train it first.")
    if step is not None and step not in steps:
        raise UsageError(f"{run} has the checkpoints {', '.join(map(str, steps))}, not {step}.")
    decays = (recipe.loop.ema_decay, *recipe.loop.ema_decays)
    if ema is not None and ema not in decays:
        raise UsageError(f"{run} has kept the averages {', '.join(f'{d:g}' for d in decays)}, not {ema:g}.")
    return run, steps[-1] if step is None else step, decays[0] if ema is None else ema


def write_checkpoint_model(run: Path, dest: Path, *, step: int, ema: float) -> None:
    """Write the new model folder `dest` with the weights of that checkpoint and average; see `find_checkpoint`.

    Autoencoder and text encoder are those of the finished run's model folder, else those that the recipe names. A run
    of stage 1 knows no text: it becomes the network that stage 2 would start from, which draws and ignores the prompt.
    The training data need not be there. Raises PixArtError or UsageError for what is missing or does not fit.
    """
    from diffusers import AutoencoderKL

    recipe = from_run(run)
    saved = checkpoint.verified(run / f"checkpoint-{step}")
    state = saved.read(file_of(ema, first=ema == recipe.loop.ema_decay))
    finished = run / "model"
    whole = (finished / "model_index.json").is_file()
    autoencoder = finished / "vae" if whole else recipe.autoencoder
    if whole:
        encoder, tokenizer = finished / "text_encoder", finished / "tokenizer"
    elif isinstance(recipe, TextRecipe):
        encoder, tokenizer = text_folders(recipe)
    else:
        encoder, tokenizer = DEFAULT_MODEL / "text_encoder", DEFAULT_MODEL / "tokenizer"
    try:
        vae = AutoencoderKL.from_pretrained(autoencoder, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        raise PixArtError(f"The autoencoder {autoencoder} of {run} cannot be loaded: {error}.") from None
    config = text_config(recipe, vae.config.latent_channels, text_width(read_encoder_config(encoder / "config.json")))
    if isinstance(recipe, ClassRecipe):
        torch.manual_seed(0)  # the layers that would read the text are fresh, and silent
        model = PixArt(config)
        dit = dit_of(model, state, run)
        dit.load_state_dict(state)
        reparameterize(dit, model, TIMESTEP[recipe.objective])
        state = model.state_dict()
    styles = finished / "styles.json"
    write_model_folder(
        dest,
        transformer_state=state,
        config=config,
        vae=vae,
        text_encoder_folder=encoder,
        tokenizer_folder=tokenizer,
        dtype=torch.float16,
        styles=json.loads(styles.read_text(encoding="utf-8")) if styles.is_file() else None,
        objective=recipe.objective,
        flow_shift=recipe.flow_shift if isinstance(recipe, TextRecipe) else 1.0,
        guidance_scale=recipe.guidance_scale if isinstance(recipe, TextRecipe) else None,
    )
