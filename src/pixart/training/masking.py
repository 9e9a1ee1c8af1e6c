"""Deferred masking (MicroDiT, Sehwag et al., arXiv 2407.15811): in training, most patches go after a patch mixer.

All patches pass the mixer, so that the few that go on know of the others; the rest are dropped, and only the visible
ones are predicted and compared. In the paper the mixer is a stack of small transformer blocks before the backbone and
stays in the network. Here it is the network's own first blocks: nothing has to be removed afterwards, and the saved
network is a stock PixArt. Finish without masking (a phase with `mask_share = 0`), as the paper does.
"""

import torch
from torch import Tensor

from pixart.errors import UsageError
from pixart.model.pixart import PixArt, PixArtConfig


def mixer_blocks(depth: int) -> int:
    """How many of the first blocks mix all patches: a sixth (the paper: 4 or 6 small ones before 28)."""
    return max(1, round(depth / 6))


class MaskedPixArt(PixArt):
    """A PixArt whose forward can drop patches after its first blocks."""

    def __init__(self, config: PixArtConfig):
        if config.depth < 2:
            raise UsageError(f"mask_share needs a network of at least 2 blocks; this has {config.depth}.")
        super().__init__(config)

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor,
        size: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As `PixArt.forward`; `visible` (B, K) int64 names the patches that stay.

        With `visible` the prediction is that of these patches only, in the layout of `visible_patches`.
        """
        if visible is None:
            return super().forward(x_t, timestep, text, text_mask, size)
        modulation, context = self.embed_timestep(timestep, size), self.encode_text(text, text_mask)
        x = self.embed_latent(x_t)  # (B, N, D)
        for number, block in enumerate(self.blocks):
            if number == mixer_blocks(len(self.blocks)):
                x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[-1]))  # (B, K, D)
            x = block(x, modulation.blocks, *context.keys_and_values[number], context.mask)
        patches = self.final_layer(x, modulation.final)  # (B, K, P·P·C), channels last in a patch
        return patches.unflatten(-1, (self.config.patch_size**2, -1)).permute(0, 3, 1, 2)


def visible_patches(latent: Tensor, visible: Tensor, patch_size: int = 2) -> Tensor:
    """The visible patches of latents (B, C, H, W), each as a row: (B, C, K, P·P). Losses per element work on it too."""
    patches = torch.nn.functional.pixel_unshuffle(latent, patch_size)  # (B, C·P·P, H/P, W/P)
    patches = patches.unflatten(1, (latent.shape[1], -1)).flatten(3)  # (B, C, P·P, N)
    index = visible[:, None, None].expand(-1, *patches.shape[1:3], -1)
    return patches.gather(3, index).transpose(2, 3)  # (B, C, K, P·P)
