"""The small VAE: Diffusers' `AutoencoderKL`, its training loss, and the folding that gives latents unit scale."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class AutoencoderConfig:
    """Four levels give the 8-fold reduction that PixArt's latents have; no attention, so any size can be drawn."""

    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 8
    squared_weight: float = 5.0
    gradient_weight: float = 1.0
    kl_weight: float = 1e-5


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
    """The VAE as the loop trains it: pixels (B, 3, H, W) in [-1, 1] -> reconstruction, mean, logvar."""

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, rng) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`rng` gives normal numbers by `standard_normal(shape, dtype)`, as numpy's Generator does."""
        mean, logvar = self.vae.quant_conv(self.vae.encoder(pixels)).float().chunk(2, dim=1)  # (B, C, H/8, W/8) each
        logvar = logvar.clamp(-30.0, 20.0)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), np.float32)).to(mean.device)
        latent = mean + noise * torch.exp(0.5 * logvar)
        return self.vae.decoder(self.vae.post_quant_conv(latent)).float(), mean, logvar


def loss(
    model: torch.nn.Module, batch: dict, *, squared_weight: float, gradient_weight: float, kl_weight: float
) -> torch.Tensor:
    """L1 and L2 of the pixels, L1 of their horizontal and vertical differences (crisp edges), and a small KL term.

    `batch["pixels"]`: (B, 3, H, W) in [-1, 1]; `batch["rng"]` draws the latents.
    """
    pixels = batch["pixels"]
    drawn, mean, logvar = model(pixels, batch["rng"])
    error = drawn - pixels
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return error.abs().mean() + squared_weight * error.square().mean() + gradient_weight * edges + kl_weight * kl


@torch.no_grad()
def moments(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of `pixels` (B, 3, H, W) in [-1, 1]: two (B, C, H/8, W/8) tensors."""
    posterior = vae.encode(pixels).latent_dist
    return posterior.mean, posterior.std


@torch.no_grad()
def psnr(vae, pixels: torch.Tensor, batch_size: int = 16) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; `pixels` is (N, 3, H, W) in [-1, 1]."""
    values, device = [], next(vae.parameters()).device
    for part in pixels.split(batch_size):
        part = part.to(device)
        mean, _ = moments(vae, part)
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
