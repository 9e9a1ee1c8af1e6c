"""SA-Solver: stochastic Adams, a predictor and a corrector of order two (Xue et al. 2023, arXiv 2309.05019).

In data prediction, as PixArt-alpha `diffusion/sa_sampler.py` and Diffusers' SASolverScheduler use it: each step solves
the reverse SDE over one interval of the log signal-to-noise ratio, with x_0 interpolated through past estimates; the
network's answer at the new point then corrects the step before it is left (PEC, one network call a step).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pixart.sampling.dpm_solver import Step
from pixart.sampling.schedule import Schedule


class Point(NamedTuple):
    """A noise level, and the x_0 that the network gave there."""

    alpha: float
    sigma: float
    x_0: Any

    @property
    def log_snr(self) -> float:
        return math.log(self.alpha) - math.log(self.sigma)


def tau(timestep: int) -> float:
    """How much noise a step adds, 0 (none: an ODE) to 1 (the reverse SDE): as the PixArt-α authors draw."""
    return 1.0 if 200 <= timestep <= 800 else 0.0


def sa_solver(
    denoise: Callable[[Any, int], Any], x_t, schedule: Schedule, fresh_noise: Callable[[], Any]
) -> Iterator[Step]:
    """Draw from x_t (noise) down the schedule, yielding after every step; see `dpm_solver`.

    `fresh_noise()` gives standard normal noise of the shape of x_t; it is called once per step.
    """
    last = len(schedule.timesteps) - 1
    before = start = noise = None
    for step, timestep in enumerate(schedule.timesteps):
        x_0 = schedule.x_0(denoise(x_t, timestep), x_t, step)
        here = Point(schedule.alphas[step], schedule.sigmas[step], x_0)
        if before is not None:
            x_t = _advance(start, before, here, [here, before], noise, tau(schedule.timesteps[step - 1]))
        there = Point(schedule.alphas[step + 1], schedule.sigmas[step + 1], None)
        start, noise = x_t, fresh_noise()
        if there.sigma == 0:
            x_t = x_0  # the step of order one, where there is no noise left to have a logarithm of
        else:
            known = [here] if before is None or step == last else [here, before]
            x_t = _advance(start, here, there, known, noise, tau(timestep))
        before = here
        yield Step(step, x_t, x_0)


def _advance(x, here: Point, there: Point, known: list[Point], noise, tau: float):
    """x at `here` -> x at `there`, with x_0 a polynomial in the log-SNR through the known points (one or two).

    Section 5 of the paper with the integrals in closed form; logarithms are taken relative to `there`, so that nothing
    overflows. Two known points get the correction of third order that the official code adds.
    """
    k = 1 + tau**2
    h = there.log_snr - here.log_snr
    decay = math.exp(-k * h)
    whole = (1 - decay) / k  # the integral of exp(k u) over the interval, u = log-SNR - there's
    if len(known) == 1:
        target = whole * known[0].x_0
    else:
        first, second = (point.log_snr - there.log_snr for point in known)
        moment = ((k * h + 1) * decay - 1) / k**2  # the same integral with a factor u
        gap = first - second
        extra = (k * h - 1 + decay) / k**2
        # In the predictor the known points are `here` and the one before; in the corrector they are both ends.
        extra = h / 2 - extra / h if first == 0 else (h**2 / 2 - extra) / gap
        target = ((moment - second * whole) / gap + extra) * known[0].x_0
        target = target + ((first * whole - moment) / gap - extra) * known[1].x_0
    x = math.exp(-(tau**2) * h) * (there.sigma / here.sigma) * x + k * there.alpha * target
    if tau == 0:
        return x
    return x + there.sigma * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * noise
