"""The loss of all three stages, under either objective: noise the latents, predict, compare."""

from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixart.diffusion import ddpm, flow
from pixart.diffusion.timesteps import Timesteps, draw_levels
from pixart.training.masking import visible_patches

ObjectiveName = Literal["flow", "ddpm"]
LATENT_SCALE = 8  # pixels per latent


def denoising_loss(
    model: torch.nn.Module,
    batch: dict,
    *,
    condition: tuple[str, ...],
    timesteps: Timesteps,
    objective: ObjectiveName = "flow",
    min_snr_gamma: float | None = None,
) -> Tensor:
    """The mean loss of a batch, a scalar.

    Leaves in `batch` what the log wants to know: `levels` (B,), the noise levels from 0 to 1, and `losses` (B,), the
    loss of each picture, both without gradient.

    Args:
        batch: `latent` (B, C, h, w), `rng`, the random streams of its rows (rows.py), and what `condition` names;
            also `routed` or `visible` where tokens are spared (tread.py, masking.py).
        condition: what the network reads besides x_t and timestep: classes, or text, its mask and maybe the size.
    """
    x_0 = batch["latent"]
    eps = torch.from_numpy(batch["rng"].standard_normal(tuple(x_0.shape), np.float32)).to(x_0.device)
    shift = timesteps.shift_for(LATENT_SCALE * x_0.shape[2], LATENT_SCALE * x_0.shape[3])
    levels = draw_levels(batch["rng"], len(x_0), timesteps, shift).to(x_0.device)
    read = [batch[name] for name in condition]
    spared = {name: batch[name] for name in ("routed", "visible") if name in batch}
    compared = partial(visible_patches, visible=batch["visible"]) if "visible" in batch else lambda latent: latent
    if objective == "flow":
        velocity = model(flow.add_noise(x_0, eps, levels), 1000 * levels, *read, **spared)
        losses = flow.losses(velocity, compared(x_0), compared(eps))
    else:
        timestep = ddpm.whole(levels)
        x_t = ddpm.add_noise(x_0, eps, timestep)
        prediction = model(x_t, timestep, *read, **spared)
        parts = compared(x_0), compared(x_t), compared(eps)
        losses = ddpm.losses(prediction, *parts, timestep, min_snr_gamma=min_snr_gamma)
    batch["levels"], batch["losses"] = levels, losses.detach()
    return losses.mean()
