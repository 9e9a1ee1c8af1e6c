"""Few steps: a student learns to go in one step where its teacher goes in several, with guidance.

The teacher draws from noise, as `pixart generate` does, in `teacher_steps` steps of DPM-Solver++ 2M with
classifier-free guidance of one scale. Its noise levels contain those of a drawing in `steps` steps; between two of
these the student predicts the one velocity that leads from the teacher's x_t at the first to that at the second. That
is progressive distillation (Salimans and Ho, arXiv 2202.00512) in one go instead of by halves, for a rectified flow,
with the guidance distilled as well (Meng et al., arXiv 2210.03142) at a scale that is fixed, so that the network needs
no input for it. Euler's method with the student then draws what the teacher draws.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pixart.diffusion.guidance import guide
from pixart.diffusion.schedule import Schedule, make_schedule
from pixart.diffusion.solvers import dpm_solver, euler
from pixart.errors import UsageError
from pixart.model.pixart import PixArt, PixArtConfig, TextContext
from pixart.tracking.tracker import TrackingConfig
from pixart.training.batches import Phase, Sampling
from pixart.training.loop import LoopConfig
from pixart.training.optimizers.optimizer import OptimizerConfig
from pixart.training.planning.flops import forward_flops, training_flops
from pixart.training.samples import SamplesConfig


@dataclass(frozen=True)
class Distillation:
    """The student draws in `steps` what the teacher draws in `teacher_steps` with `guidance_scale`."""

    steps: int = 4
    teacher_steps: int = 12
    guidance_scale: float = 4.5

    def __post_init__(self):
        if not 1 <= self.steps <= 50 or not self.steps <= self.teacher_steps <= 500 or self.teacher_steps % self.steps:
            raise UsageError(
                f"distillation: steps {self.steps} must be from 1 to 50, and teacher_steps {self.teacher_steps} a "
                "multiple of it, up to 500."
            )
        if not 0 <= self.guidance_scale <= 50:
            raise UsageError(f"distillation: guidance_scale {self.guidance_scale} must be from 0 to 50.")

    def flops(self, config: PixArtConfig, side: int, text_tokens: int) -> int:
        """FLOPs of one picture in a training step: the teacher's drawing, and the student at each of its steps."""
        taught = 2 * self.teacher_steps * forward_flops(config, side, text_tokens)
        return taught + self.steps * training_flops(config, side, text_tokens)


@dataclass(frozen=True)
class FastRecipe:
    """The fast denoiser of a finished model, its `teacher`: a run, or a model folder; None is the shipped model.

    Of `data` it takes the captions alone, since the teacher draws the pictures. Sizes of the network, text encoder,
    autoencoder and noise levels are the teacher's. Of `samples`, steps and guidance scale are the student's.
    """

    run: Path
    data: Path
    cache: Path
    phases: tuple[Phase, ...]
    teacher: Path | None = None
    distillation: Distillation = field(default_factory=Distillation)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)

    def __post_init__(self):
        if not self.phases:
            raise UsageError("A recipe needs at least one [[phases]] table: how many steps at which picture size.")
        if any(phase.crop or phase.route_share or phase.mask_share for phase in self.phases):
            raise UsageError('crop, route_share and mask_share are not for recipes of kind "fast"; leave them out.')


class Teacher:
    """A frozen denoiser of a flow, and how it draws."""

    def __init__(self, network: PixArt, null: Tensor, scheduler: dict, how: Distillation):
        """`null` (L, T) is the encoded empty prompt, `scheduler` the config of the model folder."""
        self.network, self.null, self.how = network.eval().requires_grad_(False), null, how
        self.schedule = make_schedule(scheduler, how.teacher_steps)
        self.students = make_schedule(scheduler, how.steps)

    @cached_property
    def every(self) -> int:
        return self.how.teacher_steps // self.how.steps

    @torch.no_grad()
    def path(self, noise: Tensor, text: Tensor, text_mask: Tensor) -> list[Tensor]:
        """x_t (B, C, h, w) at each noise level of the student: the noise first, the picture's latent last."""
        drawn = self._draw(noise, text, text_mask, self.schedule)
        return [noise, *drawn[self.every - 1 :: self.every]]

    @torch.no_grad()
    def in_few_steps(self, noise: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """The latents that the teacher itself draws in as few steps as the student has, with guidance."""
        return self._draw(noise, text, text_mask, self.students)[-1]

    def _draw(self, noise: Tensor, text: Tensor, text_mask: Tensor, schedule: Schedule) -> list[Tensor]:
        network = self.network.to(noise.device)
        null = network.encode_text(self.null.float().to(noise.device)[None], None)
        both = TextContext.together((network.encode_text(text, text_mask), null))
        size = size_of(noise)

        def denoise(x_t: Tensor, timestep: int) -> Tensor:
            modulation = network.embed_timestep(torch.tensor([float(timestep)], device=noise.device), size)
            conditional, alone = network.denoise(x_t.repeat(2, 1, 1, 1), modulation, both).float().chunk(2)
            return guide(conditional, alone, self.how.guidance_scale)

        return [step.x_t for step in dpm_solver(denoise, noise, schedule)]


def distillation_loss(model: torch.nn.Module, batch: dict, *, teacher: Teacher) -> Tensor:
    """The mean squared error of the student's velocities, a scalar; the student is asked at all its steps at once.

    Leaves in `batch` the loss of each picture, `losses` (B,).

    Args:
        batch: `noise` (B, C, h, w), `text` (B, L, T) and `text_mask` (B, L).
    """
    noise, text, mask = batch["noise"], batch["text"], batch["text_mask"]
    path, schedule = teacher.path(noise, text, mask), teacher.students
    count, steps = len(noise), len(schedule.timesteps)
    distances = [schedule.sigmas[step + 1] - schedule.sigmas[step] for step in range(steps)]
    wanted = torch.cat([(path[step + 1] - path[step]) / distances[step] for step in range(steps)])
    timesteps = torch.tensor(schedule.timesteps, dtype=torch.float32, device=noise.device).repeat_interleave(count)
    size = size_of(noise).expand(steps * count, 3)
    velocity = model(torch.cat(path[:-1]), timesteps, text.repeat(steps, 1, 1), mask.repeat(steps, 1), size)
    losses = (velocity.float() - wanted).square().mean(dim=(1, 2, 3)).view(steps, count).mean(dim=0)
    batch["losses"] = losses.detach()
    return losses.mean()


@torch.no_grad()
def draw_fast(model: PixArt, schedule: Schedule, noise: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """The latents (B, C, h, w) that a student draws: Euler's method, the text alone."""
    context = model.encode_text(text, text_mask)

    def denoise(x_t: Tensor, timestep: int) -> Tensor:
        modulation = model.embed_timestep(torch.tensor([float(timestep)], device=noise.device), size_of(noise))
        return model.denoise(x_t, modulation, context).float()

    for last in euler(denoise, noise, schedule):
        x_0 = last.x_t
    return x_0


def size_of(noise: Tensor) -> Tensor:
    """Height and width in pixels and the aspect ratio, (1, 3): read by networks with micro-conditions only."""
    height, width = 8 * noise.shape[2], 8 * noise.shape[3]
    return torch.tensor([[float(height), float(width), height / width]], device=noise.device)
