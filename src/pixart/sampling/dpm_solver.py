"""DPM-Solver++ 2M: a multistep solver of order two (Lu et al. 2022, arXiv 2211.01095, algorithm 2, midpoint form)."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pixart.sampling.schedule import Schedule


class Step(NamedTuple):
    """What a solver hands out after each step: the step's index, the new x_t and the x_0 it was steered by."""

    index: int
    x_t: Any
    x_0: Any


def dpm_solver(
    denoise: Callable[[Any, int], Any], x_t, schedule: Schedule, fresh_noise: Callable[[], Any] | None = None
) -> Iterator[Step]:
    """Draw from x_t (noise, any shape, numpy or torch) down the schedule, yielding after every step.

    `denoise(x_t, timestep)` returns the prediction that the schedule names (velocity or eps). The caller owns the
    loop: it may show x_0, or stop early by not asking for the next step. The first step is of order one, having no
    history, and so is the last where the schedule says so (sigma 0 has no logarithm). `fresh_noise` is for the
    samplers that add noise on the way; this one is deterministic and never asks for it.
    """
    last = len(schedule.timesteps) - 1
    before = None  # the x_0 estimate of the step before
    for step, timestep in enumerate(schedule.timesteps):
        x_0 = schedule.x_0(denoise(x_t, timestep), x_t, step)
        alpha, sigma = schedule.alphas[step], schedule.sigmas[step]
        alpha_next, sigma_next = schedule.alphas[step + 1], schedule.sigmas[step + 1]
        keep = sigma_next / sigma
        gain = alpha_next - keep * alpha  # the paper's -alpha_t (exp(-h) - 1), which stays finite at sigma 0
        if before is None or (step == last and schedule.first_order_last):
            target = x_0
        else:
            h = _log_snr(alpha_next, sigma_next) - _log_snr(alpha, sigma)
            h_before = _log_snr(alpha, sigma) - _log_snr(schedule.alphas[step - 1], schedule.sigmas[step - 1])
            target = x_0 + (0.5 * h / h_before) * (x_0 - before)
        before = x_0
        x_t = keep * x_t + gain * target
        yield Step(step, x_t, x_0)


def _log_snr(alpha: float, sigma: float) -> float:
    return math.log(alpha) - math.log(sigma)
