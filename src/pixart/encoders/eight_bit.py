"""A text encoder whose linear layers are kept as 8-bit whole numbers: a quarter of the memory of fp32, on any device.

Each row of a weight has a scale of its own, by which its largest value becomes 127; a layer's weight is widened while
the layer is used and only then. Activations are not rounded, so little is lost: the few large ones, for which
LLM.int8() (arXiv 2208.07339) has a second path, stay as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

LARGEST = 127


class Linear8bit(nn.Module):
    """A linear layer with an int8 weight (out, in) and a scale (out,): x (..., in) -> (..., out), in the dtype of x."""

    def __init__(self, bias: Tensor | None):
        super().__init__()
        self.bias = bias

    def keep(self, weight: Tensor) -> None:
        """Round a weight (out, in) of any dtype, and hold that."""
        weight = weight.float()
        scale = weight.abs().amax(dim=1).div(LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def load_eight_bit(kind: type[nn.Module], folder: Path, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """A model of transformers with 8-bit linear layers and all else in `dtype`, and the names of weights not found.

    It is never there in another width: the network is made without memory and the tensors are read one at a time, so
    the peak is the 8-bit model and its largest tensor.
    """
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = kind(config)
    _make_buffers(model)
    waiting = {name for name, _ in model.named_parameters()}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Linear8bit(module.bias))
    for stored, tensor in _read_one_by_one(folder):
        name = stored if stored in waiting else stored.removeprefix(f"{model.base_model_prefix}.")
        if name not in waiting:
            continue  # of a decoder, say, which reading a text does not need
        waiting.discard(name)
        place, _, leaf = name.rpartition(".")
        module = model.get_submodule(place)
        if leaf == "weight" and isinstance(module, Linear8bit):
            module.keep(tensor)
        else:
            setattr(module, leaf, nn.Parameter(tensor.to(dtype, copy=True), requires_grad=False))
    model.set_input_embeddings(model.get_input_embeddings())  # T5 has them twice, and a file once
    return model.eval(), sorted(waiting)


def _make_buffers(model: nn.Module) -> None:
    """What a network holds besides its weights (BERT: numbers of places), which no file has."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            for leaf, buffer in type(module)(model.config).named_buffers(recurse=False):
                setattr(model.get_submodule(name), leaf, buffer)


def _read_one_by_one(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all safetensors files in the folder; a file is closed after each, and its pages let go."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, "pt") as file:
                yield name, file.get_tensor(name)
