"""Rectified flow (Liu et al. 2209.03003; Esser et al. 2403.03206): x_t = (1 - sigma) x_0 + sigma eps.

The network predicts the velocity, eps - x_0. sigma runs from 0 (picture) to 1 (noise); the network sees
timestep = 1000 sigma.
"""

import torch


def draw_sigma(count: int, *, uniform_share: float = 0.1, shift: float = 1.0) -> torch.Tensor:
    """Noise levels for training, (count,) in (0, 1): logit-normal(0, 1), with a share drawn uniformly.

    Logit-normal (2403.03206, Sec. 3.1) spends steps where the velocity is hard; the uniform share keeps both ends
    trained. `shift` above 1 moves levels towards noise for larger pictures (2403.03206, Eq. 23).
    """
    sigma = torch.sigmoid(torch.randn(count))
    uniform = torch.rand(count)
    sigma = torch.where(torch.rand(count) < uniform_share, uniform, sigma)
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(x_0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t (B, C, h, w) from latents and noise of that shape and sigma (B,)."""
    sigma = sigma.view(-1, 1, 1, 1)
    return (1 - sigma) * x_0 + sigma * eps


def velocity_error(velocity: torch.Tensor, x_0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Mean squared error of a predicted velocity against eps - x_0, in fp32: a scalar."""
    return (velocity.float() - (eps - x_0)).square().mean()
