"""What a denoiser learns: noise the latents, and compare its prediction with what it should have been."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixart.diffusion import ddpm, flow
from pixart.diffusion.timesteps import Timesteps, draw_levels
from pixart.errors import UsageError

ObjectiveName = Literal["flow", "ddpm"]
LATENT_SCALE = 8  # pixels per latent cell
# Where a re-parameterised network equals the class-conditional one it starts from. The paper takes 500 under DDPM's
# linear betas; a rectified flow has the signal-to-noise ratio of that at sigma 0.775.
REPARAMETERIZATION_TIMESTEP = {"flow": 775.0, "ddpm": 500.0}


@dataclass(frozen=True)
class Noised:
    """Noisy latents and what belongs to them.

    `x_t` (B, C, h, w); `timestep` (B,), 0 to 1000, as the network reads it; `levels` (B,), 0 (image) to 1 (noise);
    `target` (B, C, h, w), the velocity or the noise that the network should predict; `x_0`, `eps` of the same shape.
    """

    x_t: Tensor
    timestep: Tensor
    levels: Tensor
    target: Tensor
    x_0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Objective:
    """Rectified flow (velocity) or the official DDPM (noise and a learned variance).

    `name` None is that of the network that training starts from, and flow for a fresh one. `min_snr_gamma` weighs the
    timesteps of ddpm (2303.09556; 5 in the paper). `noise_offset` adds noise that is the same everywhere in a channel,
    for darker and brighter images (crosslabs.org, Diffusion with Offset Noise; 0.05 to 0.1 are usual).
    """

    name: ObjectiveName | None = None
    min_snr_gamma: float | None = None
    timesteps: Timesteps = field(default_factory=Timesteps)
    noise_offset: float = 0.0

    def __post_init__(self):
        if not 0 <= self.noise_offset <= 1:
            raise UsageError(f"objective: noise_offset {self.noise_offset} must be from 0 to 1.")
        if self.min_snr_gamma is not None and not 0 < self.min_snr_gamma < math.inf:
            raise UsageError(f"objective: min_snr_gamma {self.min_snr_gamma} must be above 0.")
        if self.min_snr_gamma is not None and self.name == "flow":
            raise UsageError("objective: min_snr_gamma weighs the timesteps of ddpm; leave it out for flow.")

    def out_channels(self, latent_channels: int) -> int:
        """Of the network; with ddpm the second half is the variance."""
        return latent_channels * (2 if self.name == "ddpm" else 1)

    def add_noise(self, x_0: Tensor, rng) -> Noised:
        """Noise latents (B, C, h, w). `rng` has `random` and `standard_normal` of numpy's Generator."""
        eps = torch.from_numpy(rng.standard_normal(tuple(x_0.shape), np.float32)).to(x_0.device)
        if self.noise_offset:
            offset = torch.from_numpy(rng.standard_normal((*x_0.shape[:2], 1, 1), np.float32)).to(x_0.device)
            eps = eps + self.noise_offset * offset
        shift = self.timesteps.shift_for(LATENT_SCALE * x_0.shape[2], LATENT_SCALE * x_0.shape[3])
        levels = draw_levels(rng, len(x_0), self.timesteps, shift).to(x_0.device)
        if self.name == "ddpm":
            timestep = ddpm.whole(levels)
            return Noised(ddpm.add_noise(x_0, eps, timestep), timestep, levels, eps, x_0, eps)
        return Noised(flow.add_noise(x_0, eps, levels), 1000 * levels, levels, eps - x_0, x_0, eps)

    def losses(self, prediction: Tensor, noised: Noised, weight: Tensor | float = 1.0) -> Tensor:
        """The loss of each image, (B,) fp32, for the network's output on `noised`; `weight` (B, 1, h, w) of pixels."""
        if self.name == "ddpm":
            parts = noised.x_0, noised.x_t, noised.eps, noised.timestep
            return ddpm.losses(prediction, *parts, min_snr_gamma=self.min_snr_gamma, weight=weight)
        return flow.losses(prediction, noised.x_0, noised.eps, weight)
