"""How well a denoiser denoises held-out pictures, in a unit that no objective owns.

A loss of eps and a loss of velocity are different figures of the same thing, so neither can judge the other. Here every
network is shown the same pictures with the same noise at the same log signal-to-noise ratios, what it says is turned
into the x_0 that it implies, and the error of that x_0 is what counts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixart.diffusion import ddpm, flow

LOG_SNRS = tuple(float(x) for x in range(-6, 7))


@dataclass(frozen=True)
class DenoisingError:
    """Mean squared errors at each log signal-to-noise ratio, over all pictures.

    `velocity` is the error of v = a eps - s x_0 of the variance-preserving process (2202.00512, section 4), which is
    that of x_0 divided by s^2: it weighs the levels about as a drawing needs them. `mean` is its mean over the levels.
    """

    log_snr: tuple[float, ...]
    x_0: tuple[float, ...]
    velocity: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.velocity) / len(self.velocity)


@torch.no_grad()
def denoising_error(
    model: torch.nn.Module,
    latent: Tensor,
    text: Tensor,
    text_mask: Tensor,
    *,
    objective: str,
    log_snrs: tuple[float, ...] = LOG_SNRS,
    batch_size: int = 128,
    seed: int = 0,
    bf16: bool = False,
) -> DenoisingError:
    """Measure a text-to-image denoiser.

    Args:
        latent: clean latents (N, C, h, w) of pictures that it was not trained on.
        text, text_mask: their captions, (N, L, T) and (N, L).
        objective: "flow" or "ddpm", what the network was trained for; of a learned variance only eps is read.
        log_snrs: where to look, each moved to the nearest of the 1000 timesteps of the official process, the only ones
            that a "ddpm" network knows.
        seed: of the noise, which is the same for every network and, per picture, every level.
    """
    process = ddpm.process()
    steps = [int((process.snr.log() - wanted).abs().argmin()) for wanted in log_snrs]
    at = [float(process.snr[step].log()) for step in steps]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    squared = torch.zeros(len(steps), dtype=torch.float64)
    for start in range(0, len(latent), batch_size):
        rows = slice(start, start + batch_size)
        x_0, eps, read = latent[rows], noise[rows], (text[rows], text_mask[rows])
        for level, (step, log_snr) in enumerate(zip(steps, at, strict=True)):
            with torch.autocast(latent.device.type, torch.bfloat16, enabled=bf16):
                guess = _guess_flow(model, x_0, eps, log_snr, read) if objective == "flow" else None
                guess = _guess_ddpm(model, x_0, eps, step, read) if objective == "ddpm" else guess
            if guess is None:
                raise ValueError(f"objective is {objective!r}; it must be 'flow' or 'ddpm'")
            squared[level] += (guess - x_0).square().mean(dim=(1, 2, 3)).double().sum()
    x_0_error = [float(value) / len(latent) for value in squared]
    velocity = [error * (1 + math.exp(log_snr)) for error, log_snr in zip(x_0_error, at, strict=True)]
    return DenoisingError(tuple(at), tuple(x_0_error), tuple(velocity))


def _guess_flow(model, x_0: Tensor, eps: Tensor, log_snr: float, read: tuple[Tensor, Tensor]) -> Tensor:
    sigma = torch.full((len(x_0),), 1 / (1 + math.exp(log_snr / 2)))  # where (1 - sigma)^2 / sigma^2 is the ratio
    x_t = flow.add_noise(x_0, eps, sigma)
    return x_t - sigma.view(-1, 1, 1, 1) * model(x_t, 1000 * sigma, *read).float()


def _guess_ddpm(model, x_0: Tensor, eps: Tensor, step: int, read: tuple[Tensor, Tensor]) -> Tensor:
    timestep = torch.full((len(x_0),), step)
    x_t = ddpm.add_noise(x_0, eps, timestep)
    predicted = model(x_t, timestep, *read).float()[:, : x_0.shape[1]]
    abar = float(ddpm.process().abar[step])
    return (x_t - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)
