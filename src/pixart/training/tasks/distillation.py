"""A few-step model: a student that takes few steps without guidance where its teacher takes many with it.

The teacher's path from noise to image is computed with guidance, and the student learns the straight lines between
every few of its points (progressive distillation, Salimans and Ho, arXiv 2202.00512, with the guidance of Meng et al.,
arXiv 2210.03142, at a scale that is fixed, so that the network needs no input for it). Euler's method with the student
then ends where the teacher ends.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.diffusers import read_config
from pixart.checkpoints.fast import weights_hash, write_fast
from pixart.checkpoints.model_folder import DEFAULT_MODEL, load_denoiser, open_model_folder
from pixart.data.dataset import ALLOWED
from pixart.data.encode import autocast, load_text_encoder, load_vae
from pixart.diffusion.guidance import guide
from pixart.diffusion.schedule import Schedule, make_schedule
from pixart.errors import UsageError
from pixart.model.pixart import PixArt
from pixart.training.batches import Phase, Source
from pixart.training.latents import LatentRows
from pixart.training.recipe import Recipe
from pixart.training.rows import RowStreams
from pixart.training.samples import Sampler, trajectory
from pixart.training.start import model_folder_of
from pixart.training.tasks.text_to_image import check_shares


@dataclass
class Distillation:
    """Distil the model `teacher`, a model folder or a finished run; None is the shipped model.

    The student takes `steps` for `teacher_steps` with `guidance_scale`. Of the features it takes the captions and the
    shapes of the images, which the teacher generates. It ends as `fast/` in the run folder; `pixart convert RUN MODEL
    --to fast` puts it into the teacher's folder.
    """

    teacher: str | None = None
    steps: int = 4
    teacher_steps: int = 12
    guidance_scale: float = 4.5
    first_caption_share: float = 0.0
    validation: int = 16
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "first_caption_share", "allow_dropped")
        if not 1 <= self.steps <= 50 or not self.steps <= self.teacher_steps <= 500 or self.teacher_steps % self.steps:
            raise UsageError(
                f"distillation: steps {self.steps} must be from 1 to 50, and teacher_steps {self.teacher_steps} a "
                "multiple of it, up to 500."
            )
        if not 0 <= self.guidance_scale <= 50:
            raise UsageError(f"distillation: guidance_scale {self.guidance_scale} must be from 0 to 50.")

    def build(self, recipe: Recipe, device: torch.device) -> PixArt:
        self.recipe = recipe
        self.folder = open_model_folder(model_folder_of(self.teacher) if self.teacher else DEFAULT_MODEL)
        if not self.folder.scheduler.get("use_flow_sigmas"):
            raise UsageError(
                f"The teacher {self.folder.path} predicts eps; only models that predict a velocity can be distilled."
            )
        self.config = read_config(self.folder.transformer_folder / "config.json")
        self.rows = LatentRows("text", self.validation, self.allow_dropped, 0.0, self.first_caption_share)
        store = self.rows.open(recipe.phases[-1])
        store.check(text_encoder=self.folder.path / "text_encoder")
        network = load_denoiser(self.folder).to(device)
        self.guided = Teacher(network, store.unconditional, self.folder.scheduler, self)
        self.identity = weights_hash(self.folder.transformer_folder)
        self.validated = self.rows.validation_batches(recipe.phases[-1])[:1]
        self.sampler = self._sampler() if recipe.samples.prompts else None
        student = PixArt(self.config)
        student.load_state_dict(network.state_dict())
        return student

    def source(self, phase: Phase) -> Source:
        source = self.rows.source(phase)
        read = _Noise(source.read, self.config.in_channels)
        return replace(source, read=read, fingerprint=f"{source.fingerprint} {self.identity}")

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """The mean squared error of the student's velocities, (B,); all its steps are one batch."""
        noise, text, mask = batch["noise"], batch["text"], batch["text_mask"]
        path, schedule = self.guided.path(noise, text, mask), self.guided.few
        count, steps = len(noise), len(schedule.timesteps)
        distances = [schedule.sigmas[step + 1] - schedule.sigmas[step] for step in range(steps)]
        wanted = torch.cat([(path[step + 1] - path[step]) / distances[step] for step in range(steps)])
        timesteps = torch.tensor(schedule.timesteps, dtype=torch.float32, device=noise.device).repeat_interleave(count)
        size = size_of(noise).expand(steps * count, 3)
        velocity = model(torch.cat(path[:-1]), timesteps, text.repeat(steps, 1, 1), mask.repeat(steps, 1), size)
        return (velocity.float() - wanted).square().mean(dim=(1, 2, 3)).view(steps, count).mean(dim=0)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        """How far the student's latents are from the teacher's, and the teacher's own in so few steps: root mean
        squares over all numbers.
        """
        device, found = next(model.parameters()).device, {}
        for batch in self.validated:
            rng = np.random.default_rng(0)
            noise = torch.from_numpy(rng.standard_normal(tuple(batch["latent"].shape), np.float32)).to(device)
            text, mask = batch["text"].to(device), batch["text_mask"].to(device)
            with autocast(self.recipe.loop.precision, device):
                wanted = self.guided.path(noise, text, mask)[-1]
                in_few = self.guided.in_few_steps(noise, text, mask)
                student = generate(model, self.guided.few, noise, text, mask)
            found = {"validation_distance": _distance(student, wanted), "teacher_distance": _distance(in_few, wanted)}
        return found

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        return write_fast(
            folder / "fast",
            state=model.state_dict(),
            config=self.config,
            scheduler=self.folder.scheduler,
            steps=self.steps,
            distilled_guidance_scale=self.guidance_scale,
            teacher=self.identity,
        )

    def _sampler(self) -> Sampler:
        path = self.folder.path
        encoder = partial(
            load_text_encoder, path / "text_encoder", path / "tokenizer", max_tokens=self.folder.max_tokens
        )
        return Sampler(
            replace(self.recipe.samples, steps=self.steps, guidance_scale=1.0),
            self.recipe.output,
            vae=load_vae(path / "vae"),
            scheduler=self.folder.scheduler,
            text_encoder=encoder,
            first_order=True,
        )


class Teacher:
    """A frozen denoiser of a flow, and the steps it takes."""

    def __init__(self, network: PixArt, null_text: Tensor, scheduler: dict[str, Any], how: Distillation):
        """`null_text` (L, T): the states of the empty prompt; `scheduler`: the config of the model folder."""
        self.network, self.null_text, self.scale = network.eval().requires_grad_(False), null_text, how.guidance_scale
        self.many, self.few = make_schedule(scheduler, how.teacher_steps), make_schedule(scheduler, how.steps)

    @cached_property
    def every(self) -> int:
        return len(self.many.timesteps) // len(self.few.timesteps)

    @torch.no_grad()
    def path(self, noise: Tensor, text: Tensor, mask: Tensor) -> list[Tensor]:
        """x_t (B, C, h, w) at each noise level of the student: the noise first, the image's latent last."""
        points = list(trajectory(self._guided(noise, text, mask), noise, self.many))
        return [noise, *points[self.every - 1 :: self.every]]

    @torch.no_grad()
    def in_few_steps(self, noise: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The latents of the teacher itself with as few steps as the student takes, with guidance."""
        return list(trajectory(self._guided(noise, text, mask), noise, self.few))[-1]

    def _guided(self, noise: Tensor, text: Tensor, mask: Tensor):
        return guided(self.network, self.null_text, self.scale, noise, text, mask)


def guided(network: PixArt, null_text: Tensor, scale: float, noise: Tensor, text: Tensor, mask: Tensor):
    """`denoise(x_t, timestep)` with classifier-free guidance, both halves in one forward pass."""
    count, length = len(noise), max(text.shape[1], len(null_text))
    both = torch.zeros(2 * count, length, text.shape[2], device=noise.device)
    read = torch.zeros(2 * count, length, dtype=torch.bool, device=noise.device)
    both[:count, : text.shape[1]], read[:count, : text.shape[1]] = text, mask
    both[count:, : len(null_text)], read[count:, : len(null_text)] = null_text.to(both), True
    size = size_of(noise).expand(2 * count, 3)

    def denoise(x_t: Tensor, timestep: float | Tensor) -> Tensor:
        when = torch.as_tensor(timestep, dtype=torch.float32, device=x_t.device).expand(count).repeat(2)
        conditional, unconditional = network(x_t.repeat(2, 1, 1, 1), when, both, read, size).float().chunk(2)
        return guide(conditional, unconditional, scale)

    return denoise


@torch.no_grad()
def generate(model: torch.nn.Module, schedule: Schedule, noise: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """The latents (B, C, h, w) that a student ends at: Euler's method, no guidance."""
    size = size_of(noise).expand(len(noise), 3)

    def denoise(x_t: Tensor, timestep: int) -> Tensor:
        when = torch.full((len(noise),), float(timestep), device=noise.device)
        return model(x_t, when, text, mask, size).float()

    return list(trajectory(denoise, noise, schedule, first_order=True))[-1]


def size_of(latent: Tensor) -> Tensor:
    """Height and width in pixels and the aspect ratio, (1, 3): read by networks with micro-conditions only."""
    height, width = 8 * latent.shape[2], 8 * latent.shape[3]
    return torch.tensor([[float(height), float(width), height / width]], device=latent.device)


@dataclass(frozen=True)
class _Noise:
    """What a source calls: the text of rows, and noise in the shape of their latents."""

    read: Any
    channels: int

    def __call__(self, rows: np.ndarray, rng: RowStreams) -> dict[str, Any]:
        batch = self.read(rows, rng)
        shape = (len(rows), self.channels, *batch.pop("latent").shape[2:])
        return batch | {"noise": torch.from_numpy(rng.standard_normal(shape))}


def _distance(one: Tensor, other: Tensor) -> float:
    return (one - other).square().mean().sqrt().item()
