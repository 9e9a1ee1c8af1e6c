"""Consistency sampling of a latent consistency model (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

The network maps any x_t to the picture at once; each further step adds noise again, less of it, and asks anew.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from pixart.sampling.dpm_solver import Step
from pixart.sampling.schedule import Schedule

SIGMA_DATA = 0.5
TIMESTEP_SCALE = 10.0  # the official constants (PixArt-alpha train_scripts/train_pixart_lcm.py)


def lcm(denoise: Callable[[Any, int], Any], x_t, schedule: Schedule, fresh_noise: Callable[[], Any]) -> Iterator[Step]:
    """Draw from x_t (noise) down the schedule, yielding after every step; see `dpm_solver`."""
    last = len(schedule.timesteps) - 1
    for step, timestep in enumerate(schedule.timesteps):
        x_0 = schedule.x_0(denoise(x_t, timestep), x_t, step)
        scaled = (timestep * TIMESTEP_SCALE) ** 2 + SIGMA_DATA**2
        # The boundary condition: at timestep 0 the picture is x_t itself.
        x_0 = (timestep * TIMESTEP_SCALE / math.sqrt(scaled)) * x_0 + (SIGMA_DATA**2 / scaled) * x_t
        x_t = x_0 if step == last else schedule.alphas[step + 1] * x_0 + schedule.sigmas[step + 1] * fresh_noise()
        yield Step(step, x_t, x_0)
