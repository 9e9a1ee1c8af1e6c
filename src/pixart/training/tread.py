"""TREAD token routing (Krause et al., arXiv 2501.04765): in training, some tokens skip the middle blocks.

The skipping tokens come back before the last blocks as they left, so every token is still predicted and compared. The
network has the parameters of a stock PixArt, and without `routed` it is one: drawing and evaluation use all blocks.
Let the last tenth of a run go without (a phase with `route_share = 0`), so that the middle sees full sets again.
"""

import numpy as np
import torch
from torch import Tensor

from pixart.errors import UsageError
from pixart.model.embed import unpatchify
from pixart.model.pixart import PixArt, PixArtConfig

EDGE = 2  # blocks at either end that see all tokens; the paper routes from block 2 to four before the end (of 12)


class TreadPixArt(PixArt):
    """A PixArt whose forward can take only some tokens through the middle blocks."""

    def __init__(self, config: PixArtConfig):
        if config.depth <= 2 * EDGE:
            raise UsageError(f"route_share needs a network of more than {2 * EDGE} blocks; this has {config.depth}.")
        super().__init__(config)

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor,
        size: Tensor | None = None,
        routed: Tensor | None = None,
    ) -> Tensor:
        """As `PixArt.forward`; `routed` (B, K) int64 names the tokens of each picture that take the whole way."""
        if routed is None:
            return super().forward(x_t, timestep, text, text_mask, size)
        modulation, context = self.embed_timestep(timestep, size), self.encode_text(text, text_mask)
        x = self.embed_latent(x_t)  # (B, N, D)
        index = routed[..., None].expand(-1, -1, x.shape[-1])  # (B, K, D)
        for number, block in enumerate(self.blocks):
            if number == EDGE:
                everything, x = x, x.gather(1, index)
            if number == len(self.blocks) - EDGE:
                x = everything.scatter(1, index, x)
            x = block(x, modulation.blocks, *context.keys_and_values[number], context.mask)
        rows, columns = self.grid(x_t)
        return unpatchify(self.final_layer(x, modulation.final), rows, columns, self.config.patch_size)


def choose_tokens(places: np.ndarray, share: float) -> Tensor:
    """The tokens that stay when `share` of them go: (B, K) int64, ascending, K = (1 - share) N rounded, at least 1.

    `places` is (B, N), uniform random numbers: the smallest stay, so each picture's choice depends on its row only.
    """
    stay = max(1, round((1 - share) * places.shape[1]))
    return torch.from_numpy(np.sort(np.argsort(places, axis=1)[:, :stay], axis=1))
