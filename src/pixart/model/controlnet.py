"""ControlNet-Transformer of PixArt-δ (arXiv 2401.05252, section 4): an image, beside the text, says what goes where.

The latent of a condition image, for example of edges, becomes tokens by the base's own embedder. Copies of the base's
first blocks read them, together with what the base makes of the noisy latent in its first block; what each copy gives
is added to the input of the next block of the base. The projections around the copies start at zero, so that a fresh
ControlNet changes nothing. The base itself stays as it is, and is an argument of each call.

Parameter names are those of the official checkpoints (PixArt-alpha `diffusion/model/nets/pixart_controlnet.py`); shape
letters are those of pixart.py.
"""

import torch
from torch import Tensor, nn

from pixart.errors import UsageError
from pixart.model.embed import unpatchify
from pixart.model.pixart import Block, Modulation, PixArt, PixArtConfig, TextContext


def usual_copies(depth: int) -> int:
    """How many blocks are copied: just under half of them, which are 13 of the published 28."""
    return max(1, (depth - 1) // 2)


class ControlBlock(nn.Module):
    """A copy of a block of the base and the projections around it; only the first one has one before it."""

    def __init__(self, config: PixArtConfig, index: int):
        super().__init__()
        compressed = index in config.kv_compress_blocks
        self.copied_block = Block(config, config.kv_compress if compressed else 1)
        if index == 0:
            self.before_proj = _zero_linear(config.width)
        self.after_proj = _zero_linear(config.width)

    def forward(
        self,
        x: Tensor,
        control: Tensor,
        modulation: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """x, control (B, N, D) -> control for the next copy, and what is added to x; the rest as `Block` takes it."""
        if hasattr(self, "before_proj"):
            control = x + self.before_proj(control)
        control = self.copied_block(control, modulation, key, value, mask, grid)
        return control, self.after_proj(control)


class ControlNet(nn.Module):
    """A ControlNet for a base of this config: copy i reads the output of the base's block i and adds to block i + 1."""

    def __init__(self, config: PixArtConfig, copies: int):
        """Raises UsageError where the base has not so many blocks to add to."""
        super().__init__()
        if not 1 <= copies < config.depth:
            raise UsageError(
                f"A ControlNet of {copies} copied blocks does not fit a network of {config.depth}: it adds to the "
                f"blocks after the first, so it has from 1 to {config.depth - 1}."
            )
        self.controlnet = nn.ModuleList(ControlBlock(config, index) for index in range(copies))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.controlnet

    def copy_from(self, base: PixArt) -> None:
        """Begin as the base's own blocks."""
        for mine, theirs in zip(self.controlnet, base.blocks, strict=False):
            mine.copied_block.load_state_dict(theirs.state_dict())

    def forward(
        self,
        base: PixArt,
        x_t: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        control: Tensor,
        size: Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """What `base` predicts under control; `control` and `scale` as `denoise` takes them, the rest as `PixArt`."""
        context = self.encode_text(base, text, text_mask)
        return self.denoise(base, x_t, base.embed_timestep(timestep, size), context, control, scale)

    def encode_text(self, base: PixArt, text: Tensor, text_mask: Tensor | None) -> TextContext:
        """As `PixArt.encode_text`, with keys and values for the copies after those for the base."""
        text = base.y_embedder(text)  # (B, L, D)
        blocks = [*base.blocks, *(each.copied_block for each in self.controlnet)]
        keys_and_values = [block.cross_attn.keys_and_values(text) for block in blocks]
        return TextContext(keys_and_values, None if text_mask is None else text_mask.bool()[:, None, None])

    def denoise(
        self,
        base: PixArt,
        x_t: Tensor,
        modulation: Modulation,
        context: TextContext,
        control: Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """As `PixArt.denoise`, for a context of our `encode_text`.

        Args:
            control: latents of condition images (B or 1, C, H, W), of the size of x_t; None for the base alone.
            scale: how much of the control is added, one for all or (B, 1, 1).
        """
        x, grid, depth = base.embed_latent(x_t), base.grid(x_t), len(base.blocks)
        state = None if control is None else base.embed_latent(control)
        of_base, of_copies = context.keys_and_values[:depth], context.keys_and_values[depth:]
        for index, (block, text) in enumerate(zip(base.blocks, of_base, strict=True)):
            if state is not None and 1 <= index <= len(self.controlnet):
                rest = (modulation.blocks, *of_copies[index - 1], context.mask, grid)
                state, added = self.controlnet[index - 1](x, state, *rest)
                x = x + scale * added
            x = block(x, modulation.blocks, *text, context.mask, grid)
        return unpatchify(base.final_layer(x, modulation.final), *grid, base.config.patch_size)


def build(config: PixArtConfig, state: dict[str, Tensor], copies: int) -> ControlNet:
    """A ControlNet with these tensors (official names), as they are, in evaluation mode."""
    with torch.device("meta"):
        model = ControlNet(config, copies)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _zero_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
