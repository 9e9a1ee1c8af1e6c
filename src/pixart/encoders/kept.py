"""A text encoder whose weights are kept otherwise than they are computed with.

In another dtype (bf16 where products are in fp32), as 8-bit integers with a scale, or *streamed*: in their file, which
is mapped, so that each layer takes its own weights while it works and the system's cache holds what fits. Streamed,
T5-XXL takes no memory of its own, on any device, and a prompt costs one pass over the file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart.encoders.text_files import encoder_config
from pixart.weights import OnBytes, ReadAhead, Stored, for_product, map_tensors, read_header, stream

LARGEST = 127  # of an 8-bit integer with a sign
SMALL = 1 << 20  # bytes of a table that is kept on the device


class KeptLinear(nn.Module):
    """x (..., in) -> (..., out) in the dtype and on the device of x, whatever the weight (out, in) is kept in.

    `scale`, () or (out,), is what the kept numbers are multiplied by.
    """

    weight = None  # transformers casts activations to the dtype of T5's `wo.weight`, where that is a tensor

    def __init__(self, kept: Tensor, scale: Tensor | None, bias: Tensor | None):
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, for_product(self.kept, x))
        if self.scale is not None:
            y = y * self.scale.to(x.device, x.dtype)
        return y if self.bias is None else y + self.bias


class KeptEmbedding(nn.Module):
    """Rows of a table (words, width), in `dtype` on `device`."""

    def __init__(self, kept: Tensor, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device))

    def forward(self, index: Tensor) -> Tensor:
        return self.kept[index.to(self.kept.device)].to(self.like)


def in_eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in) and a scale (out,) by which the largest number of each row is 127.

    Activations are not rounded, so little is lost: the few large ones, for which LLM.int8() (arXiv 2208.07339) has a
    second path, stay as they are.
    """
    weight = weight.float()
    scale = weight.abs().amax(dim=1).div(LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Weights:
    """The weights of a text encoder in its files, found by the names that the network has for them."""

    def __init__(self, model: nn.Module, paths: list[Path]):
        wanted = {name for name, _ in model.named_parameters()}
        self.names: dict[str, str] = {}  # of the network, by that in the file
        self.stored: dict[str, Stored] = {}  # by the name of the network
        self.scales: dict[str, Tensor] = {}  # of float8 as ComfyUI stores it, by the name of the weight
        for path in paths:
            for stored_name, stored in read_header(path).items():
                name = stored_name if stored_name in wanted else stored_name.removeprefix(f"{model.base_model_prefix}.")
                if name == "encoder.embed_tokens.weight":
                    name = "shared.weight"
                if name in wanted:
                    self.names[stored_name], self.stored[name] = name, stored
                elif name.endswith(".scale_weight"):
                    self.scales[name.removesuffix("scale_weight") + "weight"] = map_tensors(path)[stored_name]
        self.missing = sorted(wanted - self.stored.keys())


def load_kept(
    kind: type[nn.Module],
    place: Path,
    paths: list[Path],
    *,
    storage: torch.dtype,
    arithmetic: torch.dtype,
    device: torch.device,
    eight_bit: bool = False,
    streamed: bool = False,
    on_bytes: OnBytes | None = None,
) -> tuple[nn.Module, "Weights"]:
    """A model of transformers from a folder or file, for `device`, and its weights; check `missing` of those.

    The network is made without memory and each tensor goes where it stays as soon as it is read, so there is never a
    second copy, nor one in another dtype.
    """
    config = kind.config_class.from_dict(encoder_config(place))
    with torch.device("meta"):
        model = kind(config)
    model.set_input_embeddings(model.get_input_embeddings())  # T5 has them twice, and a file once
    weights = Weights(model, paths)
    _make_buffers(model, device)
    kept_on, kept_as = (torch.device("cpu"), None) if streamed else (device, storage)

    def kept(tensor: Tensor) -> Tensor:
        return tensor.to(kept_on, kept_as) if tensor.nbytes > SMALL else tensor.to(device, kept_as)

    source = _mapped(paths) if streamed else stream(paths, on_bytes)
    for stored_name, tensor in source:
        name = weights.names.get(stored_name)
        if name is None:
            continue  # of a decoder, say, which reading a text does not need
        place, _, leaf = name.rpartition(".")
        module, scale = model.get_submodule(place), weights.scales.get(name)
        as_it_is = storage == arithmetic and not streamed and scale is None
        if leaf == "weight" and isinstance(module, nn.Linear) and (eight_bit or not as_it_is):
            if eight_bit:
                tensor, scale = in_eight_bits(tensor if scale is None else tensor.float() * scale)
                tensor, scale = tensor.to(device), scale.to(device)
            else:
                tensor = kept(tensor)
            model.set_submodule(place, KeptLinear(tensor, scale, module.bias))
        elif isinstance(module, nn.Embedding) and not as_it_is:
            model.set_submodule(place, KeptEmbedding(kept(tensor), arithmetic, device))
        else:
            tensor = tensor.to(device, arithmetic, copy=True)
            if isinstance(module, KeptLinear):
                module.bias = tensor
            else:
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    model.set_input_embeddings(model.get_input_embeddings())
    return model.eval(), weights


def read_in_order(model: nn.Module, weights: Weights, on_bytes: OnBytes) -> int:
    """Let every block of a streamed encoder have the weights of the next one read while it works.

    Returns:
        How many bytes that is for one pass over all blocks; `on_bytes` is called with the bytes of each.
    """
    prefix, blocks = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    pieces = [
        [stored for name, stored in weights.stored.items() if name.startswith(f"{prefix}.{number}.")]
        for number in range(len(blocks))
    ]
    passes: list[ReadAhead] = []

    def before(number: int) -> None:
        if number == 0:
            passes[:] = [ReadAhead(pieces, on_bytes)]
        passes[0].wait(number)
        if number == len(pieces) - 1:
            passes.pop().close()

    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, inputs, number=number: before(number))
    return sum(stored.size for piece in pieces for stored in piece)


def _mapped(paths: list[Path]):
    for path in paths:
        yield from map_tensors(path).items()


def _make_buffers(model: nn.Module, device: torch.device) -> None:
    """What a network holds besides its weights (BERT: numbers of places), which no file has."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            for leaf, buffer in type(module)(model.config).named_buffers(recurse=False):
                setattr(model.get_submodule(name), leaf, buffer.to(device))
