"""What a denoiser learns: noise the latents, and compare its prediction with what it should have been."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixart.diffusion import ddpm, flow
from pixart.errors import UsageError


@dataclass(frozen=True)
class Timesteps:
    """How training samples its noise levels, from 0 (image) to 1 (noise).

    `sampler`: "logit_normal" (2403.03206, section 3.1) spends steps where the prediction is hard; "uniform" is the
    official recipe. `uniform_share` of the logit-normal samples are uniform instead, so that both ends stay trained.
    `shift` above 1 moves levels towards noise (2403.03206, eq. 23), as larger images need. With a side in pixels as
    `shift_base`, the shift also grows with the image: by the root of its area over that of a square of this side.
    """

    sampler: Literal["logit_normal", "uniform"] = "logit_normal"
    uniform_share: float = 0.1
    shift: float = 1.0
    shift_base: int | None = None

    def __post_init__(self):
        if not 0 <= self.uniform_share <= 1 or not 0 < self.shift < math.inf:
            raise UsageError(
                f"timesteps: uniform_share {self.uniform_share} must be from 0 to 1, shift {self.shift} above 0."
            )
        if self.shift_base is not None and self.shift_base < 1:
            raise UsageError(f"timesteps: shift_base {self.shift_base} must be a side in pixels, such as 256.")

    def shift_for(self, height: int, width: int) -> float:
        """The shift for images of so many pixels."""
        return self.shift * (math.sqrt(height * width) / self.shift_base if self.shift_base else 1.0)


def draw_levels(rng, count: int, timesteps: Timesteps, shift: float = 1.0) -> "torch.Tensor":
    """Noise levels (count,) fp32 in (0, 1); `shift` is `timesteps.shift_for` the image.

    `rng` has the methods `random` and `standard_normal` of numpy's Generator.
    """
    import torch

    levels = torch.from_numpy(rng.random(count))
    if timesteps.sampler == "logit_normal":
        normal = torch.from_numpy(rng.standard_normal(count))
        levels = torch.where(torch.from_numpy(rng.random(count)) < timesteps.uniform_share, levels, normal.sigmoid())
    levels = levels.float()
    return shift * levels / (1 + (shift - 1) * levels)


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
