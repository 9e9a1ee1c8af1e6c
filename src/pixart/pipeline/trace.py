"""One image's generation kept step by step: the network's inputs and the clean latents they implied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.diffusion.noise import initial_noise
from pixart.diffusion.solvers import Step, schedule_for
from pixart.errors import UsageError
from pixart.pipeline.pipeline import Generated, OnStep, Pipeline
from pixart.pipeline.request import Request


@dataclass(frozen=True)
class Trace:
    """S steps of one image; latents (S, C, h, w) float32.

    Attributes:
        timesteps: 1000 (noise) to 0 (clean), one per step.
        x_t: the input of the network at each step; the first is pure noise.
        x_0: the clean latent that its prediction implied, guidance included.
        height, width: in pixels, as generated.
    """

    generated: Generated
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
    """Generate the one image of a checked request and keep every step; the hooks are those of `Pipeline.generate`.

    Raises:
        UsageError: the request is for more than one image.
    """
    if len(request.prompts) * len(request.seeds) != 1:
        raise UsageError("Only one image at a time can be traced; give one prompt and one seed.")
    x_t: list[np.ndarray] = []
    x_0: list[np.ndarray] = []

    def keep(index: int, step: Step) -> None:
        for kept, latent in ((x_t, step.x_t), (x_0, step.x_0)):
            kept.append(np.array(pipeline.networks.to_numpy(latent)[0]))
        if on_step is not None:
            on_step(index, step)

    (generated,) = pipeline.generate(request, keep, on_notice)
    # The result of one step is the network's input in the next.
    noise = initial_noise(request.seeds[0], x_t[0].shape)
    timesteps = schedule_for(request.sampler, pipeline.folder.scheduler, request.steps).timesteps
    height, width = (side * pipeline.folder.vae_factor for side in noise.shape[1:])
    return Trace(generated, timesteps, np.stack([noise, *x_t[:-1]]), np.stack(x_0), height, width)


def decode_steps(pipeline: Pipeline, latents: np.ndarray) -> list[Any]:
    """Latents (S, C, h, w), such as `Trace.x_0`, as S RGB PIL images."""
    from PIL import Image

    networks = pipeline.networks
    return [Image.fromarray(pixels) for pixels in networks.decode(networks.latents(latents))]
