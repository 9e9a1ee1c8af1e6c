"""Rectified flow (Liu et al. 2209.03003; Esser et al. 2403.03206): x_t = (1 - sigma) x_0 + sigma eps.

The network predicts the velocity, eps - x_0. sigma runs from 0 (image) to 1 (noise); the network sees
timestep = 1000 sigma.
"""

import torch


def add_noise(x_0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t (B, C, h, w) from latents and noise of that shape and sigma (B,)."""
    sigma = sigma.view(-1, 1, 1, 1)
    return (1 - sigma) * x_0 + sigma * eps


def losses(
    velocity: torch.Tensor, x_0: torch.Tensor, eps: torch.Tensor, weight: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Mean squared error of each image's predicted velocity against eps - x_0, (B,) fp32; `weight` (B, 1, h, w)."""
    return (weight * (velocity.float() - (eps - x_0)).square()).mean(dim=(1, 2, 3))
