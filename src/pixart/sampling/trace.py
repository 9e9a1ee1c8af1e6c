"""One drawing kept step by step: what the network was shown and what it believed in. Looking changes no byte of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.errors import UsageError
from pixart.sampling.dpm_solver import Step
from pixart.sampling.noise import initial_noise
from pixart.sampling.pipeline import OnStep, Picture, Pipeline
from pixart.sampling.request import Request
from pixart.sampling.samplers import schedule_for


@dataclass(frozen=True)
class Trace:
    """S steps of one picture; latents (S, C, h, w) float32.

    Attributes:
        timesteps: 1000 (noise) to 0 (clean), one per step.
        x_t: what the network was shown at each step; the first is pure noise.
        x_0: the clean latent that it believed to be behind that, guidance included.
        height, width: in pixels, as drawn.
    """

    picture: Picture
    timesteps: tuple[int, ...]
    x_t: np.ndarray
    x_0: np.ndarray
    height: int
    width: int


def trace(
    pipeline: Pipeline,
    request: Request,
    *,
    on_step: OnStep | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Trace:
    """Draw the one picture of a checked request and keep every step; the hooks are those of `Pipeline.draw`.

    Raises:
        UsageError: the request is for more than one picture.
    """
    if len(request.prompts) * len(request.seeds) != 1:
        raise UsageError("Only one picture at a time can be looked into; give one prompt and one seed.")
    shown: list[np.ndarray] = []
    believed: list[np.ndarray] = []

    def keep(index: int, step: Step) -> None:
        for kept, latent in ((shown, step.x_t), (believed, step.x_0)):
            kept.append(np.array(pipeline.engine.to_numpy(latent)[0]))
        if on_step is not None:
            on_step(index, step)

    (picture,) = pipeline.draw(request, keep, on_notice)
    # What a solver hands out after one step is what the network is shown in the next.
    noise = initial_noise(request.seeds[0], shown[0].shape)
    timesteps = schedule_for(request.sampler, pipeline.folder.scheduler, request.steps).timesteps
    height, width = (side * pipeline.folder.vae_factor for side in noise.shape[1:])
    return Trace(picture, timesteps, np.stack([noise, *shown[:-1]]), np.stack(believed), height, width)


def decode_steps(pipeline: Pipeline, latents: np.ndarray) -> list[Any]:
    """Latents (S, C, h, w), such as `Trace.x_0`, as S RGB PIL images."""
    from PIL import Image

    return [Image.fromarray(pipeline.engine.decode(pipeline.engine.latents(latent[None]))) for latent in latents]
