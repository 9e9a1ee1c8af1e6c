"""Pictures drawn while training, always of the same prompts from the same noise, so that one sees what was learned."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pixart.diffusion.guidance import guide
from pixart.diffusion.noise import initial_noise
from pixart.diffusion.schedule import make_schedule
from pixart.diffusion.solvers import Step, dpm_solver
from pixart.encoders.text import TextEncoder
from pixart.errors import UsageError

Drawn = list[tuple[Path, str]]  # picture files and their captions


@dataclass(frozen=True)
class SamplesConfig:
    """What is drawn while training. Without prompts, nothing is.

    `every`: at every so many evaluations, and at the end. `size` in pixels; None draws at the size that is trained.
    """

    prompts: tuple[str, ...] = ()
    every: int = 1
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 4.5
    size: int | None = None

    def __post_init__(self):
        if self.every < 1 or not 1 <= self.steps <= 500 or not 0 <= self.guidance_scale <= 50 or self.seed < 0:
            raise UsageError(
                f"samples: every {self.every} must be at least 1, steps {self.steps} from 1 to 500, guidance_scale "
                f"{self.guidance_scale} from 0 to 50, seed {self.seed} not negative."
            )
        if self.size is not None and (self.size < 64 or self.size % 16):
            raise UsageError(f"samples: size {self.size} must be a multiple of 16, at least 64.")


class Sampler:
    """Draws a network's samples into `samples/` of the run, as `Pipeline` would draw them from a model folder."""

    def __init__(
        self,
        config: SamplesConfig,
        run: Path,
        *,
        vae: torch.nn.Module,
        scheduler: dict,
        text_encoder: Callable[[], TextEncoder],
        solve: Callable[..., Iterator[Step]] = dpm_solver,
    ):
        """`vae` is Diffusers' AutoencoderKL; `scheduler` what the model folder will say; `text_encoder` opens it."""
        self.config, self.run, self.vae, self.solve = config, run, vae, solve
        self.schedule = make_schedule(scheduler, config.steps)
        self.text = functools.cache(lambda: _encode(text_encoder(), (*config.prompts, "")))

    @torch.no_grad()
    def draw(self, network: torch.nn.Module, step: int, size: int) -> Drawn:
        """All prompts at once, from the noise of the config's seed, as PNG files of `size` pixels."""
        from PIL import Image

        device = next(network.parameters()).device
        text, mask = (part.to(device) for part in self.text())
        count, channels = len(self.config.prompts), network.config.in_channels
        noise = torch.from_numpy(initial_noise(self.config.seed, (channels, size // 8, size // 8)))
        micro = torch.tensor([[float(size), float(size), 1.0]], device=device)  # ignored where there is no such input

        def denoise(x_t, timestep: int):
            when = torch.full((count,), float(timestep), device=device)
            drawn = network(x_t, when, text[:count], mask[:count], micro)
            if self.config.guidance_scale != 1:
                null = network(x_t, when, text[count:].expand(count, -1, -1), mask[count:].expand(count, -1), micro)
                drawn = guide(drawn, null, self.config.guidance_scale)
            return drawn[:, :channels]  # a learned variance is the second half

        for last in self.solve(denoise, noise[None].repeat(count, 1, 1, 1).to(device), self.schedule):
            x_0 = last.x_t
        self.vae.to(device)
        folder, files = self.run / "samples", []
        folder.mkdir(exist_ok=True)
        for number, (prompt, latent) in enumerate(zip(self.config.prompts, x_0, strict=True)):
            pixels = self.vae.decode(latent[None] / self.vae.config.scaling_factor).sample[0]
            pixels = ((pixels * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            path = folder / f"{step:08d}-{number}.png"
            partial = path.with_suffix(".partial")
            Image.fromarray(pixels).save(partial, format="png")
            partial.replace(path)
            files.append((path, prompt))
        return files


def _encode(encoder: TextEncoder, prompts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states (P, L, T) and mask (P, L) of all prompts, padded to the longest."""
    encoded = [encoder.encode(prompt) for prompt in prompts]
    length = max(part.states.shape[1] for part in encoded)
    text = torch.zeros(len(encoded), length, encoded[0].states.shape[2])
    mask = torch.zeros(len(encoded), length, dtype=torch.bool)
    for row, part in enumerate(encoded):
        text[row, : part.states.shape[1]] = torch.as_tensor(part.states[0])
        mask[row, : part.mask.shape[1]] = torch.as_tensor(part.mask[0]).bool()
    return text, mask
