"""The PixArt transformer as a graph: latents, timesteps and encoded text -> prediction.

The mathematics is that of model/pixart.py, on weights by their Diffusers names. A linear layer is one product over the
tokens of all rows, (B·N, D), and each row is computed alike whatever the batch. Shape letters are those of
model/pixart.py.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pixart.graphs.builder import CONTRIB, Graph

FILE = "transformer/diffusion_pytorch_model.safetensors"
FREQUENCIES = 128  # cosines and sines each (model/embed.py)


def build_denoiser(folder: Path, config: dict[str, Any], *, int8: bool = False, fast: bool = False) -> onnx.ModelProto:
    """The graph of a model folder's transformer, or with `fast` of its few-step one; `config` is its config.json.

    With `int8` the linear layers of the blocks compute in 8-bit whole numbers. Their inputs are scaled by the largest
    value of the batch, so images must then be computed one at a time.

    Inputs: x_t (images, C, H, W); timestep (images,); positions (N, D); text (2·depth, B, h, L, d), keys and values in
    turn; text_mask (B, L) int32; rows (B,) int64, the image of each text; and size (images, 3) where the network has
    micro-conditions. Output: prediction (B, out_channels, H, W). All floats are fp32. An image has one row, or two
    where it is guided; what comes before the first cross-attention is computed once per image.
    """
    graph = Graph(folder, fast=fast)
    heads, depth, patch = config["num_attention_heads"], config["num_layers"], config["patch_size"]
    channels, out_channels = config["in_channels"], config["out_channels"]
    width = heads * config["attention_head_dim"]
    x_t = graph.input("x_t", np.float32, ["images", channels, "H", "W"])
    timestep = graph.input("timestep", np.float32, ["images"])
    positions = graph.input("positions", np.float32, ["N", width])
    text = graph.input("text", np.float32, [2 * depth, "B", heads, "L", width // heads])
    mask = graph.input("text_mask", np.int32, ["B", "L"])
    image_of_row = graph.input("rows", np.int64, ["B"])

    rows, columns = (_size(graph, x_t, axis, patch) for axis in (2, 3))
    images = graph.op("Shape", [x_t], {"start": 0, "end": 1})
    x = _patchify(graph, x_t, images, rows, columns, channels, patch)  # (images·N, C·P·P)
    kernel = graph.reshape(graph.weight(FILE, "pos_embed.proj.weight"), [width, channels * patch * patch])
    x = graph.op("Gemm", [x, kernel, graph.weight(FILE, "pos_embed.proj.bias")], {"transB": 1})
    by_row = graph.op("Concat", [images, graph.constant([-1, width])], {"axis": 0})  # (images or B, N, D)
    x = graph.op("Add", [graph.reshape(x, by_row), positions])

    time = _embedded(graph, timestep, "adaln_single.emb.timestep_embedder")  # (images, D)
    if config["use_additional_conditions"]:
        time = graph.op("Add", [time, _micro_conditions(graph, width // 3)])
    shared = graph.linear(graph.silu(time), FILE, "adaln_single.linear")
    shared = graph.reshape(shared, [-1, 6, width])
    product = graph.quantized_linear if int8 else graph.linear

    def linear(x: str, name: str) -> str:
        """x (B, N, in) or (B·N, in) -> (B·N, out)."""
        return product(x, FILE, name)

    for i in range(depth):
        name = f"transformer_blocks.{i}"
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = _modulations(graph, shared, name)
        normed = graph.reshape(_modulated_norm(graph, x, shift_attn, scale_attn, width), [-1, width])
        # Three products, not one of three parts: to take its parts out would copy them all.
        qkv = [linear(normed, f"{name}.attn1.{part}") for part in ("to_q", "to_k", "to_v")]
        attended = linear(_self_attention(graph, qkv, by_row, width, heads), f"{name}.attn1.to_out.0")
        x = graph.op("Add", [x, graph.op("Mul", [graph.reshape(attended, by_row), gate_attn])])
        if i == 0:
            x, shared, time = (graph.op("Gather", [part, image_of_row], {"axis": 0}) for part in (x, shared, time))
            batch = graph.op("Shape", [mask], {"start": 0, "end": 1})
            by_row = graph.op("Concat", [batch, graph.constant([-1, width])], {"axis": 0})
            *_, shift_mlp, scale_mlp, gate_mlp = _modulations(graph, shared, name)
        query = linear(graph.reshape(x, [-1, width]), f"{name}.attn2.to_q")
        read = _cross_attention(graph, query, text, 2 * i, mask, by_row, width, heads)
        x = graph.op("Add", [x, graph.reshape(linear(read, f"{name}.attn2.to_out.0"), by_row)])
        normed = graph.reshape(_modulated_norm(graph, x, shift_mlp, scale_mlp, width), [-1, width])
        hidden = graph.op("Gelu", [linear(normed, f"{name}.ff.net.0.proj")], {"approximate": "tanh"})
        hidden = graph.reshape(linear(hidden, f"{name}.ff.net.2"), by_row)
        x = graph.op("Add", [x, graph.op("Mul", [hidden, gate_mlp])])

    ones = graph.constant(np.array([[0.0], [1.0]], np.float32))  # the scale is wanted as 1 + scale
    final = graph.op("Add", [graph.weight(FILE, "scale_shift_table"), ones])
    final = graph.op("Add", [graph.reshape(time, [-1, 1, width]), final])  # (B, 2, D)
    shift, scale = graph.split_op("Split", [final], 2, {"axis": 1, "num_outputs": 2})
    normed = graph.reshape(_modulated_norm(graph, x, shift, scale, width), [-1, width])
    patches = graph.linear(normed, FILE, "proj_out")
    prediction = _unpatchify(graph, patches, batch, rows, columns, out_channels, patch)
    graph.output(prediction, "prediction", ["B", out_channels, "H", "W"])
    return graph.model()


def _embedded(graph: Graph, numbers: str, name: str) -> str:
    """Numbers (M,) or (M, 1) by cosines, sines and a small MLP: (M, width of the MLP)."""
    waves = np.exp(-math.log(10000) * np.arange(FREQUENCIES, dtype=np.float32) / np.float32(FREQUENCIES))
    angles = graph.op("Mul", [graph.reshape(numbers, [-1, 1]), graph.constant(waves[None].astype(np.float32))])
    waves = graph.op("Concat", [graph.op("Cos", [angles]), graph.op("Sin", [angles])], {"axis": 1})
    return graph.linear(graph.silu(graph.linear(waves, FILE, f"{name}.linear_1")), FILE, f"{name}.linear_2")


def _micro_conditions(graph: Graph, third: int) -> str:
    """Height, width and aspect ratio of each image, a third of D each: (images, D)."""
    size = graph.input("size", np.float32, ["images", 3])
    sides, ratio = graph.split_op("Split", [size, graph.constant([2, 1])], 2, {"axis": 1})
    sides = graph.reshape(_embedded(graph, sides, "adaln_single.emb.resolution_embedder"), [-1, 2 * third])
    ratio = _embedded(graph, ratio, "adaln_single.emb.aspect_ratio_embedder")
    return graph.op("Concat", [sides, ratio], {"axis": 1})


def _modulations(graph: Graph, shared: str, block: str) -> list[str]:
    """adaLN-single: shift, 1 + scale and gate of attention and MLP, (B, 1, D) each; `shared` is (B, 6, D)."""
    ones = np.zeros((6, 1), np.float32)
    ones[[1, 4]] = 1  # the scales are wanted as 1 + scale
    table = graph.op("Add", [graph.weight(FILE, f"{block}.scale_shift_table"), graph.constant(ones)])
    return graph.split_op("Split", [graph.op("Add", [shared, table])], 6, {"axis": 1, "num_outputs": 6})


def _modulated_norm(graph: Graph, x: str, shift: str, scale: str, width: int) -> str:
    """LayerNorm without affine, then scale and shift, which differ by row: x (B, N, D), shift and scale (B, 1, D).

    LayerNormalization takes (B, 1, D) itself, and is then three times as slow (ONNX Runtime 1.31).
    """
    ones = graph.constant(np.ones(width, np.float32))
    normed = graph.op("LayerNormalization", [x, ones], {"axis": -1, "epsilon": 1e-6})
    return graph.op("Add", [graph.op("Mul", [normed, scale]), shift])


def _self_attention(graph: Graph, qkv: list[str], by_row: str, width: int, heads: int) -> str:
    """Query, key and value (B·N, D) -> (B·N, D)."""
    query, key, value = (graph.reshape(part, by_row) for part in qkv)
    attended = graph.op("MultiHeadAttention", [query, key, value], {"num_heads": heads}, CONTRIB)
    return graph.reshape(attended, [-1, width])


def _cross_attention(
    graph: Graph, query: str, text: str, at: int, mask: str, by_row: str, width: int, heads: int
) -> str:
    """query (B·N, D) reads the keys text[at] and values text[at + 1] -> (B·N, D)."""
    key, value = (graph.op("Gather", [text, graph.constant(at + i)], {"axis": 0}) for i in (0, 1))
    inputs = [graph.reshape(query, by_row), key, value, "", mask]
    attended = graph.op("MultiHeadAttention", inputs, {"num_heads": heads, "mask_filter_value": -1e30}, CONTRIB)
    return graph.reshape(attended, [-1, width])


def _size(graph: Graph, x: str, axis: int, patch: int) -> str:
    """A side of the latent in patches, as a tensor of one number."""
    return graph.op("Div", [graph.op("Shape", [x], {"start": axis, "end": axis + 1}), graph.constant([patch])])


def _patchify(graph: Graph, x_t: str, batch: str, rows: str, columns: str, channels: int, patch: int) -> str:
    """(B, C, H, W) -> (B·N, C·P·P), the order of a convolution's kernel."""
    shape = [batch, graph.constant([channels]), rows, graph.constant([patch]), columns, graph.constant([patch])]
    x = graph.reshape(x_t, graph.op("Concat", shape, {"axis": 0}))
    x = graph.op("Transpose", [x], {"perm": [0, 2, 4, 1, 3, 5]})
    return graph.reshape(x, [-1, channels * patch * patch])


def _unpatchify(graph: Graph, patches: str, batch: str, rows: str, columns: str, channels: int, patch: int) -> str:
    """(B·N, P·P·C) -> (B, C, H, W), channels last in a patch."""
    shape = [batch, rows, columns, graph.constant([patch, patch, channels])]
    x = graph.reshape(patches, graph.op("Concat", shape, {"axis": 0}))
    x = graph.op("Transpose", [x], {"perm": [0, 5, 1, 3, 2, 4]})
    side = graph.constant([patch])
    height, width = (graph.op("Mul", [count, side]) for count in (rows, columns))
    return graph.reshape(x, graph.op("Concat", [batch, graph.constant([channels]), height, width], {"axis": 0}))
