"""The small VAE: Diffusers' `AutoencoderKL`, its training loss, and the folding that gives latents unit scale."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from pixart.errors import UsageError

SCALES = (1.0, 0.75, 0.5)  # of a latent that is turned or shrunk


@dataclass(frozen=True)
class AutoencoderConfig:
    """Four levels give the 8-fold reduction that PixArt's latents have; no attention, so any size can be drawn.

    `equivariance` is the share of pictures whose latents are turned or shrunk before they are decoded; see
    `Reconstruction`. `anchor_weight` holds the latents near those of the autoencoder that training starts from; see
    `loss`.
    """

    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 8
    squared_weight: float = 5.0
    gradient_weight: float = 1.0
    kl_weight: float = 1e-5
    anchor_weight: float = 0.0
    equivariance: float = 0.0

    def __post_init__(self):
        weights = (self.squared_weight, self.gradient_weight, self.kl_weight, self.anchor_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not 0 <= self.equivariance <= 1:
            raise UsageError(
                f"autoencoder: squared_weight, gradient_weight, kl_weight and anchor_weight {weights} must be 0 or "
                f"more, and equivariance {self.equivariance} from 0 to 1."
            )


def build(config: AutoencoderConfig):
    """A fresh `AutoencoderKL` with `scaling_factor` 1.0: `fold_statistics` gives its latents unit deviation."""
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


class Reconstruction(torch.nn.Module):
    """The VAE as the loop trains it: pixels in [-1, 1] -> what is decoded, what that should be, and the posterior.

    Of the share `equivariance` of the pictures the latent is turned by quarters and shrunk, and has to decode into the
    picture turned and shrunk alike. An encoder that is trained so keeps less in the fine structure of its latents,
    which is the part that a denoiser finds hardest (EQ-VAE, arXiv 2502.09509, section 3.2).
    """

    def __init__(self, vae: torch.nn.Module, equivariance: float = 0.0):
        super().__init__()
        self.vae, self.equivariance = vae, equivariance

    def forward(
        self, pixels: torch.Tensor, rng
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor]:
        """Pairs of drawn and true pixels, (N, 3, h, w) each and one pair a size; mean, logvar (B, C, H/8, W/8).

        `pixels` is (B, 3, H, W), square where pictures are turned. `rng` gives uniform numbers by `random(shape)` and
        normal ones by `standard_normal(shape, dtype)`, as numpy's Generator does.
        """
        mean, logvar = self.vae.quant_conv(self.vae.encoder(pixels)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), np.float32)).to(mean.device)
        latent = mean + noise * torch.exp(0.5 * logvar)
        pairs = [(latent, pixels)] if not self.equivariance else transformed(latent, pixels, self.equivariance, rng)
        return [(self.vae.decoder(self.vae.post_quant_conv(z)).float(), true) for z, true in pairs], mean, logvar


def transformed(
    latent: torch.Tensor, pixels: torch.Tensor, share: float, rng
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of latents and pixels, one pair for each size: the share turned by 0 to 3 quarters and scaled alike."""
    chosen, turn, scale = rng.random((len(latent), 3)).T
    turns = np.where(chosen < share, (4 * turn).astype(int), 0)
    scales = np.where(chosen < share, (len(SCALES) * scale).astype(int), 0)
    pairs = []
    for index in sorted(set(scales)):
        rows = np.flatnonzero(scales == index)
        side = round(latent.shape[-1] * SCALES[index])
        turned = [torch.stack([part[i].rot90(int(turns[i]), (1, 2)) for i in rows]) for part in (latent, pixels)]
        pairs.append((_shrunk(turned[0], side), _shrunk(turned[1], 8 * side)))
    return pairs


def _shrunk(part: torch.Tensor, side: int) -> torch.Tensor:
    if part.shape[-1] == side:
        return part
    return interpolate(part, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


@dataclass
class Anchor:
    """The autoencoder that training starts from, frozen, and the weight of the latents' distance from its own."""

    vae: torch.nn.Module
    weight: float

    def distance(self, mean: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Mean squared distance, a scalar, of `mean` (B, C, H/8, W/8) from the anchor's for the same pixels."""
        self.vae.to(pixels.device)
        return (mean - moments(self.vae, pixels)[0]).square().mean()

    @torch.no_grad()
    def held_out_distance(self, vae, pixels: torch.Tensor, batch_size: int = 16) -> float:
        """The same for the latents of `vae`, over many pictures (N, 3, H, W); 1 is as far as latents are wide."""
        device, distances = next(vae.parameters()).device, []
        for part in pixels.split(batch_size):
            part = part.to(device)
            distances.append(self.distance(moments(vae, part)[0], part).item() * len(part))
        return sum(distances) / len(pixels)


def loss(
    model: torch.nn.Module,
    batch: dict,
    *,
    squared_weight: float,
    gradient_weight: float,
    kl_weight: float,
    anchor: Anchor | None = None,
) -> torch.Tensor:
    """L1 and L2 of the pixels, L1 of their horizontal and vertical differences (crisp edges), and a small KL term.

    With an `anchor`, the latents stay near its own, so that a denoiser that learned these has little to learn anew.
    `batch["pixels"]`: (B, 3, H, W) in [-1, 1]; `batch["rng"]` draws the latents.
    """
    pairs, mean, logvar = model(batch["pixels"], batch["rng"])
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    total = kl_weight * kl
    if anchor:
        total = total + anchor.weight * anchor.distance(mean, batch["pixels"])
    for drawn, pixels in pairs:
        error = drawn - pixels
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        terms = error.abs().mean() + squared_weight * error.square().mean() + gradient_weight * edges
        total = total + terms * (len(pixels) / len(mean))
    return total


@torch.no_grad()
def moments(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of `pixels` (B, 3, H, W) in [-1, 1]: two (B, C, H/8, W/8) tensors."""
    posterior = vae.encode(pixels).latent_dist
    return posterior.mean, posterior.std


@torch.no_grad()
def psnr(vae, pixels: torch.Tensor, batch_size: int = 16, *, turned: bool = False) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; `pixels` is (N, 3, H, W) in [-1, 1].

    With `turned` the latents are turned by a quarter and halved before they are decoded, and the pictures alike.
    """
    values, device = [], next(vae.parameters()).device
    for part in pixels.split(batch_size):
        part = part.to(device)
        mean, _ = moments(vae, part)
        if turned:
            mean, part = (_shrunk(each.rot90(1, (2, 3)), each.shape[-1] // 2) for each in (mean, part))
        drawn = vae.decode(mean).sample.clamp(-1, 1)
        mse = ((drawn - part) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * torch.log10(mse.clamp_min(1e-10)))
    return torch.cat(values).mean().item()


@torch.no_grad()
def fold_statistics(vae, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make latents zero-mean and unit-deviation by folding per-channel figures into the 1x1 convolutions around them.

    The stock pipeline applies only `scaling_factor`, so a shift has to live in the weights. `mean` and `std` are (C,)
    over the training latents. Reconstructions do not change.
    """
    channels = mean.numel()
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, channels, 1, 1)
    quant.weight[:channels] /= std.view(channels, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the log-variance scales with the latent
