"""The PixArt-α transformer: denoises a latent, guided by text and a timestep.

PixArt-α (arXiv 2310.00426, section 2.3) is a DiT with two changes. Each block reads the text by cross-attention
between self-attention and MLP. And adaLN-single: instead of one large modulation layer per block, the timestep passes
once through `t_block`, and each block only adds a small table of its own.

Parameter names are those of the official checkpoints. Shape letters, here and in embed.py, block.py and dit.py:

    B batch          C channels of the latent     H, W height and width of the latent
    P patch size     N image tokens, H/P · W/P    D width of the network
    L text tokens    T width of the text states   h, d heads and width of a head, h · d = D
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart.errors import UsageError
from pixart.model.block import Attention, CrossAttention, Mlp, modulated_norm
from pixart.model.embed import PatchEmbed, TimestepEmbedder, positions_for, unpatchify


@dataclass(frozen=True)
class PixArtConfig:
    """Sizes of the network. `out_channels` is twice `in_channels` where the variance is learned (second half).

    `sample_size` is the side of the latent for which positions count 0, 1, 2, ...; other sizes are stretched or
    squeezed over the same span. `interpolation_scale` None means max(sample_size // 64, 1), as in Diffusers.
    With `micro_conditions` the original size of the image and its aspect ratio are inputs, as of the released
    1024-px model; Diffusers calls it `use_additional_conditions`.

    `qk_norm` and `kv_compress`, in the blocks of `kv_compress_blocks`, are PixArt-Σ's; see `Attention`.
    """

    in_channels: int = 8
    out_channels: int = 8
    width: int = 256
    depth: int = 8
    num_heads: int = 4
    patch_size: int = 2
    mlp_ratio: int = 4
    text_dim: int = 384
    sample_size: int = 32
    interpolation_scale: float | None = None
    micro_conditions: bool = False
    qk_norm: bool = False
    kv_compress: int = 1
    kv_compress_blocks: tuple[int, ...] = ()

    def __post_init__(self):
        check_sizes(self.width, self.num_heads, self.sample_size, self.patch_size)
        if self.kv_compress < 1 or not set(self.kv_compress_blocks) <= set(range(self.depth)):
            raise UsageError(
                f"Compression by {self.kv_compress} in the blocks {self.kv_compress_blocks} cannot be: it must be at "
                f"least 1, and in blocks from 0 to {self.depth - 1}."
            )
        if self.micro_conditions and self.width % 3:
            raise UsageError(
                f"A width of {self.width} is not a multiple of 3, which micro-conditions need: a third of it each for "
                "height, width and aspect ratio."
            )

    @property
    def position_scale(self) -> float:
        return position_scale(self.sample_size, self.interpolation_scale)


def check_sizes(width: int, num_heads: int, sample_size: int, patch_size: int) -> None:
    """UsageError if no network of these sizes exists."""
    if min(width, num_heads, sample_size, patch_size) < 1:
        raise UsageError(
            f"Width {width}, heads {num_heads}, sample size {sample_size} and patch size {patch_size} must each be at "
            "least 1."
        )
    if width % num_heads or width % 4:
        raise UsageError(
            f"A width of {width} with {num_heads} heads cannot be: it must be a multiple of both and of 4."
        )
    if sample_size % patch_size:
        raise UsageError(f"A sample size of {sample_size} is not a multiple of the patch size {patch_size}.")


def position_scale(sample_size: int, interpolation_scale: float | None) -> float:
    return max(sample_size // 64, 1) if interpolation_scale is None else interpolation_scale


MASK_MULTIPLE = 8  # of the keys under a mask: the fused kernels of CUDA would pad others in every block


@dataclass(frozen=True)
class TextContext:
    """All that the blocks need of B texts: a (keys, values) pair per block, (B, h, L, d) each, and the mask of keys."""

    keys_and_values: list[tuple[Tensor, Tensor]]
    mask: Tensor | None  # (B, 1, 1, L) bool, True = read this token, or the number to add to a score; None = read all

    @staticmethod
    def together(texts: Sequence["TextContext"], length: int | None = None) -> "TextContext":
        """The rows of several contexts as one, in their order; the shorter texts are padded, and the padding masked.

        Contexts of one row are repeated as often as the longest has rows, so that one unconditional text serves all.
        With `length` all have at least so many tokens and a mask, as compiled graphs need it.
        """
        if len(texts) == 1 and length is None:
            return texts[0]
        lengths = [text.keys_and_values[0][0].shape[2] for text in texts]
        rows, longest = max(text.rows for text in texts), max(*lengths, length or 0)
        masked = length is not None or any(text.mask is not None for text in texts) or len(set(lengths)) > 1
        if masked:
            longest += -longest % MASK_MULTIPLE

        def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
            """Along the batch, each padded with zeros, or False, to the longest along `axis` (counted from the end)."""
            parts = [F.pad(part, (0, 0) * (axis - 1) + (0, longest - part.shape[-axis])) for part in parts]
            return torch.cat([part.expand(rows if len(part) == 1 else len(part), -1, -1, -1) for part in parts])

        keys_and_values = [
            tuple(joined([text.keys_and_values[block][kind] for text in texts], 2) for kind in (0, 1))
            for block in range(len(texts[0].keys_and_values))
        ]
        if not masked:
            return TextContext(keys_and_values, None)
        device = keys_and_values[0][0].device
        masks = [
            torch.ones(text.rows, 1, 1, count, dtype=torch.bool, device=device) if text.mask is None else text.mask
            for text, count in zip(texts, lengths, strict=True)
        ]
        return TextContext(keys_and_values, joined(masks, 1))

    @property
    def rows(self) -> int:
        return len(self.keys_and_values[0][0])


@dataclass(frozen=True)
class Modulation:
    """All that the network needs of timesteps (and sizes): made once per step; one row may serve the whole batch."""

    blocks: Tensor  # (B or 1, 6, D), the output of `t_block`, for every block
    final: Tensor  # (B or 1, D), what the last layer reads


class TextEmbedder(nn.Module):
    """Projects text states to the width of the network: (B, L, T) -> (B, L, D)."""

    def __init__(self, text_dim: int, width: int):
        super().__init__()
        self.y_proj = Mlp(text_dim, width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class Block(nn.Module):
    """Self-attention, cross-attention to the text, MLP. The timestep modulates the first and the last, not the text."""

    def __init__(self, config: PixArtConfig, kv_compress: int = 1):
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.attn = Attention(width, config.num_heads, config.qk_norm, kv_compress)
        self.cross_attn = CrossAttention(width, config.num_heads)
        self.mlp = Mlp(width, config.mlp_ratio * width, width)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """x (B, N, D), modulation (B or 1, 6, D), key, value and mask as `CrossAttention` takes them -> (B, N, D).

        `grid` is rows and columns of the tokens where x holds all of an image; see `Attention`.
        """
        mine = (self.scale_shift_table + modulation).chunk(6, dim=1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = mine  # (B, 1, D) each
        x = torch.addcmul(x, gate_attn, self.attn(modulated_norm(x, shift_attn, scale_attn), grid))
        x = x + self.cross_attn(x, key, value, mask)  # no norm, no gate
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)))  # (B, N, D)


class FinalLayer(nn.Module):
    """Last norm, modulated by the timestep's own embedding (no t_block, no SiLU), and projection to patches."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.width))
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)  # (B, 1, D) each
        return self.linear(modulated_norm(x, shift, scale))  # (B, N, P·P·C)


class PixArt(nn.Module):
    """The denoiser. Fresh from here it predicts zero and does not read the text; see `initialise`."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config.in_channels, config.width, config.patch_size)
        self.t_embedder = TimestepEmbedder(config.width)
        if config.micro_conditions:
            self.csize_embedder = TimestepEmbedder(config.width // 3)
            self.ar_embedder = TimestepEmbedder(config.width // 3)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.y_embedder = TextEmbedder(config.text_dim, config.width)
        compressed = config.kv_compress_blocks
        self.blocks = nn.ModuleList(
            Block(config, config.kv_compress if i in compressed else 1) for i in range(config.depth)
        )
        self.final_layer = FinalLayer(config)
        initialise(self)

    def forward(
        self, x_t: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, size: Tensor | None = None
    ) -> Tensor:
        """Predict the noise or the velocity in x_t.

        Args:
            x_t: noisy latents (B, C, H, W); H and W are multiples of the patch size.
            timestep: one per row (B,), or one for all (1,), whole or fractional, 0 (clean) to 1000 (noise).
            text: token states of the text encoder (B, L, T).
            text_mask: (B, L) bool, True where `text` holds a token; at least one per row.
            size: (B, 3) or (1, 3), height and width of the original image in pixels and the aspect ratio, height
                over width; a network with micro-conditions must have it, another ignores it.

        Returns:
            The prediction (B, out_channels, H, W).
        """
        return self.denoise(x_t, self.embed_timestep(timestep, size), self.encode_text(text, text_mask))

    def encode_text(self, text: Tensor, text_mask: Tensor | None) -> TextContext:
        """The part of `forward` that depends on the text only: once per prompt. Without a mask every token is read."""
        text = self.y_embedder(text)  # (B, L, D)
        keys_and_values = [block.cross_attn.keys_and_values(text) for block in self.blocks]
        return TextContext(keys_and_values, None if text_mask is None else text_mask.bool()[:, None, None])

    def embed_timestep(self, timestep: Tensor, size: Tensor | None = None) -> Modulation:
        """The part of `forward` that depends on timestep, (B,) or (1,), and size only: once per step (adaLN-single)."""
        time = self.t_embedder(timestep)  # (B, D)
        if self.config.micro_conditions:
            if size is None:
                raise ValueError("this network has micro-conditions and needs the size of the image")
            # Each number is embedded by itself; csize_embedder serves both sides (PixArt-alpha PixArtMS.py).
            sides = self.csize_embedder(size[:, :2].flatten()).view(len(size), -1)  # (B, 2·D/3)
            time = time + torch.cat([sides, self.ar_embedder(size[:, 2])], dim=1)
        return Modulation(self.t_block(time).unflatten(1, (6, -1)), time)

    def denoise(self, x_t: Tensor, modulation: Modulation, context: TextContext) -> Tensor:
        """The rest of `forward`: latents (B, C, H, W), timestep and text embedded -> (B, out_channels, H, W).

        Rows are independent: each may have its own timestep and text.
        """
        x, grid = self.embed_latent(x_t), self.grid(x_t)
        for block, (key, value) in zip(self.blocks, context.keys_and_values, strict=True):
            x = block(x, modulation.blocks, key, value, context.mask, grid)
        patches = self.final_layer(x, modulation.final)
        return unpatchify(patches, *grid, self.config.patch_size)  # (B, out_channels, H, W)

    def embed_latent(self, x_t: Tensor) -> Tensor:
        """Patches of the latent (B, C, H, W) as tokens that know their places: (B, N, D)."""
        x = self.x_embedder(x_t)
        base_size = self.config.sample_size // self.config.patch_size
        weight = self.x_embedder.proj.weight
        return x + positions_for(x, weight, *self.grid(x_t), base_size, self.config.position_scale)

    def grid(self, x_t: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in latents (B, C, H, W)."""
        return x_t.shape[-2] // self.config.patch_size, x_t.shape[-1] // self.config.patch_size


def initialise(model: PixArt) -> None:
    """Fresh weights as in the official `PixArt.initialize_weights`.

    The text's way into the blocks (`cross_attn.proj`) and the last layer start at zero: at first the network is a
    DiT without text, which is what stage 2 needs of it, and it predicts zero.
    """
    initialise_linears(model)
    layers = [model.t_block[1], model.y_embedder.y_proj.fc1, model.y_embedder.y_proj.fc2]
    if model.config.micro_conditions:
        layers += [model.csize_embedder.mlp[0], model.csize_embedder.mlp[2]]
        layers += [model.ar_embedder.mlp[0], model.ar_embedder.mlp[2]]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
    for block in model.blocks:
        nn.init.zeros_(block.cross_attn.proj.weight)
        if block.attn.kv_compress > 1:
            nn.init.constant_(block.attn.sr.weight, block.attn.kv_compress**-2)  # the mean, as in PixArt-sigma
        nn.init.normal_(block.scale_shift_table, std=model.config.width**-0.5)
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.normal_(model.final_layer.scale_shift_table, std=model.config.width**-0.5)


def initialise_linears(model: nn.Module) -> None:
    """What PixArt and DiT share: Xavier for linear layers and patches, N(0, 0.02) for the timestep, no biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            nn.init.zeros_(module.bias)
    for layer in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        nn.init.normal_(layer.weight, std=0.02)
