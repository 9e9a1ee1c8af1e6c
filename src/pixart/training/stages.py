"""What each kind of recipe brings to the loop: model, loss, batches, evaluation, and the end of the run."""

import copy
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.folder import (
    DDPM_SCHEDULER,
    FLOW_SCHEDULER,
    check_fit,
    read_encoder_config,
    write_model_folder,
)
from pixart.data import features
from pixart.data.imagefolder import read_split
from pixart.encoders import autoencoder
from pixart.encoders.text import TextEncoder
from pixart.errors import UsageError
from pixart.model.dit import DiT
from pixart.training import checkpoint
from pixart.training.batches import PixelBatches
from pixart.training.decoder_stage import decoder_stage
from pixart.training.decoding import DecoderRecipe
from pixart.training.distillation import FastRecipe
from pixart.training.fast_stage import fast_stage
from pixart.training.files import write_whole
from pixart.training.networks import class_config, text_config, text_network
from pixart.training.objective import denoising_loss
from pixart.training.precision import autocast
from pixart.training.recipe import AutoencoderRecipe, ClassRecipe, Recipe, TextRecipe, text_folders
from pixart.training.samples import Sampler
from pixart.training.sources import HELD_OUT, class_source, spread, text_source
from pixart.training.stage import Stage
from pixart.training.start import check_start, start_from, vae_from
from pixart.training.watch import loss_by_level


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
        case DecoderRecipe():
            return decoder_stage(recipe, report)
        case FastRecipe():
            return fast_stage(recipe, report)


def _autoencoder_stage(recipe: AutoencoderRecipe, report) -> Stage:
    torch.manual_seed(recipe.loop.seed)
    config, anchor = recipe.autoencoder, None
    vae = autoencoder.build(config)
    if recipe.init:
        vae_from(vae, recipe.init)
    model = autoencoder.Reconstruction(vae, config.equivariance)
    if config.anchor_weight:
        anchor = autoencoder.Anchor(copy.deepcopy(vae).eval().requires_grad_(False), config.anchor_weight)
    sizes = sorted({phase.size for phase in recipe.phases})
    pictures = {size: features.pixels(recipe.data, "train", size, recipe.cache, report) for size in sizes}
    held_out = features.pixels(recipe.data, HELD_OUT, 128, recipe.cache, report)
    held_out = features.to_unit(held_out[spread(len(held_out), 128)])

    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        found = {"held_out_psnr_128": autoencoder.psnr(ema.vae, held_out)}
        if config.equivariance:
            found["held_out_turned_psnr_128"] = autoencoder.psnr(ema.vae, held_out, turned=True)
        if anchor:
            found["held_out_anchor_distance"] = anchor.held_out_distance(ema.vae, held_out)
        return found

    def finish(ema: torch.nn.Module) -> Path:
        if not anchor:  # with one, the scale of the latents is the anchor's
            largest = pictures[sizes[-1]]
            largest = features.to_unit(largest[spread(len(largest), 1024)])
            means = torch.cat([autoencoder.moments(ema.vae, part)[0] for part in largest.split(16)])
            autoencoder.fold_statistics(ema.vae, means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)))
        ema.vae.save_pretrained(recipe.run / "vae")
        return recipe.run / "vae"

    loss = partial(
        autoencoder.loss,
        squared_weight=config.squared_weight,
        gradient_weight=config.gradient_weight,
        kl_weight=config.kl_weight,
        anchor=anchor,
    )
    keys = [record.file_name for record in read_split(recipe.data / "train")]
    batches = PixelBatches(pictures, recipe.phases, recipe.loop.seed, keys)
    return Stage(model, loss, batches, evaluate, finish)


def _class_stage(recipe: ClassRecipe, report) -> Stage:
    check_start(recipe)
    source = class_source(recipe, report)
    torch.manual_seed(recipe.loop.seed)
    model = DiT(class_config(recipe, source.channels, tuple(len(names) for names in source.classes.values())))
    if recipe.init:
        start_from(model, recipe)

    def finish(ema: torch.nn.Module) -> Path:
        write_whole(recipe.run / "classes.json", json.dumps(source.classes, indent=1))
        return checkpoint.found(recipe.run)[-1]

    loss = _loss(recipe, ("classes",))
    evaluate = _held_out_evaluation(recipe, loss, source.held_out)
    return Stage(model, loss, source.batches, evaluate, finish)


def _text_stage(recipe: TextRecipe, report) -> Stage:
    from diffusers import AutoencoderKL

    check_start(recipe)
    source = text_source(recipe, report)
    encoder, tokenizer = text_folders(recipe)
    config = text_config(recipe, source.channels, source.text_dim)
    vae = AutoencoderKL.from_pretrained(recipe.autoencoder, local_files_only=True, low_cpu_mem_usage=False)
    check_fit(config, vae, read_encoder_config(encoder / "config.json"))  # now, not after hours of training
    if recipe.data and vae.config.scaling_factor != 1:
        raise UsageError(
            f"The autoencoder {recipe.autoencoder} has scaling_factor {vae.config.scaling_factor}; with data, fold it "
            "into quant_conv and post_quant_conv, or make features of the data with pixart data extract."
        )
    torch.manual_seed(recipe.loop.seed)
    model = text_network(recipe, config)
    if recipe.init:
        start_from(model, recipe)

    def finish(ema: torch.nn.Module) -> Path:
        shutil.rmtree(recipe.run / "model", ignore_errors=True)  # of a finish that was killed before it was noted
        styles = {name: {"prompt": "{prompt}, " + name, "negative_prompt": ""} for name in source.styles}
        write_model_folder(
            recipe.run / "model",
            transformer_state=ema.state_dict(),
            config=config,
            vae=vae,
            text_encoder_folder=encoder,
            tokenizer_folder=tokenizer,
            dtype=torch.float16,
            styles=styles or None,
            objective=recipe.objective,
            flow_shift=recipe.flow_shift,
            guidance_scale=recipe.guidance_scale,
        )
        return recipe.run / "model"

    read = ("text", "text_mask", "size") if config.micro_conditions else ("text", "text_mask")
    loss = _loss(recipe, read)
    evaluate = _held_out_evaluation(recipe, loss, source.held_out)
    return Stage(model, loss, source.batches, evaluate, finish, _sampler(recipe, vae))


def _sampler(recipe: TextRecipe, vae: torch.nn.Module) -> Sampler | None:
    """Draws the recipe's prompts while it trains, by the schedule that its model folder will have."""
    if not recipe.samples.prompts:
        return None
    encoder, tokenizer = text_folders(recipe)
    kind = {"bert": "BertModel", "t5": "T5EncoderModel"}[read_encoder_config(encoder / "config.json")["model_type"]]
    flow = recipe.objective == "flow"
    return Sampler(
        recipe.samples,
        recipe.run,
        vae=vae,
        scheduler=FLOW_SCHEDULER | {"flow_shift": recipe.flow_shift} if flow else DDPM_SCHEDULER,
        text_encoder=partial(TextEncoder, encoder, tokenizer, kind),
    )


def _loss(recipe: ClassRecipe | TextRecipe, condition: tuple[str, ...]) -> Callable[[torch.nn.Module, dict], Tensor]:
    return partial(
        denoising_loss,
        condition=condition,
        timesteps=recipe.timesteps,
        objective=recipe.objective,
        min_snr_gamma=recipe.min_snr_gamma,
    )


def _held_out_evaluation(recipe: ClassRecipe | TextRecipe, loss, held_out: tuple[dict, ...]):
    """The mean loss on held-out pictures with fixed noise and noise levels, so that figures of a run compare."""

    @torch.no_grad()
    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        total, device, rng = 0.0, next(ema.parameters()).device, np.random.default_rng(0)
        levels, losses = [], []
        with autocast(recipe.loop.precision, device):
            for batch in held_out:
                here = {name: part.to(device) if torch.is_tensor(part) else part for name, part in batch.items()}
                here["rng"] = rng
                total += loss(ema, here).item() * batch["count"]
                levels.append(here["levels"])
                losses.append(here["losses"])
        count = sum(batch["count"] for batch in held_out)
        return {"held_out_loss": total / count, **loss_by_level(torch.cat(levels), torch.cat(losses))} if count else {}

    return evaluate
