"""Weights that are kept in fewer bits than they are computed in: each layer widens its own while it works.

For devices that store bf16 or fp16 but compute it slowly or not at all (processors without bf16, Pascal), and for
networks whose activations overflow in fp16 (T5).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart.weights import for_product


class StoredLinear(nn.Linear):
    """x (..., in) -> (..., out) in the dtype of `arithmetic`, whatever the weights are kept in."""

    arithmetic: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        bias, x = None if self.bias is None else self.bias.to(self.arithmetic), x.to(self.arithmetic)
        return F.linear(x, for_product(self.weight, x), bias)


class StoredEmbedding(nn.Embedding):
    """Rows of a table, in the dtype of `arithmetic`."""

    arithmetic: torch.dtype

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index).to(self.arithmetic)


def compute_in(model: nn.Module, arithmetic: torch.dtype) -> nn.Module:
    """Make `model` compute in `arithmetic`; large weights (linear layers, embeddings) stay as they are, in place."""
    for module in model.modules():
        stored = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}.get(type(module))
        if stored is not None:
            module.__class__ = stored
            module.arithmetic = arithmetic
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point():
                    setattr(module, name, nn.Parameter(parameter.to(arithmetic), requires_grad=False))
    return model
