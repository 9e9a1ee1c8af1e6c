"""Linear layers for drawing on a CPU: faster than `nn.Linear`, and with the same bytes in any batch.

Weights are brought into oneDNN's own order once, and not in every call; GELU is computed where the product is still in
registers. The operators are those that torch.compile emits for frozen weights (PyTorch `mkldnn_fusion.py` and
`quantization.py` in `_inductor/fx_passes`). Only drawing uses these layers: they have no parameters and no gradients.

A product in fp32 then rounds each row alike whatever the number of rows, which MKL's behind `F.linear` does not. In
bf16 and int8 the order of summation goes by the number of rows, so each picture is a product of its own.
"""

import torch
from torch import Tensor, nn

from pixart.errors import PixArtError
from pixart.model.block import Mlp
from pixart.model.pixart import PixArt

ROWS = 256  # about as many rows of the packed weights' products are laid out for


class PackedLinear(nn.Module):
    """A linear layer with its weights in oneDNN's order: (B, N, in) -> (B, N, out)."""

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        super().__init__()
        self.gelu, self.together = gelu, layer.weight.dtype == torch.float32
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = layer.bias.detach().clone()  # a slice of a mapped file would keep all of it in memory

    def product(self, x: Tensor) -> Tensor:
        """The layer, and GELU after it, as one product."""
        after = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *after)

    def forward(self, x: Tensor) -> Tensor:
        return _picture_by_picture(self.product, x, self.together)


class Int8Linear(nn.Module):
    """A linear layer in 8-bit whole numbers, bf16 outside: (B, N, in) -> (B, N, out).

    Weights are scaled by output channel, inputs by the largest value of the picture, as in the graphs.
    """

    together = False

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        super().__init__()
        self.gelu = gelu
        weight = layer.weight.detach().float()
        self.scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)  # (out,)
        codes = (weight / self.scales[:, None]).round().to(torch.int8)
        self.zeros = torch.zeros(len(codes), dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(codes, [ROWS, codes.shape[1]])
        self.bias = layer.bias.detach().float()

    def product(self, x: Tensor) -> Tensor:
        """The layer, and GELU after it, for one picture."""
        scale = max(float(x.abs().amax()), 1e-12) / 127
        codes = (x * (1 / scale)).round_().to(torch.int8)
        after = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
        return torch.ops.onednn.qlinear_pointwise(
            codes, scale, 0, self.packed, self.scales, self.zeros, self.bias, 1.0, 0, torch.bfloat16, *after
        )

    def forward(self, x: Tensor) -> Tensor:
        return _picture_by_picture(self.product, x, self.together)


class PackedMlp(nn.Module):
    """`Mlp` of two such layers; what is between them stays in the cache: (B, N, D) -> (B, N, D)."""

    def __init__(self, mlp: Mlp, kind: type[PackedLinear] | type[Int8Linear]):
        super().__init__()
        self.fc1, self.fc2 = kind(mlp.fc1, gelu=True), kind(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return _picture_by_picture(lambda part: self.fc2.product(self.fc1.product(part)), x, self.fc1.together)


def _picture_by_picture(layer, x: Tensor, together: bool) -> Tensor:
    if together or len(x) == 1:
        return layer(x)
    return torch.cat([layer(picture) for picture in x.split(1)])


def pack(model: PixArt, int8: bool = False) -> None:
    """Replace the linear layers that a step computes by packed ones, in place, layer by layer.

    Nothing happens where this build of torch, or this processor, has no such products. Those of the text and of the
    timestep stay as they are: they are made once per prompt and once per step, with as many rows in any batch.

    Raises:
        PixArtError: `int8` on a machine that has no products in 8 bits.
    """
    dtype = model.final_layer.linear.weight.dtype
    if not _can_pack(dtype, int8):
        if int8:
            raise PixArtError("This build of torch has no products in int8 on this processor; take bfloat16.")
        return
    kind = Int8Linear if int8 else PackedLinear
    for block in model.blocks:
        block.attn.qkv, block.attn.proj = kind(block.attn.qkv), kind(block.attn.proj)
        block.cross_attn.q_linear, block.cross_attn.proj = kind(block.cross_attn.q_linear), kind(block.cross_attn.proj)
        block.mlp = PackedMlp(block.mlp, kind)
    model.final_layer.linear = PackedLinear(model.final_layer.linear)


def _can_pack(dtype: torch.dtype, int8: bool) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if int8 and not hasattr(torch.ops.onednn, "qlinear_prepack"):
        return False
    if dtype == torch.float32:
        return True
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
