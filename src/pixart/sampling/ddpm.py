"""Ancestral sampling (Ho et al. 2020, algorithm 2) with the learned variance of Nichol and Dhariwal 2021, section 3.1.

With fewer steps than were trained it is the sampler of the same chain over a subset of its timesteps, as in
openai/improved-diffusion `respace.py`, which PixArt-alpha's IDDPM uses.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from pixart.sampling.dpm_solver import Step
from pixart.sampling.schedule import Schedule


def ddpm(denoise: Callable[[Any, int], Any], x_t, schedule: Schedule, fresh_noise: Callable[[], Any]) -> Iterator[Step]:
    """Draw from x_t (noise) down the schedule, yielding after every step; see `dpm_solver`.

    Where the prediction has twice the channels of x_t, the second half v says where the variance lies between its two
    bounds (eq. 15): -1 the posterior's, 1 beta. Else it is the posterior's. After the last step comes no noise.
    """
    channels = x_t.shape[1]
    for step, timestep in enumerate(schedule.timesteps):
        prediction = denoise(x_t, timestep)
        x_0 = schedule.x_0(prediction, x_t, step)
        kept, kept_next = schedule.alphas[step] ** 2, schedule.alphas[step + 1] ** 2  # the products of (1 - beta)
        beta = 1 - kept / kept_next
        mean = (math.sqrt(kept_next) * beta / (1 - kept)) * x_0
        mean = mean + (math.sqrt(1 - beta) * (1 - kept_next) / (1 - kept)) * x_t
        if timestep > 0:
            smallest = math.log(max((1 - kept_next) / (1 - kept) * beta, 1e-20))
            if prediction.shape[1] == 2 * channels:
                share = (prediction[:, channels:] + 1) / 2
                deviation = math.e ** (0.5 * (share * math.log(beta) + (1 - share) * smallest))
            else:
                deviation = math.exp(0.5 * smallest)
            mean = mean + deviation * fresh_noise()
        x_t = mean
        yield Step(step, x_t, x_0)
