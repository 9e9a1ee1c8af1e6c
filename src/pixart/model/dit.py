"""The class-conditional DiT (arXiv 2212.09748) that learns pixels in stage 1, before there is any text.

Official DiT parameter names, except that an image here may have classes of several kinds (what it shows, in which
style): `y_embedders.k.embedding_table` for kind k instead of one `y_embedder`. Shape letters are those of pixart.py;
K is the number of class kinds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixart.errors import UsageError
from pixart.model.block import Attention, Mlp, modulated_norm
from pixart.model.embed import PatchEmbed, TimestepEmbedder, positions_for, unpatchify
from pixart.model.pixart import check_sizes, initialise_linears, position_scale


@dataclass(frozen=True)
class DiTConfig:
    """Sizes as in `PixArtConfig`; `class_counts` is the number of classes per kind, the null class not counted."""

    class_counts: tuple[int, ...]
    in_channels: int = 8
    out_channels: int = 8
    width: int = 256
    depth: int = 8
    num_heads: int = 4
    patch_size: int = 2
    mlp_ratio: int = 4
    sample_size: int = 32
    interpolation_scale: float | None = None

    def __post_init__(self):
        check_sizes(self.width, self.num_heads, self.sample_size, self.patch_size)
        if not self.class_counts or min(self.class_counts) < 1:
            raise UsageError(
                f"class_counts is {self.class_counts}; give at least one kind of class, each of 1 or more."
            )

    @property
    def position_scale(self) -> float:
        return position_scale(self.sample_size, self.interpolation_scale)


class ClassEmbedder(nn.Module):
    """One row per class and a last one, index `count`, for "no class": (B,) int64 -> (B, D)."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(count + 1, width)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)


class Block(nn.Module):
    """Self-attention and MLP, both modulated by timestep and class through a layer of the block's own."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.attn = Attention(width, config.num_heads)
        self.mlp = Mlp(width, config.mlp_ratio * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, D)."""
        mine = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = mine  # (B, 1, D) each
        x = torch.addcmul(x, gate_attn, self.attn(modulated_norm(x, shift_attn, scale_attn)))
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)))  # (B, N, D)


class FinalLayer(nn.Module):
    """Last norm, modulated by timestep and class, and projection to patches."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        return self.linear(modulated_norm(x, shift, scale))  # (B, N, P·P·C)


class DiT(nn.Module):
    """The stage-1 denoiser. Fresh from here every block is the identity and the prediction is zero (adaLN-Zero)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config.in_channels, config.width, config.patch_size)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedders = nn.ModuleList(ClassEmbedder(count, config.width) for count in config.class_counts)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        initialise(self)

    def forward(self, x_t: Tensor, timestep: Tensor, classes: Tensor | None) -> Tensor:
        """Predict the noise or the velocity in x_t.

        Args:
            x_t: noisy latents (B, C, H, W); H and W are multiples of the patch size.
            timestep: (B,), whole or fractional, 0 (clean) to 1000 (noise).
            classes: (B, K) int64, column k in 0..class_counts[k], where the last index is the null class. None adds
                no class embedding at all, a condition that training never shows (see reparameterize.py).

        Returns:
            The prediction (B, out_channels, H, W).
        """
        config = self.config
        rows, columns = x_t.shape[-2] // config.patch_size, x_t.shape[-1] // config.patch_size
        x = self.x_embedder(x_t)  # (B, N, D)
        base_size = config.sample_size // config.patch_size
        x = x + positions_for(x, self.x_embedder.proj.weight, rows, columns, base_size, config.position_scale)
        condition = self.t_embedder(timestep)  # (B, D)
        if classes is not None:
            for kind, embedder in enumerate(self.y_embedders):
                condition = condition + embedder(classes[:, kind])
        for block in self.blocks:
            x = block(x, condition)
        return unpatchify(self.final_layer(x, condition), rows, columns, config.patch_size)  # (B, out_channels, H, W)


def initialise(model: DiT) -> None:
    """Fresh weights as in the official DiT: Xavier, N(0, 0.02) for embeddings, zero for modulations and last layer."""
    initialise_linears(model)
    for embedder in model.y_embedders:
        nn.init.normal_(embedder.embedding_table.weight, std=0.02)
    for layer in (*model.blocks, model.final_layer):
        nn.init.zeros_(layer.adaLN_modulation[1].weight)
    nn.init.zeros_(model.final_layer.linear.weight)
