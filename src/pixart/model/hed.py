"""Soft edges of an image (HED, arXiv 1504.06375), as the ControlNets of PixArt-δ were trained on.

The network is lllyasviel's, whose weights the PixArt repositories have as `ControlNetHED.pth`; parameter names are
those of that file (PixArt-alpha `diffusion/model/hed.py`).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, DEPTHS = (3, 64, 128, 256, 512, 512), (2, 2, 3, 3, 3)


class HedBlock(nn.Module):
    """(B, C, H, W) -> features of the next width and a map of edges (B, 1, H, W)."""

    def __init__(self, before: int, width: int, depth: int):
        super().__init__()
        widths = [before, *[width] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(widths[i], width, 3, padding=1) for i in range(depth))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class Hed(nn.Module):
    """RGB (B, 3, H, W) from 0 to 255 -> edges (B, 1, H, W) from 0 to 1, the mean of five maps of other sizes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for i, depth in enumerate(DEPTHS):
            self.add_module(f"block{i + 1}", HedBlock(WIDTHS[i], WIDTHS[i + 1], depth))

    def forward(self, pixels: Tensor) -> Tensor:
        x, maps = pixels - self.norm, []
        for i in range(len(DEPTHS)):
            x, edges = getattr(self, f"block{i + 1}")(F.max_pool2d(x, 2) if i else x)
            maps.append(F.interpolate(edges, pixels.shape[-2:], mode="bilinear", antialias=True))
        return torch.cat(maps, dim=1).mean(dim=1, keepdim=True).sigmoid()


@torch.inference_mode()
def edges(state: dict[str, Tensor], pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> edges, white on black, in three equal channels; `state` is that of a `Hed`."""
    with torch.device("meta"):
        hed = Hed()
    hed.load_state_dict(state, assign=True)
    found = hed(torch.tensor(pixels).permute(2, 0, 1)[None].float())[0, 0]
    return (found * 255).round().byte().numpy()[:, :, None].repeat(3, axis=2)
