"""Samplers: solvers that take one denoising step at a time, each holding the history of one image, or of one batch.

A solver never calls the network. The caller reads `timestep`, makes a prediction in whatever batch it likes, and calls
`step`; so images at different steps, of different solvers, can share a pass. Arrays are numpy or torch, never changed
in place.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pixart.config import unknown
from pixart.diffusion.schedule import Schedule, make_schedule
from pixart.errors import UsageError

SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0  # of consistency models (PixArt-alpha train_scripts/train_pixart_lcm.py)


class Step(NamedTuple):
    """The result of a step: its index, the new x_t, and the x_0 that the prediction implied."""

    index: int
    x_t: Any
    x_0: Any


@dataclass(eq=False)
class Solver:
    """Where one image is on its way down a schedule.

    `fresh_noise()` gives standard normal noise of the shape of x_t, for the solvers that add noise on the way.
    `position` is the index of the next step; one above 0 enters the schedule later, as image-to-image does.
    """

    schedule: Schedule
    fresh_noise: Callable[[], Any] | None = None
    position: int = 0

    @property
    def done(self) -> bool:
        return self.position == len(self.schedule.timesteps)

    @property
    def timestep(self) -> float:
        """The timestep of the next step, an input of the network."""
        return self.schedule.timesteps[self.position]

    def step(self, x_t, prediction) -> Step:
        """From x_t (B, C, h, w) to the next noise level, by the network's prediction for x_t at `timestep`."""
        index = self.position
        x_0 = self.schedule.x_0(prediction, x_t, index)
        x_0, x_t = self.advance(x_t, x_0, prediction)
        self.position += 1
        return Step(index, x_t, x_0)

    def advance(self, x_t, x_0, prediction) -> tuple[Any, Any]:
        """The x_0 that was used and the new x_t; called once per step, in order."""
        raise NotImplementedError

    @property
    def level(self) -> tuple[float, float, float, float]:
        """alpha and sigma of this step and of the next."""
        alphas, sigmas, at = self.schedule.alphas, self.schedule.sigmas, self.position
        return alphas[at], sigmas[at], alphas[at + 1], sigmas[at + 1]

    @property
    def last(self) -> bool:
        return self.position == len(self.schedule.timesteps) - 1


class Euler(Solver):
    """Along the straight line from x_t to the x_0 it implies: DPM-Solver++ of order one; for eps models DDIM, eta 0."""

    def advance(self, x_t, x_0, prediction):
        alpha, sigma, alpha_next, sigma_next = self.level
        keep = sigma_next / sigma
        return x_0, keep * x_t + (alpha_next - keep * alpha) * x_0


class EulerAncestral(Solver):
    """Euler's method to a lower noise level than the next, then noise up to that (k-diffusion's `euler_ancestral`).

    In x_t / alpha, whose noise level is sigma / alpha, as there; so it serves flows too.
    """

    def advance(self, x_t, x_0, prediction):
        alpha, sigma, alpha_next, sigma_next = self.level
        ratio, ratio_next = sigma / alpha, sigma_next / alpha_next
        up = ratio_next * math.sqrt(1 - (ratio_next / ratio) ** 2)
        down = math.sqrt(ratio_next**2 - up**2)
        x_next = x_0 + (down / ratio) * (x_t / alpha - x_0)
        return x_0, alpha_next * (x_next if self.last else x_next + up * self.fresh_noise())


@dataclass(eq=False)
class DpmSolver(Solver):
    """DPM-Solver++ 2M, multistep of order two (Lu et al. 2022, arXiv 2211.01095, algorithm 2, midpoint form).

    The first step is of order one, having no history, and so is the last where the schedule says so (sigma 0 has no
    logarithm).
    """

    before: Any = None  # the x_0 estimate of the step before

    def advance(self, x_t, x_0, prediction):
        alpha, sigma, alpha_next, sigma_next = self.level
        keep = sigma_next / sigma
        gain = alpha_next - keep * alpha  # the paper's -alpha_t (exp(-h) - 1), which stays finite at sigma 0
        target = x_0
        if self.before is not None and not (self.last and self.schedule.first_order_last):
            h = log_snr(alpha_next, sigma_next) - log_snr(alpha, sigma)
            alphas, sigmas, at = self.schedule.alphas, self.schedule.sigmas, self.position
            h_before = log_snr(alpha, sigma) - log_snr(alphas[at - 1], sigmas[at - 1])
            target = x_0 + (0.5 * h / h_before) * (x_0 - self.before)
        self.before = x_0
        return x_0, keep * x_t + gain * target


class Ddpm(Solver):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), learned variance after Nichol and Dhariwal 2021, section 3.1.

    With fewer steps than were trained it is the sampler of the same chain over a subset of its timesteps, as in
    openai/improved-diffusion `respace.py`, which PixArt-alpha's IDDPM uses. Where the prediction has twice the channels
    of x_t, the second half v says where the variance lies between its two bounds (eq. 15): -1 the posterior's, 1 beta.
    Else it is the posterior's. The last step adds no noise.
    """

    def advance(self, x_t, x_0, prediction):
        alpha, _, alpha_next, _ = self.level
        channels, kept, kept_next = x_t.shape[1], alpha**2, alpha_next**2  # the products of (1 - beta)
        beta = 1 - kept / kept_next
        mean = (math.sqrt(kept_next) * beta / (1 - kept)) * x_0
        mean = mean + (math.sqrt(1 - beta) * (1 - kept_next) / (1 - kept)) * x_t
        if self.timestep == 0:
            return x_0, mean
        smallest = math.log(max((1 - kept_next) / (1 - kept) * beta, 1e-20))
        if prediction.shape[1] == 2 * channels:
            share = (prediction[:, channels:] + 1) / 2
            deviation = math.e ** (0.5 * (share * math.log(beta) + (1 - share) * smallest))
        else:
            deviation = math.exp(0.5 * smallest)
        return x_0, mean + deviation * self.fresh_noise()


class Lcm(Solver):
    """Consistency sampling of a latent consistency model (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

    The network maps any x_t to the clean latent at once; each further step adds noise again, less of it.
    """

    def advance(self, x_t, x_0, prediction):
        scaled = (self.timestep * TIMESTEP_SCALE) ** 2 + SIGMA_DATA**2
        # The boundary condition: at timestep 0 the clean latent is x_t itself.
        x_0 = (self.timestep * TIMESTEP_SCALE / math.sqrt(scaled)) * x_0 + (SIGMA_DATA**2 / scaled) * x_t
        _, _, alpha_next, sigma_next = self.level
        return x_0, x_0 if self.last else alpha_next * x_0 + sigma_next * self.fresh_noise()


class Point(NamedTuple):
    """A noise level, and the x_0 that the network gave there."""

    alpha: float
    sigma: float
    x_0: Any

    @property
    def log_snr(self) -> float:
        return log_snr(self.alpha, self.sigma)


@dataclass(eq=False)
class SaSolver(Solver):
    """SA-Solver: stochastic Adams, predictor and corrector of order two (Xue et al. 2023, arXiv 2309.05019).

    In data prediction, as PixArt-alpha `diffusion/sa_sampler.py` and Diffusers' SASolverScheduler use it: each step
    solves the reverse SDE over one interval of the log signal-to-noise ratio, with x_0 interpolated through past
    estimates; the network's answer at the new point then corrects the step before it is left (PEC, one network call a
    step).
    """

    before: Point | None = None  # the step before: its point, the x_t it started from, its noise and its tau
    start: Any = None
    noise: Any = None
    tau_before: float = 0.0

    def advance(self, x_t, x_0, prediction):
        alpha, sigma, alpha_next, sigma_next = self.level
        here, there = Point(alpha, sigma, x_0), Point(alpha_next, sigma_next, None)
        if self.before is not None:
            x_t = stochastic_adams(self.start, self.before, here, [here, self.before], self.noise, self.tau_before)
        self.start, self.noise, self.tau_before = x_t, self.fresh_noise(), tau(self.timestep)
        if sigma_next == 0:
            x_t = x_0  # of order one, where there is no noise left to have a logarithm of
        else:
            known = [here] if self.before is None or self.last else [here, self.before]
            x_t = stochastic_adams(x_t, here, there, known, self.noise, self.tau_before)
        self.before = here
        return x_0, x_t


def tau(timestep: int) -> float:
    """How much noise a step of SA-Solver adds, 0 (none: an ODE) to 1 (the reverse SDE): as the PixArt-α authors do."""
    return 1.0 if 200 <= timestep <= 800 else 0.0


def stochastic_adams(x, here: Point, there: Point, known: list[Point], noise, tau: float):
    """x at `here` -> x at `there`, with x_0 a polynomial in the log-SNR through the known points (one or two).

    Section 5 of the paper with the integrals in closed form; logarithms are taken relative to `there`, so that nothing
    overflows. Two known points get the correction of third order that the official code adds.
    """
    k = 1 + tau**2
    h = there.log_snr - here.log_snr
    decay = math.exp(-k * h)
    integral = (1 - decay) / k  # of exp(k u) over the interval, u = log-SNR - there's
    if len(known) == 1:
        target = integral * known[0].x_0
    else:
        first, second = (point.log_snr - there.log_snr for point in known)
        moment = ((k * h + 1) * decay - 1) / k**2  # the same integral with a factor u
        gap = first - second
        extra = (k * h - 1 + decay) / k**2
        # In the predictor the known points are `here` and the one before; in the corrector they are both ends.
        extra = h / 2 - extra / h if first == 0 else (h**2 / 2 - extra) / gap
        target = ((moment - second * integral) / gap + extra) * known[0].x_0
        target = target + ((first * integral - moment) / gap - extra) * known[1].x_0
    x = math.exp(-(tau**2) * h) * (there.sigma / here.sigma) * x + k * there.alpha * target
    if tau == 0:
        return x
    return x + there.sigma * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * noise


def log_snr(alpha: float, sigma: float) -> float:
    return math.log(alpha) - math.log(sigma)


@dataclass(frozen=True)
class Sampler:
    """A solver, the noise levels that it needs, and the settings that suit it.

    Attributes:
        title: its name in the `parameters` text that other tools read.
        aliases: what Diffusers, A1111, ComfyUI and InvokeAI call it; see `find_sampler`.
        steps, guidance_scale: what suits it where the model folder does not say.
        overrides: fields of the folder's scheduler config that this sampler needs otherwise.
        eps_only: it is defined for eps models (a DDPM's chain), not for flows.
        fewest, most: steps.
    """

    solver: type[Solver]
    title: str
    aliases: tuple[str, ...] = ()
    steps: int = 20
    guidance_scale: float = 4.5
    overrides: dict[str, Any] = field(default_factory=dict)
    eps_only: bool = False
    fewest: int = 1
    most: int = 500


TO_ZERO = {"final_sigmas_type": "zero"}
SAMPLERS = {
    "dpm-solver": Sampler(DpmSolver, "DPM++ 2M", ("dpmpp 2m", "DPMSolverMultistep")),
    "dpm-solver-karras": Sampler(
        DpmSolver,
        "DPM++ 2M Karras",
        ("dpmpp 2m karras", "dpmpp 2m k"),
        overrides={"use_karras_sigmas": True},
        eps_only=True,
    ),
    "sa-solver": Sampler(SaSolver, "SA-Solver", (), 25, 3.0, {"final_sigmas_type": "sigma_min"}),
    "euler": Sampler(Euler, "Euler", ("FlowMatchEuler", "k_euler"), 25),
    "euler-ancestral": Sampler(
        EulerAncestral, "Euler a", ("k_euler_a",), 25, overrides={"timestep_spacing": "even"} | TO_ZERO
    ),
    "ddim": Sampler(Euler, "DDIM", (), 50, 4.5, {"timestep_spacing": "trailing"} | TO_ZERO, True),
    "ddpm": Sampler(Ddpm, "DDPM", (), 100, 4.5, {"timestep_spacing": "ends"} | TO_ZERO, True, 2),
    "lcm": Sampler(Lcm, "LCM", (), 4, 1.0, {"timestep_spacing": "lcm"} | TO_ZERO, True, 1, 50),
    "dmd": Sampler(Euler, "DMD", (), 1, 1.0, {"timestep_spacing": "dmd"} | TO_ZERO, True, 1, 1),
}


def find_sampler(name: str) -> str:
    """Our name of a sampler, which may be given by its name in Diffusers, A1111, ComfyUI or InvokeAI.

    Raises:
        UsageError: there is none of this name.
    """
    for key, sampler in SAMPLERS.items():
        if _plain(name) in map(_plain, (key, sampler.title, *sampler.aliases)):
            return key
    raise UsageError(unknown("sampler", str(name), SAMPLERS))


def _plain(name: Any) -> str:
    """Without what tools write differently: capitals, blanks, hyphens, Diffusers' "DiscreteScheduler"."""
    plain = re.sub(r"[\s_-]", "", str(name)[:100]).lower()
    return plain.removesuffix("scheduler").removesuffix("discrete")


def schedule_for(name: str, config: dict[str, Any], steps: int) -> Schedule:
    """The noise levels of the sampler `name` for a model with this scheduler config.

    Raises:
        UsageError: the sampler is for eps models and the model is a flow.
    """
    sampler = SAMPLERS[name]
    if config.get("use_flow_sigmas"):
        if sampler.eps_only:
            fitting = ", ".join(key for key, other in SAMPLERS.items() if not other.eps_only)
            raise UsageError(
                f"The sampler {name} is for models that predict eps, and this one predicts a velocity; choose one of: "
                f"{fitting}."
            )
        return make_schedule(config, steps)
    return make_schedule(config | sampler.overrides, steps)


def solve(
    solver: type[Solver],
    denoise: Callable[[Any, int], Any],
    x_t,
    schedule: Schedule,
    fresh_noise: Callable[[], Any] | None = None,
) -> Iterator[Step]:
    """From x_t (noise) down the schedule with one network, `denoise(x_t, timestep)`, yielding after every step.

    For training and tests, where all images of a batch are at the same step; the caller may stop early.
    """
    state = solver(schedule, fresh_noise)
    while not state.done:
        step = state.step(x_t, denoise(x_t, state.timestep))
        x_t = step.x_t
        yield step


dpm_solver, euler = functools.partial(solve, DpmSolver), functools.partial(solve, Euler)
