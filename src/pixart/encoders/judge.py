"""The judge: which caption a picture fits, and in which style it is drawn. It judges models and is none of them.

A picture and a caption become vectors of length 1 in one space, as in CLIP (arXiv 2103.00020, section 2.3), at the size
that a data set of 18,000 pictures can carry: a small residual network on 128-px pictures, and a perceptron over
the frozen text encoder's mean token state. A second head names the style.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixart.errors import UsageError

MOST_SHARP = 4.6  # log of 100, the largest scale of the logits, as in CLIP
WHITE = 1.0  # of pixels in [-1, 1]: what lies outside a shifted picture


@dataclass(frozen=True)
class JudgeConfig:
    """Widths of the picture network's levels, each at half the side of the one before it, with `depth` blocks each.

    `style_weight` weighs naming the style against finding the caption, `zoom` and `shift` (a share of the picture's
    side) say how far pictures are moved about in training, `label_smoothing` is that of both losses.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    depth: int = 1
    text_width: int = 192
    embedding: int = 128
    style_weight: float = 0.5
    zoom: float = 0.15
    shift: float = 0.08
    label_smoothing: float = 0.05

    def __post_init__(self):
        if (
            not self.widths
            or min(self.depth, self.embedding) < 1
            or any(width < 8 or width % 8 for width in self.widths)
        ):
            raise UsageError(
                f"judge: widths {self.widths} must be multiples of 8, depth {self.depth} and embedding "
                f"{self.embedding} at least 1."
            )
        if self.text_width < 1:
            raise UsageError(f"judge: text_width {self.text_width} must be at least 1.")
        if not (
            0 <= self.zoom < 1 and 0 <= self.shift < 1 and 0 <= self.label_smoothing < 1 and self.style_weight >= 0
        ):
            raise UsageError(
                f"judge: zoom {self.zoom}, shift {self.shift} and label_smoothing {self.label_smoothing} must be from "
                f"0 to below 1, style_weight {self.style_weight} not negative."
            )


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first takes `stride`."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        nn.init.zeros_(self.norm2.weight)  # a block begins as its shortcut
        self.shortcut = nn.Conv2d(before, width, 1, bias=False) if (before, 1) != (width, stride) else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        short = functional.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return functional.relu(y + self.shortcut(short))


class PictureNetwork(nn.Module):
    """Pixels (B, 3, S, S) in [-1, 1] -> (B, widths[-1]); S a multiple of 2 * 2 ** len(widths)."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        before = config.widths[0] // 2
        self.stem = nn.Conv2d(3, before, 4, 2, 1)
        blocks = []
        for width in config.widths:
            for number in range(config.depth):
                blocks.append(_Residual(before, width, 1 if number else 2))
                before = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return x.mean(dim=(2, 3))


class TextNetwork(nn.Module):
    """Token states (B, L, T) with their mask (B, L) -> (B, text_width).

    The states are the encoder's, so each already knows of the others: their mean, and a small perceptron beside it,
    learned as much as a layer of attention in a third less time (docs/log.md).
    """

    def __init__(self, config: JudgeConfig, text_dim: int):
        super().__init__()
        width = config.text_width
        self.norm = nn.LayerNorm(text_dim)
        self.shortcut = nn.Linear(text_dim, width)
        self.inner = nn.Linear(text_dim, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(text.dtype)[..., None]
        x = self.norm((text * weight).sum(dim=1) / weight.sum(dim=1))
        return self.shortcut(x) + self.outer(functional.dropout(functional.gelu(self.inner(x)), 0.1, self.training))


class Judge(nn.Module):
    """`pictures` and `captions` give vectors of length 1; their product is how well the two fit, -1 to 1."""

    def __init__(self, config: JudgeConfig, text_dim: int, styles: int):
        super().__init__()
        self.picture_network = PictureNetwork(config)
        self.text_network = TextNetwork(config, text_dim)
        # The mean over a picture is a hundredth of what a head expects: without this, the style was hardly learned.
        self.picture_norm = nn.LayerNorm(config.widths[-1])
        self.picture_head = nn.Linear(config.widths[-1], config.embedding, bias=False)
        self.text_head = nn.Linear(config.text_width, config.embedding, bias=False)
        self.style_head = nn.Linear(config.widths[-1], styles)
        self.log_scale = nn.Parameter(torch.tensor(2.7))  # of the logits; e^2.7 = 15, as in CLIP's first steps

    def pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) in [-1, 1] -> vectors (B, embedding) of length 1, and style logits (B, styles)."""
        features = self.picture_norm(self.picture_network(pixels))
        return functional.normalize(self.picture_head(features).float(), dim=1), self.style_head(features).float()

    def captions(self, text: Tensor, mask: Tensor) -> Tensor:
        """Token states (B, L, T) and their mask (B, L) -> vectors (B, embedding) of length 1."""
        return functional.normalize(self.text_head(self.text_network(text, mask)).float(), dim=1)

    def forward(self, pixels: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, B) of picture k for caption j, and style logits (B, styles)."""
        pictures, styles = self.pictures(pixels)
        return self.log_scale.clamp(max=MOST_SHARP).exp() * pictures @ self.captions(text, mask).T, styles


def loss(model: nn.Module, batch: dict, *, config: JudgeConfig) -> Tensor:
    """Find each picture's caption among the batch's and each caption's picture, and name the style.

    batch: "pixels" (B, 3, S, S), "text" and "text_mask", "styles" (B,) int64, "indices" (B,): which picture of the data
    it is; a row of the same picture is no wrong answer. The rows of one process (or of one part of an accumulated
    batch) are told apart from each other only.
    """
    pixels = moved_about(batch["pixels"], batch["rng"], config)
    logits, styles = model(pixels, batch["text"], batch["text_mask"])
    same = batch["indices"][:, None] == batch["indices"]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -30.0)
    target = torch.arange(len(logits), device=logits.device)
    smooth = config.label_smoothing
    contrast = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    style = functional.cross_entropy(styles, batch["styles"], label_smoothing=smooth)
    return contrast / 2 + config.style_weight * style


def moved_about(pixels: Tensor, rng, config: JudgeConfig) -> Tensor:
    """Each picture at a random scale and place, on white: (B, 3, S, S) as before. `rng` has `random(shape)`."""
    numbers = torch.from_numpy(rng.random((len(pixels), 3))).to(pixels.device, torch.float32) * 2 - 1
    matrix = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + config.zoom * numbers[:, 0]
    matrix[:, :, 2] = 2 * config.shift * numbers[:, 1:]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - WHITE, grid, align_corners=False) + WHITE
