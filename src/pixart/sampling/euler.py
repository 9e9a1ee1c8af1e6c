"""Euler's method: along the straight line from x_t to the x_0 it implies, which for eps models is DDIM (eta 0)."""

from collections.abc import Callable, Iterator
from typing import Any

from pixart.sampling.dpm_solver import Step
from pixart.sampling.schedule import Schedule


def euler(
    denoise: Callable[[Any, int], Any], x_t, schedule: Schedule, fresh_noise: Callable[[], Any] | None = None
) -> Iterator[Step]:
    """Draw from x_t (noise, any shape, numpy or torch) down the schedule, yielding after every step.

    Equal to DPM-Solver++ of order one. `denoise(x_t, timestep)` returns the prediction that the schedule names.
    """
    for step, timestep in enumerate(schedule.timesteps):
        x_0 = schedule.x_0(denoise(x_t, timestep), x_t, step)
        keep = schedule.sigmas[step + 1] / schedule.sigmas[step]
        x_t = keep * x_t + (schedule.alphas[step + 1] - keep * schedule.alphas[step]) * x_0
        yield Step(step, x_t, x_0)
