"""The official objective: predict eps at a whole timestep, and learn the variance of the step back beside it.

Ho et al. 2006.11239 (the process, eps prediction) and Nichol and Dhariwal 2102.09672 (the learned variance), with the
constants of PixArt-alpha `diffusion/iddpm.py`: 1000 steps, linear betas, mean squared error plus the variational bound
in bits, not rescaled. x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, abar_t the product of 1 - beta up to step t.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


@dataclass(frozen=True)
class Process:
    """Constants of the forward process, (1000,) fp64 each; row t belongs to timestep t.

    `posterior_*` describe q(x_{t-1} | x_t, x_0): mean = x_0_weight x_0 + x_t_weight x_t (2006.11239, eq. 7). The log
    variance of its first row, which is minus infinity, is replaced by the second's (2102.09672, section 3.1).
    """

    betas: Tensor
    abar: Tensor
    posterior_x_0_weight: Tensor
    posterior_x_t_weight: Tensor
    posterior_log_variance: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of x_t, (1000,)."""
        return self.abar / (1 - self.abar)


@lru_cache(maxsize=4)
def process(device: torch.device = torch.device("cpu")) -> Process:  # noqa: B008  a constant
    betas = torch.linspace(BETA_START, BETA_END, STEPS, dtype=torch.float64, device=device)
    abar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])  # abar of the step before
    variance = betas * (1 - before) / (1 - abar)
    return Process(
        betas=betas,
        abar=abar,
        posterior_x_0_weight=betas * before.sqrt() / (1 - abar),
        posterior_x_t_weight=(1 - before) * (1 - betas).sqrt() / (1 - abar),
        posterior_log_variance=torch.cat([variance[1:2], variance[1:]]).log(),
    )


def whole(levels: Tensor) -> Tensor:
    """Noise levels (B,) in [0, 1) -> whole timesteps (B,) int64, 0 to 999; uniform where the levels are."""
    return (levels * STEPS).long().clamp(max=STEPS - 1)


def add_noise(x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
    """x_t (B, C, h, w) from latents and noise of that shape and whole timesteps (B,), 0 to 999."""
    abar = process(x_0.device).abar
    return _at(abar.sqrt(), timestep) * x_0 + _at((1 - abar).sqrt(), timestep) * eps


def losses(
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    eps: Tensor,
    timestep: Tensor,
    *,
    min_snr_gamma: float | None = None,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """The loss of every image, (B,) fp32: squared error of eps, plus the variational bound in bits per dimension.

    The bound teaches only the variance: the eps in it is detached (2102.09672, section 3.1). It is there only when
    `prediction` has twice the channels of `x_0`; the second half says where between its two bounds the log variance
    lies, -1 at the smaller and 1 at the larger one (eq. 15).

    Args:
        prediction: (B, C or 2C, h, w), the network's output for x_t.
        x_0, x_t, eps: (B, C, h, w).
        timestep: (B,) whole, 0 to 999.
        min_snr_gamma: weigh the squared error by min(SNR, gamma) / SNR, which is the min-SNR weight for a network
            that predicts eps (2303.09556, section 3.4; 5 in the paper). None: all timesteps weigh the same, as in the
            official recipe. The bound is never weighted so.
        weight: (B, 1, h, w) of both terms, for a masked loss.
    """
    channels = x_0.shape[1]
    prediction = prediction.float()
    predicted_eps, variance = prediction[:, :channels], prediction[:, channels:]
    squared = (weight * (predicted_eps - eps).square()).mean(dim=(1, 2, 3))
    if min_snr_gamma is not None:
        snr = process(x_0.device).snr[timestep]
        squared = squared * (snr.clamp(max=min_snr_gamma) / snr).float()
    if not variance.shape[1]:
        return squared
    bits = variational_bound(predicted_eps.detach(), variance, x_0, x_t, timestep)
    return squared + (weight * bits).mean(dim=(1, 2, 3))


def variational_bound(eps: Tensor, variance: Tensor, x_0: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
    """The term of the variational bound at `timestep` in bits, (B, C, h, w) fp32.

    Above timestep 0 it is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at 0 the negative log likelihood of x_0, as if
    it had 256 levels in [-1, 1] (2006.11239, section 3.3).
    """
    at = process(x_0.device)
    low, high = _at(at.posterior_log_variance, timestep), _at(at.betas.log(), timestep)
    log_variance = low + (variance + 1) / 2 * (high - low)
    guess = (x_t - _at((1 - at.abar).sqrt(), timestep) * eps) / _at(at.abar.sqrt(), timestep)  # x_0, as eps implies it
    x_0_weight, x_t_weight = _at(at.posterior_x_0_weight, timestep), _at(at.posterior_x_t_weight, timestep)
    mean = x_0_weight * guess + x_t_weight * x_t
    true_mean = x_0_weight * x_0 + x_t_weight * x_t
    divergence = 0.5 * (
        log_variance - low - 1 + torch.exp(low - log_variance) + (true_mean - mean).square() * torch.exp(-log_variance)
    )
    nats = torch.where(timestep.view(-1, 1, 1, 1) == 0, -log_likelihood(x_0, mean, log_variance / 2), divergence)
    return nats / math.log(2)


def log_likelihood(x_0: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability of the cell of width 2/255 around x_0, the outer cells open, under a normal distribution; nats.

    The cumulative normal is approximated by a tanh, as in the published losses (`diffusion_utils.py`), which this is to
    equal.
    """
    inverse = torch.exp(-log_deviation)
    above = _cumulative((x_0 - mean + 1 / 255) * inverse)
    below = _cumulative((x_0 - mean - 1 / 255) * inverse)
    inside = torch.where(x_0 < -0.999, above, torch.where(x_0 > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()


def _cumulative(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _at(values: Tensor, timestep: Tensor) -> Tensor:
    """Values (1000,) at timesteps (B,) as fp32 (B, 1, 1, 1)."""
    return values[timestep].float().view(-1, 1, 1, 1)
