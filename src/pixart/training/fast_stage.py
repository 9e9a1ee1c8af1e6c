"""What the recipe of a fast denoiser brings to the loop: captions and noise, and a teacher that draws them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.diffusers import read_config
from pixart.checkpoints.fast import weights_hash, write_fast
from pixart.checkpoints.model_folder import DEFAULT_MODEL, ModelFolder, load_denoiser, open_model_folder
from pixart.data import features
from pixart.data.imagefolder import Record, read_split
from pixart.diffusion.solvers import euler
from pixart.encoders.text import TextEncoder
from pixart.errors import UsageError
from pixart.model.pixart import PixArt
from pixart.training.batches import TextCondition, check_batch_sizes, digest, phase_at, weights_of_splits
from pixart.training.distillation import FastRecipe, Teacher, distillation_loss, draw_fast
from pixart.training.precision import autocast
from pixart.training.rows import WHOLE, RowStreams, Share
from pixart.training.samples import Sampler
from pixart.training.sources import HELD_OUT, keys_of, spread
from pixart.training.stage import Stage
from pixart.training.start import finished_model

MEASURED = 16  # held-out captions that an evaluation draws


class NoiseBatches:
    """Captions by weight, with noise to draw them from: `{"noise", "text", "text_mask", "count", "keys"}`."""

    def __init__(self, recipe: FastRecipe, splits: list[list[Record]], text: features.TextStates, teacher: ModelFolder):
        self.recipe, self.keys = recipe, keys_of(["train", *recipe.sampling.extra_splits], splits)
        self.cumulative = np.cumsum(weights_of_splits(splits, recipe.sampling))
        self.condition = TextCondition(text, 0.0, recipe.sampling.short_caption_share)
        self.teacher = weights_hash(teacher.transformer_folder)
        self.channels, self.factor = teacher.transformer["in_channels"], teacher.vae_factor
        check_batch_sizes(recipe.phases, len(self.keys), "the training split")

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        phase = phase_at(self.recipe.phases, step)
        rows = share.rows(phase.batch_size)
        rng = RowStreams(self.recipe.loop.seed, step, rows, purpose=1)
        chosen = np.searchsorted(self.cumulative, rng.random(len(rows)) * self.cumulative[-1], side="right")
        side = phase.size // self.factor
        noise = rng.standard_normal((len(rows), self.channels, side, side), dtype=np.float32)
        return {
            "noise": torch.from_numpy(noise),
            "count": len(rows),
            "keys": [self.keys[i] for i in chosen],
            **self.condition(chosen, rng),
        }

    def fingerprint(self) -> str:
        """Of the captions, and of the teacher: a run does not go on under another one."""
        return f"{digest(torch.from_numpy(self.cumulative), *self.condition.tensors())}, {self.teacher}"

    def data_size(self) -> int:
        return len(self.keys)


def teacher_folder(recipe: FastRecipe) -> Path:
    """The model folder of the teacher. PixArtError where there is none, or the run that makes it is not finished."""
    if recipe.teacher is None:
        return DEFAULT_MODEL
    return finished_model(recipe.teacher, "The teacher", "--teacher")


def open_teacher(recipe: FastRecipe) -> ModelFolder:
    """The checked model folder. Raises PixArtError for damage, UsageError where it cannot teach."""
    folder = open_model_folder(teacher_folder(recipe))
    if not folder.scheduler.get("use_flow_sigmas"):
        raise UsageError(
            f"The teacher {folder.path} predicts eps; only models that predict a velocity (flow) can be taught from."
        )
    return folder


def fast_stage(recipe: FastRecipe, report: Callable[[str], None]) -> Stage:
    """Raises PixArtError or UsageError where data or teacher are missing or do not fit."""
    folder = open_teacher(recipe)
    encoder, tokenizer = folder.path / "text_encoder", folder.path / "tokenizer"

    def told(split: str) -> features.TextStates:
        return features.text_states(recipe.data, split, encoder, tokenizer, recipe.cache, report)

    names = ["train", *recipe.sampling.extra_splits]
    splits = [read_split(recipe.data / name) for name in names]
    text = features.joined([told(name) for name in names])
    teacher = Teacher(load_denoiser(folder), text.null, folder.scheduler, recipe.distillation)
    batches = NoiseBatches(recipe, splits, text, folder)
    config = read_config(folder.transformer_folder / "config.json")
    model = PixArt(config)
    model.load_state_dict(teacher.network.state_dict())

    def finish(ema: torch.nn.Module) -> Path:
        how = recipe.distillation
        return write_fast(
            recipe.run / "fast",
            state=ema.state_dict(),
            config=config,
            scheduler=folder.scheduler,
            steps=how.steps,
            distilled_guidance_scale=how.guidance_scale,
            teacher=batches.teacher,
        )

    loss = partial(distillation_loss, teacher=teacher)
    held_out = _held_out(recipe, batches, told(HELD_OUT))
    return Stage(model, loss, batches, _evaluation(recipe, teacher, held_out), finish, _sampler(recipe, folder))


def _held_out(recipe: FastRecipe, batches: NoiseBatches, text: features.TextStates) -> dict:
    """Short captions of held-out pictures, and noise for them at the last phase's size."""
    chosen = spread(len(text.first_caption) - 1, MEASURED)
    rng = np.random.default_rng(0)
    side = recipe.phases[-1].size // batches.factor
    noise = rng.standard_normal((len(chosen), batches.channels, side, side), dtype=np.float32)
    return {"noise": torch.from_numpy(noise), **TextCondition(text, 0.0, 1.0)(chosen, rng)}


def _evaluation(recipe: FastRecipe, teacher: Teacher, held_out: dict):
    """How far the student's drawings are from the teacher's, and how far the teacher's own in so few steps are.

    Root mean square over all numbers of the latents; the teacher draws once, and then it is remembered.
    """

    @cache
    def taught(device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        asked = {name: part.to(device) for name, part in held_out.items()}
        return asked, teacher.path(**asked)[-1], teacher.in_few_steps(**asked)

    @torch.no_grad()
    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        device = next(ema.parameters()).device
        with autocast(recipe.loop.precision, device):
            asked, wanted, in_few = taught(device)
            drawn = draw_fast(ema, teacher.students, **asked)
        return {"held_out_distance": _apart(drawn, wanted), "held_out_teacher_distance": _apart(in_few, wanted)}

    return evaluate


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


def _sampler(recipe: FastRecipe, folder: ModelFolder) -> Sampler | None:
    if not recipe.samples.prompts:
        return None
    from diffusers import AutoencoderKL

    path = folder.path
    return Sampler(
        replace(recipe.samples, steps=recipe.distillation.steps, guidance_scale=1.0),
        recipe.run,
        vae=AutoencoderKL.from_pretrained(path / "vae", local_files_only=True, low_cpu_mem_usage=False),
        scheduler=folder.scheduler,
        text_encoder=partial(TextEncoder, path / "text_encoder", path / "tokenizer", folder.text_encoder_class),
        solve=euler,
    )
