"""The autoencoder: Diffusers' `AutoencoderKL`, what training asks of it, and the folding that gives unit latents."""

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from pixart.errors import UsageError


@dataclass(frozen=True)
class AutoencoderSizes:
    """Four levels give the 8-fold reduction that PixArt's latents have; no attention, so any size can be decoded."""

    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 8

    def __post_init__(self):
        counts = (*self.block_out_channels, self.layers_per_block, self.latent_channels, self.norm_num_groups)
        if not self.block_out_channels or not all(1 <= count <= 4096 for count in counts):
            raise UsageError("network: the sizes of an autoencoder must be from 1 to 4096.")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise UsageError(
                f"network: block_out_channels {self.block_out_channels} must be multiples of norm_num_groups "
                f"{self.norm_num_groups}."
            )


def build(sizes: AutoencoderSizes):
    """A fresh `AutoencoderKL` with `scaling_factor` 1.0: `fold_statistics` gives its latents unit deviation."""
    from diffusers import AutoencoderKL

    levels = len(sizes.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.block_out_channels,
        layers_per_block=sizes.layers_per_block,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


@torch.no_grad()
def moments(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of `pixels` (B, 3, H, W) in [-1, 1]: two (B, C, H/8, W/8) tensors."""
    posterior = vae.encode(pixels).latent_dist
    return posterior.mean, posterior.std


@torch.no_grad()
def reconstruction_psnr(vae, pixels: torch.Tensor, *, turned: bool = False) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image's reconstruction in dB, (N,); `pixels` is (N, 3, H, W) in [-1, 1].

    With `turned` the latents are turned by a quarter and halved before they are decoded, and the images alike.
    """
    mean, _ = moments(vae, pixels)
    if turned:
        mean, pixels = (_turned_and_halved(each) for each in (mean, pixels))
    return psnr(vae.decode(mean).sample, pixels)


def psnr(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, (N,), of images (N, 3, H, W) in [-1, 1]."""
    mse = ((decoded.clamp(-1, 1) - pixels) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp_min(1e-10))


def _turned_and_halved(part: torch.Tensor) -> torch.Tensor:
    part = part.rot90(1, (2, 3))
    return scaled(part, [side // 2 for side in part.shape[-2:]])


def scaled(part: torch.Tensor, size: list[int]) -> torch.Tensor:
    """(N, C, h, w) resized to `size`, height and width."""
    return interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def fold_statistics(vae, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Give latents mean 0 and deviation 1 by folding per-channel statistics into the 1x1 convolutions around them.

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
