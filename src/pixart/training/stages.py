"""What each kind of recipe brings to the loop: model, loss, batches, evaluation, and the end of the run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.folder import check_fit, read_encoder_config, write_model_folder
from pixart.data import features
from pixart.data.imagefolder import Record, read_split
from pixart.encoders import autoencoder
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.model.reparameterize import reparameterize
from pixart.training import checkpoint
from pixart.training.batches import (
    ClassCondition,
    LatentBatches,
    Phase,
    PixelBatches,
    TextCondition,
    weights_of,
)
from pixart.training.objective import denoising_loss
from pixart.training.recipe import AutoencoderRecipe, ClassRecipe, Recipe, TextRecipe

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
HELD_OUT = "test_cells"


@dataclass(frozen=True)
class Stage:
    """`finish(ema)` writes what the run is for into the run folder, and returns its path."""

    model: torch.nn.Module
    loss: Callable[[torch.nn.Module, dict], Tensor]
    batches: Callable[[int], dict]
    evaluate: Callable[[torch.nn.Module, int], dict[str, float]]
    finish: Callable[[torch.nn.Module], Path]


def build(recipe: Recipe, report: Callable[[str], None] = print) -> Stage:
    """The parts of a recipe, with features made or found in its cache.

    Raises:
        PixArtError: data, autoencoder or starting point are missing. UsageError: they do not fit the recipe.
    """
    match recipe:
        case AutoencoderRecipe():
            return _autoencoder_stage(recipe, report)
        case ClassRecipe():
            return _class_stage(recipe, report)
        case TextRecipe():
            return _text_stage(recipe, report)


def _autoencoder_stage(recipe: AutoencoderRecipe, report) -> Stage:
    torch.manual_seed(recipe.loop.seed)
    model = autoencoder.Reconstruction(autoencoder.build(recipe.autoencoder))
    sizes = sorted({phase.size for phase in recipe.phases})
    pictures = {size: features.pixels(recipe.data, "train", size, recipe.cache, report) for size in sizes}
    held_out = features.pixels(recipe.data, HELD_OUT, 128, recipe.cache, report)
    held_out = features.to_unit(held_out[_spread(len(held_out), 128)])

    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        return {"held_out_psnr_128": autoencoder.psnr(ema.vae, held_out)}

    def finish(ema: torch.nn.Module) -> Path:
        largest = pictures[sizes[-1]]
        largest = features.to_unit(largest[_spread(len(largest), 1024)])
        means = torch.cat([autoencoder.moments(ema.vae, part)[0] for part in largest.split(16)])
        autoencoder.fold_statistics(ema.vae, means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)))
        ema.vae.save_pretrained(recipe.run / "vae")
        return recipe.run / "vae"

    config = recipe.autoencoder
    loss = partial(
        autoencoder.loss,
        squared_weight=config.squared_weight,
        gradient_weight=config.gradient_weight,
        kl_weight=config.kl_weight,
    )
    return Stage(model, loss, PixelBatches(pictures, recipe.phases, recipe.loop.seed), evaluate, finish)


def _class_stage(recipe: ClassRecipe, report) -> Stage:
    records = read_split(recipe.data / "train")
    moments = _latents(recipe, "train", recipe.phases, report)
    names = [sorted({_class_name(record, kind) for record in records}) for kind in recipe.classes]
    counts = tuple(len(kind) for kind in names)
    torch.manual_seed(recipe.loop.seed)
    size = recipe.model
    channels = next(iter(moments.values()))[0].shape[1]
    config = DiTConfig(
        in_channels=channels,
        out_channels=channels,
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        class_counts=counts,
    )
    model = DiT(config)
    if recipe.init:
        model.load_state_dict(checkpoint.ema_state(recipe.init))

    condition = ClassCondition(_class_indices(records, recipe.classes, names), counts, recipe.class_dropout)
    batches = LatentBatches(moments, weights_of(records, recipe.sampling), condition, recipe.phases, recipe.loop.seed)

    held_classes = _class_indices(read_split(recipe.data / HELD_OUT), recipe.classes, names)
    loss = _loss(recipe, ("classes",))
    evaluate = _held_out_evaluation(recipe, loss, ClassCondition(held_classes, counts, dropout=0.0), report)

    def finish(ema: torch.nn.Module) -> Path:
        (recipe.run / "classes.json").write_text(json.dumps(dict(zip(recipe.classes, names, strict=True)), indent=1))
        return checkpoint.found(recipe.run)[-1]

    return Stage(model, loss, batches, evaluate, finish)


def _loss(recipe: ClassRecipe | TextRecipe, condition: tuple[str, ...]):
    return partial(
        denoising_loss,
        condition=condition,
        timesteps=recipe.timesteps,
        objective=recipe.objective,
        min_snr_gamma=recipe.min_snr_gamma,
    )


def _class_name(record: Record, kind: str) -> str:
    if kind not in ("subgroup", "group", "style"):
        raise UsageError(f"A class kind is subgroup, group or style, not {kind!r}.")
    return getattr(record, kind)


def _class_indices(records: list[Record], kinds: tuple[str, ...], names: list[list[str]]) -> Tensor:
    """(N, kinds) int64; a class that training never saw gets the null class."""
    index = [{name: i for i, name in enumerate(kind)} for kind in names]
    return torch.tensor(
        [[at.get(_class_name(r, kind), len(at)) for kind, at in zip(kinds, index, strict=True)] for r in records]
    )


def _text_stage(recipe: TextRecipe, report) -> Stage:
    from diffusers import AutoencoderKL

    records = read_split(recipe.data / "train")
    start = checkpoint.ema_state(recipe.init) if recipe.init else None
    encoder = recipe.text_encoder or DEFAULT_MODEL / "text_encoder"
    tokenizer = encoder.parent / "tokenizer"
    text = features.text_states(recipe.data, "train", encoder, tokenizer, recipe.cache, report)
    moments = _latents(recipe, "train", recipe.phases, report)
    size = recipe.model
    channels = next(iter(moments.values()))[0].shape[1]
    config = PixArtConfig(
        in_channels=channels,
        out_channels=channels,
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        text_dim=text.null.shape[1],
    )
    vae = AutoencoderKL.from_pretrained(recipe.autoencoder, local_files_only=True, low_cpu_mem_usage=False)
    check_fit(config, vae, read_encoder_config(encoder / "config.json"))  # now, not after hours of training
    torch.manual_seed(recipe.loop.seed)
    model = PixArt(config)
    if start:
        _start_from(model, start, recipe.reparameterize_timestep, recipe.init)

    condition = TextCondition(text, recipe.caption_dropout, recipe.sampling.short_caption_share)
    batches = LatentBatches(moments, weights_of(records, recipe.sampling), condition, recipe.phases, recipe.loop.seed)

    held_text = features.text_states(recipe.data, HELD_OUT, encoder, tokenizer, recipe.cache, report)
    loss = _loss(recipe, ("text", "text_mask"))
    held_condition = TextCondition(held_text, dropout=0.0, short_share=1.0)
    evaluate = _held_out_evaluation(recipe, loss, held_condition, report)

    def finish(ema: torch.nn.Module) -> Path:
        shutil.rmtree(recipe.run / "model", ignore_errors=True)  # of a finish that was killed before it was noted
        styles = {
            name: {"prompt": "{prompt}, " + name, "negative_prompt": ""} for name in sorted({r.style for r in records})
        }
        write_model_folder(
            recipe.run / "model",
            transformer_state=ema.state_dict(),
            config=config,
            vae=vae,
            text_encoder_folder=encoder,
            tokenizer_folder=tokenizer,
            dtype=torch.float16,
            styles=styles,
            flow_shift=recipe.flow_shift,
        )
        return recipe.run / "model"

    return Stage(model, loss, batches, evaluate, finish)


def _start_from(model: PixArt, state: dict[str, Tensor], timestep: float, run: Path) -> None:
    """Load the EMA weights of an earlier run: a PixArt as it is, a DiT by re-parameterisation (paper, section 2.3)."""
    try:
        if "t_block.1.weight" in state:
            model.load_state_dict(state)
            return
        counts = []
        while (table := f"y_embedders.{len(counts)}.embedding_table.weight") in state:
            counts.append(state[table].shape[0] - 1)
        if not counts:
            raise PixArtError(f"{run} is neither a run of stage 1 nor of a text stage; nothing here can start from it.")
        config = model.config
        dit = DiT(
            DiTConfig(
                in_channels=config.in_channels,
                out_channels=config.out_channels,
                width=config.width,
                depth=config.depth,
                num_heads=config.num_heads,
                class_counts=tuple(counts),
            )
        )
        dit.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        first = (reason[1:] or reason)[0].strip()
        raise PixArtError(f"{run} holds another network than this recipe: {first}") from None
    reparameterize(dit, model, timestep)


def _latents(recipe: ClassRecipe | TextRecipe, split: str, phases: tuple[Phase, ...], report) -> dict:
    sizes = sorted({phase.size for phase in phases})
    return {
        size: features.latents(recipe.data, split, size, recipe.autoencoder, recipe.cache, report) for size in sizes
    }


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices, evenly over `count`: metadata is in Unicode's order, so the first would all be faces."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def _held_out_evaluation(recipe: ClassRecipe | TextRecipe, loss, condition, report):
    """The loss on held-out pictures with fixed noise and noise levels, so that figures of a run compare."""
    size = recipe.phases[-1].size
    mean, _ = features.latents(recipe.data, HELD_OUT, size, recipe.autoencoder, recipe.cache, report)
    chosen = _spread(len(mean), 256)
    batch = {"latent": mean[chosen].float(), **condition(chosen, np.random.default_rng(0))}

    @torch.no_grad()
    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=recipe.loop.bf16):
            torch.manual_seed(0)
            return {"held_out_loss": loss(ema, batch).item()}

    return evaluate
