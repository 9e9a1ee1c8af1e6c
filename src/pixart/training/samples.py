"""Images sampled while training, always of the same prompts from the same noise, so that one sees what was learned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart.data.encode import encode_captions
from pixart.data.features import pad
from pixart.diffusion.guidance import guide
from pixart.diffusion.noise import initial_noise
from pixart.diffusion.schedule import Schedule, make_schedule
from pixart.diffusion.solvers import dpm_solver, euler
from pixart.encoders.text import TextEncoder
from pixart.errors import UsageError
from pixart.files import replacing


@dataclass(frozen=True)
class SamplesConfig:
    """What is sampled while training. Without prompts, nothing is.

    `every`: at every so many validations, and at the end. `size` in pixels; None samples squares at the size that is
    trained.
    """

    prompts: tuple[str, ...] = ()
    every: int = 1
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 4.5
    size: int | None = None

    def __post_init__(self):
        limits = {"every": (1, 2**40), "steps": (1, 500), "guidance_scale": (0, 50), "seed": (0, 2**32 - 1)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"samples: {name} {getattr(self, name)} must be from {least} to {most}.")
        if self.size is not None and not (64 <= self.size <= 4096 and self.size % 16 == 0):
            raise UsageError(f"samples: size {self.size} must be a multiple of 16 from 64 to 4096.")


def trajectory(
    denoise: Callable[[Tensor, int], Tensor], noise: Tensor, schedule: Schedule, *, first_order: bool = False
) -> Iterator[Tensor]:
    """x_t after each step from `noise` down the schedule, by DPM-Solver++ 2M or Euler's method."""
    for step in (euler if first_order else dpm_solver)(denoise, noise, schedule):
        yield step.x_t


class Sampler:
    """Samples of a text-to-image network, as PNG files in `samples/` of the run."""

    def __init__(
        self,
        config: SamplesConfig,
        folder: Path,
        *,
        vae: torch.nn.Module,
        scheduler: dict[str, Any],
        text_encoder: Callable[[], TextEncoder],
        first_order: bool = False,
    ):
        """`vae` is Diffusers' AutoencoderKL; `scheduler` what the model folder will have; `text_encoder` opens it."""
        self.config, self.folder, self.vae, self.first_order = config, folder, vae, first_order
        self.schedule, self.text_encoder = make_schedule(scheduler, config.steps), text_encoder
        self.text: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def sample(self, network: torch.nn.Module, step: int, size: int) -> list[tuple[Path, str]]:
        """All prompts from the noise of the config's seed, as files of `size` pixels with their captions."""
        from PIL import Image

        self.text = self.text or pad(encode_captions(self.text_encoder(), [*self.config.prompts, ""])[0])
        device = next(network.parameters()).device
        text, mask = self.text[0].float().to(device), self.text[1].to(device)
        count, channels = len(self.config.prompts), network.config.in_channels
        noise = torch.from_numpy(initial_noise(self.config.seed, (channels, size // 8, size // 8)))
        micro = torch.tensor([[float(size), float(size), 1.0]], device=device)  # ignored where there is no such input

        def denoise(x_t: Tensor, timestep: int) -> Tensor:
            when = torch.full((count,), float(timestep), device=device)
            prediction = network(x_t, when, text[:count], mask[:count], micro)
            if self.config.guidance_scale != 1:
                without = text[count:].expand(count, -1, -1), mask[count:].expand(count, -1)
                unconditional = network(x_t, when, *without, micro)
                prediction = guide(prediction, unconditional, self.config.guidance_scale)
            return prediction[:, :channels]  # a learned variance is the second half

        noise = noise[None].repeat(count, 1, 1, 1).to(device)
        *_, latents = trajectory(denoise, noise, self.schedule, first_order=self.first_order)
        files = []
        for number, (prompt, latent) in enumerate(zip(self.config.prompts, latents, strict=True)):
            pixels = self.vae.to(device).decode(latent[None] / self.vae.config.scaling_factor).sample[0]
            pixels = ((pixels * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            path = self.folder / "samples" / f"{step:08d}-{number}.png"
            with replacing(path) as partial:
                Image.fromarray(pixels).save(partial, format="png")
            files.append((path, prompt))
        return files
