"""The loss of all three stages, under either objective: noise the latents, predict, compare."""

from typing import Literal

import torch
from torch import Tensor

from pixart.diffusion import ddpm, flow
from pixart.diffusion.timesteps import Timesteps, draw_levels

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
        batch: `latent` (B, C, h, w) and what `condition` names.
        condition: what the network reads besides x_t and timestep: classes, or text, its mask and maybe the size.
    """
    x_0 = batch["latent"]
    eps = torch.randn_like(x_0)
    shift = timesteps.shift_for(LATENT_SCALE * x_0.shape[2], LATENT_SCALE * x_0.shape[3])
    levels = draw_levels(len(x_0), timesteps, shift).to(x_0.device)
    read = [batch[name] for name in condition]
    if objective == "flow":
        velocity = model(flow.add_noise(x_0, eps, levels), 1000 * levels, *read)
        losses = flow.losses(velocity, x_0, eps)
    else:
        timestep = ddpm.whole(levels)
        x_t = ddpm.add_noise(x_0, eps, timestep)
        prediction = model(x_t, timestep, *read)
        losses = ddpm.losses(prediction, x_0, x_t, eps, timestep, min_snr_gamma=min_snr_gamma)
    batch["levels"], batch["losses"] = levels, losses.detach()
    return losses.mean()
