"""The noise levels of sampling, as a model folder's scheduler/scheduler_config.json lays them down."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pixart.errors import PixArtError

# What we can do, field by field; a value outside this list would silently give another image than stock Diffusers.
SUPPORTED = {
    "_class_name": ("DPMSolverMultistepScheduler",),  # and LCMScheduler, DDPMScheduler: see `read_scheduler`
    "prediction_type": ("flow_prediction", "epsilon"),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (1, 2),
    "beta_schedule": ("linear", "scaled_linear"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "thresholding": (False,),
    "trained_betas": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "rescale_betas_zero_snr": (False, None),
    "use_flow_sigmas": (True, False, None),
    "euler_at_final": (True, False),
    "lower_order_final": (True, False),
    "lambda_min_clipped": (-np.inf, "-inf"),
    "num_train_timesteps": (1000,),  # the scale of the timesteps that the denoiser takes
    "clip_sample": (True, False),
    "steps_offset": (0, 1),  # with more, the first of many steps would lie beyond the last training timestep
}
# Fields that are numbers: the lowest and the highest with which no noise level is 0, infinite or equal to the next.
RANGES = {"beta_start": (1e-6, 0.05), "beta_end": (1e-6, 0.05), "flow_shift": (0.01, 100)}


# What Diffusers' LCMScheduler takes where its config does not say, and what it must say for our `lcm` to be the same.
LCM_DEFAULTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LCM_SUPPORTED = {
    "prediction_type": ("epsilon",),
    "original_inference_steps": (50,),
    "timestep_scaling": (10.0,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "num_train_timesteps": (1000,),
}
# Of DDPMScheduler the same; `clip_sample` is kept, since only its own samplers clip.
DDPM_DEFAULTS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True}
DDPM_SUPPORTED = {
    "prediction_type": ("epsilon",),
    "clip_sample_range": (1.0,),
    "variance_type": ("fixed_small", "learned_range"),
    "thresholding": (False,),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "num_train_timesteps": (1000,),
}


@dataclass(frozen=True)
class Schedule:
    """Noise levels from the first to the last step: x_t = alpha x_0 + sigma eps.

    `alphas` and `sigmas` have steps + 1 entries (the last is that of the image), `timesteps` has one number from 0
    to 1000 per step, an input of the denoiser. Python floats throughout, so that multiplying by them
    leaves float32 arrays and tensors float32.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: Literal["velocity", "eps"]
    first_order_last: bool
    clip: bool = False  # x_0 to [-1, 1]

    def noised(self, x_0, eps, step: int):
        """A clean latent at the noise level of `step`."""
        return self.alphas[step] * x_0 + self.sigmas[step] * eps

    def x_0(self, prediction, x_t, step: int):
        """Turn the denoiser's prediction for x_t at `step` into the clean latent that it implies.

        A learned variance, if there is one, is the second half of the channels and not read here.
        """
        prediction = prediction[:, : x_t.shape[1]]
        if self.prediction == "velocity":
            return x_t - self.sigmas[step] * prediction
        x_0 = (x_t - self.sigmas[step] * prediction) / self.alphas[step]
        return x_0.clip(-1, 1) if self.clip else x_0


def read_scheduler(config: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checked scheduler config as one of DPMSolverMultistepScheduler, and the sampling defaults that it implies.

    Of an LCMScheduler and a DDPMScheduler the noise schedule is kept, and "lcm" or "ddpm" is the sampler that suits the
    model.

    Raises:
        PixArtError: names the field that asks for something we do not do.
    """
    others = {
        "LCMScheduler": (LCM_SUPPORTED, LCM_DEFAULTS, "lcm"),
        "DDPMScheduler": (DDPM_SUPPORTED, DDPM_DEFAULTS, "ddpm"),
    }
    if config.get("_class_name") not in others:
        check_config(config, name)
        return config, {}
    supported, defaults, sampler = others[config["_class_name"]]
    _refuse_others(config, supported, name)
    noise = defaults | {field: config[field] for field in defaults if field in config}
    plain = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "epsilon", **noise}
    check_config(plain, name)
    return plain, {"sampler": sampler}


def check_config(config: dict[str, Any], name: str) -> None:
    """Raise PixArtError, naming the field, where the scheduler config asks for something we do not do."""
    _refuse_others(config, SUPPORTED, name)
    for field, (low, high) in RANGES.items():
        value = config.get(field, low)
        if type(value) not in (int, float) or not low <= value <= high:
            raise PixArtError(f"{name}: {field} is {value!r}; it must be a number from {low:g} to {high:g}.")
    if "_class_name" not in config:
        raise PixArtError(f"{name}: there is no _class_name in it; a DPMSolverMultistepScheduler config is needed.")
    if (config.get("prediction_type") == "flow_prediction") != bool(config.get("use_flow_sigmas")):
        raise PixArtError(f"{name}: prediction_type 'flow_prediction' and use_flow_sigmas true must come together.")


def _refuse_others(config: dict[str, Any], supported: dict[str, tuple], name: str) -> None:
    for field, allowed in supported.items():
        if field in config and config[field] not in allowed:
            values = " or ".join(repr(value) for value in allowed)
            raise PixArtError(f"{name}: {field} is {config[field]!r}, and pixart samples with {values} only.")


def make_schedule(config: dict[str, Any], steps: int) -> Schedule:
    """Lay out `steps` noise levels as DPMSolverMultistepScheduler.set_timesteps does for the same config.

    The sigmas are rounded to float32 where Diffusers rounds them, and everything after that is float64: at the first
    flow step alpha is 1 - float32(0.999), and rounding it elsewhere would change it by 1 part in 80,000.
    """
    train_steps = int(config.get("num_train_timesteps", 1000))
    first_order_last = (
        config.get("final_sigmas_type", "zero") == "zero"
        or bool(config.get("euler_at_final", False))
        or (bool(config.get("lower_order_final", True)) and steps < 15)
    )
    trained = _trained_sigmas(config, train_steps)
    end = float(trained[0]) if config.get("final_sigmas_type") == "sigma_min" else 0.0
    if config.get("use_flow_sigmas"):
        ramp = 1.0 - np.linspace(1, 1 / train_steps, steps + 1)
        shift = float(config.get("flow_shift", 1.0))
        levels = (shift * ramp / (1 + (shift - 1) * ramp))[::-1][:-1]
        timesteps = (levels * train_steps).astype(np.int64)
        sigmas = [float(level) for level in levels.astype(np.float32)] + [end]
        alphas = [1.0 - sigma for sigma in sigmas]
        prediction = "velocity"
    else:
        # Diffusers keeps sigma / alpha, the noise level of x_t / alpha.
        if config.get("use_karras_sigmas"):
            levels = _karras(float(trained[0]), float(trained[-1]), steps)
            timesteps = np.interp(np.log(levels), np.log(trained), np.arange(train_steps)).round()
        else:
            timesteps = _ddpm_timesteps(config, train_steps, steps)
            levels = np.interp(timesteps, np.arange(train_steps), trained)
        ratios = [float(level) for level in levels.astype(np.float32)] + [end]
        alphas = [(ratio**2 + 1) ** -0.5 for ratio in ratios]
        sigmas = [ratio * alpha for ratio, alpha in zip(ratios, alphas, strict=True)]
        prediction = "eps"
    clip = bool(config.get("clip_sample")) and config.get("timestep_spacing") in ("ends", "dmd")
    return Schedule(
        tuple(alphas), tuple(sigmas), tuple(t.item() for t in timesteps), prediction, first_order_last, clip
    )


def _karras(low: float, high: float, steps: int) -> np.ndarray:
    """Noise levels (steps,) from `high` to `low`, more of them at low noise (Karras et al. 2206.00364, eq. 5)."""
    return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7


def _trained_sigmas(config: dict[str, Any], train_steps: int) -> np.ndarray:
    """sigma / alpha at every training timestep of a DDPM noise schedule, float32, shape (train_steps,)."""
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("beta_schedule", "linear") == "linear":
        betas = np.linspace(start, end, train_steps).astype(np.float32)
    else:
        betas = np.linspace(start**0.5, end**0.5, train_steps).astype(np.float32) ** 2
    # torch.cumprod adds up in float64 and rounds each entry; so do we, to stay within rounding of Diffusers.
    products = np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)
    return ((1 - products) / products) ** 0.5


def _ddpm_timesteps(config: dict[str, Any], train_steps: int, steps: int) -> np.ndarray:
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "ends":  # both ends of the chain are among the steps, as IDDPM spaces them
        return np.linspace(0, train_steps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "even":  # the same, not rounded, as Diffusers' Euler schedulers do
        return np.linspace(0, train_steps - 1, steps)[::-1]
    if spacing == "dmd":  # the one at which a DMD model was distilled (`one_step_maxt` of the official script)
        return np.array([400])
    if spacing == "lcm":  # a subset of the 50 timesteps at which a consistency model was distilled
        distilled = np.arange(1, min(50, train_steps) + 1) * (train_steps // 50) - 1
        return distilled[::-1][np.floor(np.linspace(0, len(distilled), steps, endpoint=False)).astype(np.int64)]
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    if spacing == "leading":
        stride = train_steps // (steps + 1)
        return (np.arange(steps + 1) * stride)[::-1][:-1].astype(np.int64) + int(config.get("steps_offset", 0))
    return np.arange(train_steps, 0, -train_steps / steps).round().astype(np.int64) - 1
