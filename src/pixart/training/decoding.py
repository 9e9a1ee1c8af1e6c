"""The decoder's own stage: it learns to decode what the denoiser draws, and every latent stays what it was.

An autoencoder's decoder has seen nothing but its encoder's latents. A drawn latent is not quite one of these, and the
difference shows as a weave on flat areas and as soft edges. So a share of the latents here is drawn: noised to a level
where the picture is still the same picture, and led back by the denoiser with guidance, as drawing would. The decoder
has to give the true picture for them. The encoder does not change, so denoisers and cached latents stay valid.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.diffusion import flow
from pixart.diffusion.guidance import guide
from pixart.errors import UsageError
from pixart.model.pixart import PixArt
from pixart.tracking.tracker import TrackingConfig
from pixart.training.batches import Phase, Sampling
from pixart.training.distillation import size_of
from pixart.training.loop import LoopConfig
from pixart.training.optimizers.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Drawn:
    """`share` of the latents are drawn: from a noise level up to `highest_level` (0 to 1), in `steps` Euler steps."""

    share: float = 0.5
    highest_level: float = 0.5
    steps: int = 2
    guidance_scale: float = 4.5

    def __post_init__(self):
        if not 0 <= self.share <= 1 or not 0 < self.highest_level <= 1:
            raise UsageError(
                f"drawn: share {self.share} must be from 0 to 1, and highest_level {self.highest_level} above 0 and up "
                "to 1."
            )
        if not 1 <= self.steps <= 50 or not 0 <= self.guidance_scale <= 50:
            raise UsageError(
                f"drawn: steps {self.steps} must be from 1 to 50, guidance_scale {self.guidance_scale} from 0 to 50."
            )


@dataclass(frozen=True)
class DecoderWeights:
    """Of the terms of the loss beside the mean absolute error, as in `AutoencoderConfig`."""

    squared: float = 5.0
    gradient: float = 1.0

    def __post_init__(self):
        if not 0 <= self.squared < math.inf or not 0 <= self.gradient < math.inf:
            raise UsageError(f"weights: squared {self.squared} and gradient {self.gradient} must be 0 or more.")


@dataclass(frozen=True)
class DecoderRecipe:
    """Train the decoder of `autoencoder` on, for the denoiser of `init`: a finished run, or a model folder."""

    run: Path
    data: Path
    cache: Path
    autoencoder: Path
    init: Path
    phases: tuple[Phase, ...]
    drawn: Drawn = field(default_factory=Drawn)
    weights: DecoderWeights = field(default_factory=DecoderWeights)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self):
        if not self.phases:
            raise UsageError("A recipe needs at least one [[phases]] table: how many steps at which picture size.")
        if any(phase.crop or phase.route_share or phase.mask_share for phase in self.phases):
            raise UsageError('crop, route_share and mask_share are not for recipes of kind "decoder"; leave them out.')


class Decoder(torch.nn.Module):
    """What is trained: latents (B, C, h, w) -> pixels (B, 3, 8h, 8w) fp32, about -1 to 1."""

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent)).float()


class Drawer:
    """A frozen denoiser of a flow that draws latents again."""

    def __init__(self, network: PixArt, null: Tensor, how: Drawn):
        """`null` (L, T) is the encoded empty prompt."""
        self.network, self.null, self.how = network.eval().requires_grad_(False), null, how

    @torch.no_grad()
    def again(self, latent: Tensor, levels: Tensor, eps: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Latents (B, C, h, w) noised with `eps` to `levels` (B,), and back by Euler's method with guidance."""
        network = self.network.to(latent.device)
        null = self.null.float().to(latent.device).expand(len(latent), -1, -1)
        size = size_of(latent).expand(len(latent), 3)
        x_t = flow.add_noise(latent, eps, levels)
        for step in range(self.how.steps):
            timestep = 1000 * levels * (1 - step / self.how.steps)
            conditional = network(x_t, timestep, text, text_mask, size).float()
            alone = network(x_t, timestep, null, None, size).float()
            velocity = guide(conditional, alone, self.how.guidance_scale)
            x_t = x_t - (levels / self.how.steps).view(-1, 1, 1, 1) * velocity
        return x_t


def decoding_loss(model: torch.nn.Module, batch: dict, *, drawer: Drawer, weights: DecoderWeights) -> Tensor:
    """The mean over pictures, a scalar, of the terms that the autoencoder is trained by, the KL term excepted.

    Leaves in `batch` the loss of each picture, `losses` (B,).

    Args:
        batch: `latent` (B, C, h, w), `pixels` (B, 3, 8h, 8w) in [-1, 1], `text` (B, L, T), `text_mask` (B, L), and
            `rng`, the random streams of its rows (rows.py).
    """
    latent, pixels, rng = batch["latent"], batch["pixels"], batch["rng"]
    chosen = torch.from_numpy(rng.random(len(latent)) < drawer.how.share).to(latent.device)
    levels = torch.from_numpy(rng.random(len(latent)).astype(np.float32)).to(latent.device) * drawer.how.highest_level
    eps = torch.from_numpy(rng.standard_normal(tuple(latent.shape), np.float32)).to(latent.device)
    if chosen.any():
        picked = [part[chosen] for part in (latent, levels, eps, batch["text"], batch["text_mask"])]
        latent = latent.clone()
        latent[chosen] = drawer.again(*picked)
    error = model(latent) - pixels
    edges = _mean((error[..., 1:] - error[..., :-1]).abs()) + _mean((error[..., 1:, :] - error[..., :-1, :]).abs())
    losses = _mean(error.abs()) + weights.squared * _mean(error.square()) + weights.gradient * edges
    batch["losses"] = losses.detach()
    return losses.mean()


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=(1, 2, 3))
