"""What a run has learned so far: the same few things drawn by its checkpoints, or the samples that training left."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from pixart.checkpoints.folder import DDPM_SCHEDULER, FLOW_SCHEDULER, read_encoder_config
from pixart.diffusion.guidance import guide
from pixart.diffusion.noise import initial_noise
from pixart.diffusion.schedule import make_schedule
from pixart.diffusion.solvers import dpm_solver
from pixart.encoders.text import TextEncoder
from pixart.encoders.vae import Decoder
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT
from pixart.training import checkpoint
from pixart.training.networks import class_config, expected_config, text_network
from pixart.training.recipe import ClassRecipe, Recipe, TextRecipe, from_run, text_folders
from pixart.training.samples import Sampler, SamplesConfig

MOST_ROWS = 8


@dataclass(frozen=True)
class StripRow:
    """One moment of a run: its step, the pictures' size in pixels, what was asked for, and what was drawn."""

    step: int
    size: int
    asked: tuple[str, ...]
    images: tuple[Image.Image, ...]


def read_samples(run: Path, most: int = MOST_ROWS) -> list[StripRow]:
    """What training has left in `samples/`: at most so many moments, evenly, the first and the newest among them.

    Raises:
        PixArtError: no run, or a picture cannot be read.
    """
    recipe = recipe_of(run)
    prompts = recipe.samples.prompts if isinstance(recipe, TextRecipe) else ()
    steps = sorted({path.name.split("-")[0] for path in (run / "samples").glob("*-0.png")})
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    rows = []
    for step in steps:
        files = [run / "samples" / f"{step}-{number}.png" for number in range(len(prompts))]
        files = [path for path in files if path.is_file()]  # of the newest step, some may not be drawn yet
        try:
            images = tuple(Image.open(path).convert("RGB") for path in files)
        except (OSError, ValueError) as error:
            raise PixArtError(f"A sample in {run / 'samples'} cannot be read: {error}.") from None
        if images:
            rows.append(StripRow(int(step), images[0].width, tuple(prompts[: len(images)]), images))
    return rows


def draw_checkpoint(
    run: Path,
    asked: tuple[str, ...] | tuple[tuple[str, ...], ...],
    *,
    at: int | None = None,
    seed: int = 1,
    steps: int = 20,
    guidance_scale: float = 4.5,
    size: int | None = None,
) -> StripRow:
    """Draw with the averaged weights of a checkpoint, every picture from the same noise; the run may still train.

    Args:
        run: the folder of a run of any stage.
        asked: prompts, for a text stage. For stage 1, which knows classes and no text, one class per kind of
            `classes.json`, "" for none, as in ("fruit", "glossy").
        at: the step of the checkpoint; None takes the newest.
        size: in pixels; None means that of the phase in which the checkpoint lies.

    Raises:
        UsageError: no such checkpoint, or no such class.
        PixArtError: no run, one that draws nothing, or a damaged checkpoint.
    """
    recipe = recipe_of(run)
    if not isinstance(recipe, ClassRecipe | TextRecipe):
        raise PixArtError(f"{run} is not the run of a denoiser, so it draws nothing.")
    saved = _checkpoint(run, at)
    size = size or _size(recipe, saved.step)
    config = SamplesConfig(("",), seed=seed, steps=steps, guidance_scale=guidance_scale, size=size)  # checks them
    if isinstance(recipe, ClassRecipe):
        images = _draw_classes(run, recipe, saved, asked, config)
        return StripRow(saved.step, size, tuple(", ".join(filter(None, names)) for names in asked), images)
    return StripRow(saved.step, size, tuple(asked), _draw_prompts(recipe, saved, replace(config, prompts=asked)))


def some_classes(run: Path, count: int) -> tuple[tuple[str, ...], ...]:
    """Classes of a stage-1 run to draw, evenly chosen from those of its first kind, without any of the other kinds.

    Raises:
        PixArtError: the run does not say its classes; it does when it is finished.
    """
    first, *others = _classes(run).values()
    count = min(count, len(first))
    chosen = [first[i * len(first) // count] for i in range(count)]
    return tuple((name, *("" for _ in others)) for name in chosen)


@torch.no_grad()
def _draw_prompts(recipe: TextRecipe, saved: checkpoint.Checkpoint, config: SamplesConfig) -> tuple[Image.Image, ...]:
    network = text_network(recipe, expected_config(recipe)).eval()
    network.load_state_dict(saved.read("ema"))
    encoder, tokenizer = text_folders(recipe)
    kind = {"bert": "BertModel", "t5": "T5EncoderModel"}[read_encoder_config(encoder / "config.json")["model_type"]]
    flow = recipe.objective == "flow"
    with TemporaryDirectory() as folder:
        sampler = Sampler(
            config,
            Path(folder),
            vae=Decoder(recipe.autoencoder).model,
            scheduler=FLOW_SCHEDULER | {"flow_shift": recipe.flow_shift} if flow else DDPM_SCHEDULER,
            text_encoder=partial(TextEncoder, encoder, tokenizer, kind),
        )
        return tuple(Image.open(path).convert("RGB") for path, _ in sampler.draw(network, saved.step, config.size))


@torch.no_grad()
def _draw_classes(
    run: Path,
    recipe: ClassRecipe,
    saved: checkpoint.Checkpoint,
    asked: tuple[tuple[str, ...], ...],
    config: SamplesConfig,
) -> tuple[Image.Image, ...]:
    names = _classes(run)
    counts = tuple(len(kind) for kind in names.values())
    decoder = Decoder(recipe.autoencoder)
    channels = decoder.model.config.latent_channels
    network = DiT(class_config(recipe, channels, counts)).eval()
    network.load_state_dict(saved.read("ema"))
    classes = torch.tensor([_indices(names, wanted) for wanted in asked])  # (B, K)
    null = torch.tensor([counts]).expand_as(classes)

    def denoise(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
        when = torch.full((len(asked),), float(timestep))
        drawn = network(x_t, when, classes)
        if config.guidance_scale != 1:
            drawn = guide(drawn, network(x_t, when, null), config.guidance_scale)
        return drawn[:, :channels]  # a learned variance is the second half

    noise = torch.from_numpy(initial_noise(config.seed, (channels, config.size // 8, config.size // 8)))
    schedule = make_schedule(FLOW_SCHEDULER if recipe.objective == "flow" else DDPM_SCHEDULER, config.steps)
    for last in dpm_solver(denoise, noise[None].repeat(len(asked), 1, 1, 1), schedule):
        x_0 = last.x_t
    return tuple(Image.fromarray(pixels) for pixels in decoder.decode(x_0))


def _indices(names: dict[str, list[str]], wanted: tuple[str, ...]) -> list[int]:
    """The class of each kind as a number; the last one, for "", is the null class."""
    if len(wanted) != len(names):
        raise UsageError(f"{wanted} must name one class for each of {', '.join(names)}; an empty text means none.")
    for (kind, known), name in zip(names.items(), wanted, strict=True):
        if name and name not in known:
            raise UsageError(f'There is no {kind} "{name}" among the classes of this run.')
    return [known.index(name) if name else len(known) for known, name in zip(names.values(), wanted, strict=True)]


def _classes(run: Path) -> dict[str, list[str]]:
    try:
        return json.loads((run / "classes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(
            f"{run / 'classes.json'} cannot be read, which a finished run of stage 1 has: {error}."
        ) from None


def _checkpoint(run: Path, at: int | None) -> checkpoint.Checkpoint:
    found = {int(folder.name.split("-")[1]): folder for folder in checkpoint.found(run)}
    if not found:
        raise PixArtError(f"{run} has no checkpoint yet. Train it first.")
    if at is not None and at not in found:
        raise UsageError(f"{run} has no checkpoint of step {at}; it has {', '.join(map(str, found))}.")
    return checkpoint.verified(found[max(found) if at is None else at])


def _size(recipe: ClassRecipe | TextRecipe, step: int) -> int:
    ends = 0
    for phase in recipe.phases:
        ends += phase.steps
        if step <= ends:
            return phase.size
    return recipe.phases[-1].size


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run, whose autoencoder may have moved together with the run."""
    recipe = from_run(run)
    paths = {}
    for name in ("autoencoder", "text_encoder"):
        path = getattr(recipe, name, None)
        if isinstance(path, Path) and not path.exists() and path.is_relative_to(recipe.run.parent):
            paths[name] = run.parent / path.relative_to(recipe.run.parent)
    return replace(recipe, **paths)


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint, without opening it; None where there is none yet."""
    found = checkpoint.found(run)
    return int(found[-1].name.split("-")[1]) if found else None
