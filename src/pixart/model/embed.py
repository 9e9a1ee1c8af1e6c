"""What goes into the transformer besides text: patches of the latent, their places, the timestep.

Shape letters are those of pixart.py.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts a latent into patches and projects each to one token: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, in_channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        high, wide = self.proj.stride
        if latent.shape[-2] % high or latent.shape[-1] % wide:
            raise ValueError(f"latent {tuple(latent.shape[-2:])} is not a multiple of the patch {self.proj.stride}")
        return self.proj(latent).flatten(2).transpose(1, 2)  # (B, N, D)


def unpatchify(patches: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """Puts patches back in place: (B, N, P·P·C) -> (B, C, H, W), N = rows · columns, channels last in a patch."""
    channels = patches.shape[-1] // patch_size**2
    grid = patches.reshape(-1, rows, columns, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch_size, columns * patch_size)


def sincos_positions(
    rows: int, columns: int, width: int, base_size: int, scale: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Fixed 2-D sine-cosine positions, (N, D): the first half of D tells the column, the second the row.

    The grid always spans `base_size / scale` units, whatever its size, so that a network trained at one resolution
    sees known positions at another. Values as in PixArt-alpha `PixArt.py:get_2d_sincos_pos_embed` and Diffusers 0.42
    `embeddings.py`: positions in fp32, angles in fp64.
    """

    def one_axis(count: int) -> Tensor:
        places = torch.arange(count, device=device, dtype=torch.float32) / (count / base_size) / scale
        exponents = torch.arange(width // 4, device=device, dtype=torch.float64) / (width / 4)
        angles = torch.outer(places, 1 / 10000**exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (count, D/2)

    row = one_axis(rows)[:, None].expand(rows, columns, -1)
    column = one_axis(columns)[None].expand(rows, columns, -1)
    return torch.cat([column, row], dim=-1).reshape(rows * columns, width).to(dtype)


_cached_positions = lru_cache(maxsize=64)(sincos_positions)


def positions_for(tokens: Tensor, weight: Tensor, rows: int, columns: int, base_size: int, scale: float) -> Tensor:
    """Positions (N, D) for `tokens` (B, N, D) in the dtype of `weight`, so that autocast leaves the residual in fp32.

    While a compiler traces, they are computed in the graph: a cache would then hold the tracer's symbolic tensors.
    """
    compute = sincos_positions if torch.compiler.is_compiling() else _cached_positions
    return compute(rows, columns, tokens.shape[-1], base_size, scale, tokens.device, weight.dtype)


class TimestepEmbedder(nn.Module):
    """Timestep (B,), 0..1000 and fractions of it -> (B, D), by 256 cosines and sines and an MLP."""

    frequencies = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.frequencies // 2
        exponents = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponents)  # fp32: bf16 cannot count to 1000
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 256)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))  # (B, D)
