"""The engine's check of itself: do pictures that are drawn together get the bytes that each gets alone?

Every layer on the CPU was chosen so that they do (`pixart.model.packed`), but a library may choose another way for
another processor, device or shape. So before a batch of a new shape is drawn, a part of the network is asked.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pixart.model.pixart import PixArt, TextContext


class FewBlocks:
    """A `Route` through one block of each kind only."""

    def __init__(self, denoiser: PixArt):
        compressing = {block.attn.kv_compress: number for number, block in enumerate(denoiser.blocks)}
        self.chosen = sorted(compressing.values())

    def through(self, x: Tensor, blocks: range, run) -> Tensor:
        return run(x, self.chosen)


@torch.inference_mode()
def same_bytes(
    denoiser: PixArt, texts: Sequence[TextContext], pictures: int, rows: int, columns: int, size: Tensor | None
) -> bool:
    """Whether `pictures` latents of rows x columns, each with every text, give the same bytes together as alone.

    Costs as much as one block for all of them and for the first and the last alone. `size` is for micro-conditions.
    """
    weight = denoiser.x_embedder.proj.weight
    shape = (pictures, denoiser.config.in_channels, rows, columns)
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    modulation = denoiser.embed_timestep(torch.tensor([500], device=weight.device), size)
    route = FewBlocks(denoiser)
    together = denoiser.denoise(x_t.repeat(len(texts), 1, 1, 1), modulation, TextContext.together(texts), route)
    for text, crowd in zip(texts, together.chunk(len(texts)), strict=True):
        for picture in {0, pictures - 1}:
            one = slice(picture, picture + 1)
            if not torch.equal(denoiser.denoise(x_t[one], modulation, text, route), crowd[one]):
                return False
    return True
