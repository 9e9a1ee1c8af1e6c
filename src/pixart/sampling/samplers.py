"""The samplers by name: a solver, the noise levels that it wants, and the settings that suit it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pixart.errors import UsageError
from pixart.sampling.ddpm import ddpm
from pixart.sampling.dpm_solver import dpm_solver
from pixart.sampling.euler import euler
from pixart.sampling.lcm import lcm
from pixart.sampling.sa_solver import sa_solver
from pixart.sampling.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class Sampler:
    """`solve(denoise, x_t, schedule, fresh_noise)` yields a `Step` per step.

    Attributes:
        title: its name in the `parameters` text that other tools read.
        steps, guidance_scale: what suits it where the model folder does not say.
        overrides: fields of the folder's scheduler config that this sampler needs otherwise.
        eps_only: it is defined for eps models (a DDPM's chain), not for flows.
        fewest, most: steps.
    """

    solve: Callable[..., Any]
    title: str
    steps: int = 20
    guidance_scale: float = 4.5
    overrides: dict[str, Any] = field(default_factory=dict)
    eps_only: bool = False
    fewest: int = 1
    most: int = 500


SAMPLERS = {
    "dpm-solver": Sampler(dpm_solver, "DPM++ 2M"),
    "sa-solver": Sampler(sa_solver, "SA-Solver", 25, 3.0, {"final_sigmas_type": "sigma_min"}),
    "euler": Sampler(euler, "Euler", 25),
    "ddim": Sampler(euler, "DDIM", 50, 4.5, {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}, True),
    "ddpm": Sampler(ddpm, "DDPM", 100, 4.5, {"timestep_spacing": "ends", "final_sigmas_type": "zero"}, True, 2),
    "lcm": Sampler(lcm, "LCM", 4, 1.0, {"timestep_spacing": "lcm", "final_sigmas_type": "zero"}, True, 1, 50),
}


def schedule_for(name: str, config: dict[str, Any], steps: int) -> Schedule:
    """The noise levels at which `name` draws a model with this scheduler config.

    Raises:
        UsageError: the sampler is for eps models and the model is a flow.
    """
    sampler = SAMPLERS[name]
    if config.get("use_flow_sigmas"):
        if sampler.eps_only:
            fitting = ", ".join(key for key, other in SAMPLERS.items() if not other.eps_only)
            raise UsageError(
                f"The sampler {name} draws models that predict eps, and this one predicts a velocity; choose one of: "
                f"{fitting}."
            )
        return make_schedule(config, steps)
    return make_schedule(config | sampler.overrides, steps)
