"""The PixArt transformer as a graph: latents, timestep and the text that was read -> prediction.

The mathematics is that of model/pixart.py, on weights by their Diffusers names. Tokens of all pictures lie in one
matrix (B·N, D), so that a linear layer is one product, and rows are computed alike whatever the batch.
Shape letters are those of model/pixart.py.
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
    """The graph of a model folder's transformer, or with `fast` of its fast denoiser; `config` is its config.json.

    With `int8` the linear layers of the blocks compute in 8-bit whole numbers. Their inputs are scaled by the largest
    value of the whole batch, so pictures must then be drawn one at a time.

    Inputs: x_t (pictures, C, H, W); timestep (1,); positions (N, D); text (2·depth, B, h, L, d), keys and values in
    turn, where B is pictures times texts, all pictures with the first text first; text_mask (B, L) int32; and size
    (1, 3) where the network has micro-conditions. Output: prediction (B, out_channels, H, W). All floats are fp32.
    What comes before the first look at a text is computed once per picture.
    """
    graph = Graph(folder, fast=fast)
    heads, depth, patch = config["num_attention_heads"], config["num_layers"], config["patch_size"]
    channels, out_channels = config["in_channels"], config["out_channels"]
    width = heads * config["attention_head_dim"]
    x_t = graph.input("x_t", np.float32, ["pictures", channels, "H", "W"])
    timestep = graph.input("timestep", np.float32, [1])
    positions = graph.input("positions", np.float32, ["N", width])
    text = graph.input("text", np.float32, [2 * depth, "B", heads, "L", width // heads])
    mask = graph.input("text_mask", np.int32, ["B", "L"])

    rows, columns = (_size(graph, x_t, axis, patch) for axis in (2, 3))
    pictures = graph.op("Shape", [x_t], {"start": 0, "end": 1})
    batch = graph.op("Shape", [mask], {"start": 0, "end": 1})
    texts = graph.op("Concat", [graph.op("Div", [batch, pictures]), graph.constant([1])], {"axis": 0})
    x = _patchify(graph, x_t, pictures, rows, columns, channels, patch)  # (pictures·N, C·P·P)
    kernel = graph.reshape(graph.weight(FILE, "pos_embed.proj.weight"), [width, channels * patch * patch])
    x = graph.op("Gemm", [x, kernel, graph.weight(FILE, "pos_embed.proj.bias")], {"transB": 1})
    by_picture = graph.op("Concat", [pictures, graph.constant([-1, width])], {"axis": 0})
    x = graph.op("Add", [graph.reshape(x, by_picture), positions])
    x = graph.reshape(x, [-1, width])  # (pictures·N, D)

    time = _embedded(graph, timestep, 1, "adaln_single.emb.timestep_embedder")  # (1, D)
    if config["use_additional_conditions"]:
        time = graph.op("Add", [time, _micro_conditions(graph)])
    product = graph.quantized_linear if int8 else graph.linear

    def linear(x: str, name: str) -> str:
        return product(x, FILE, name)

    modulations, final_shift, final_scale = _modulations(graph, time, depth, width)
    for i in range(depth):
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulations[6 * i : 6 * i + 6]
        name = f"transformer_blocks.{i}"
        normed = _modulated_norm(graph, x, shift_attn, scale_attn)
        # Three products, not one of three parts: to take its parts out would copy them all.
        qkv = [linear(normed, f"{name}.attn1.{part}") for part in ("to_q", "to_k", "to_v")]
        attended = _self_attention(graph, qkv, by_picture, width, heads)
        attended = linear(attended, f"{name}.attn1.to_out.0")
        x = graph.op("Add", [x, graph.op("Mul", [attended, gate_attn])])
        if i == 0:
            x = graph.op("Tile", [x, texts])  # (B·N, D)
            by_picture = graph.op("Concat", [batch, graph.constant([-1, width])], {"axis": 0})
        query = linear(x, f"{name}.attn2.to_q")
        read = _cross_attention(graph, query, text, 2 * i, mask, by_picture, width, heads)
        x = graph.op("Add", [x, linear(read, f"{name}.attn2.to_out.0")])
        normed = _modulated_norm(graph, x, shift_mlp, scale_mlp)
        hidden = graph.op("Gelu", [linear(normed, f"{name}.ff.net.0.proj")], {"approximate": "tanh"})
        x = graph.op("Add", [x, graph.op("Mul", [linear(hidden, f"{name}.ff.net.2"), gate_mlp])])

    patches = graph.linear(_modulated_norm(graph, x, final_shift, final_scale), FILE, "proj_out")
    prediction = _unpatchify(graph, patches, batch, rows, columns, out_channels, patch)
    graph.output(prediction, "prediction", ["B", out_channels, "H", "W"])
    return graph.model()


def _embedded(graph: Graph, numbers: str, count: int, name: str) -> str:
    """`count` numbers by cosines, sines and a small MLP: (count, width of the MLP)."""
    waves = np.exp(-math.log(10000) * np.arange(FREQUENCIES, dtype=np.float32) / np.float32(FREQUENCIES))
    angles = graph.op("Mul", [graph.reshape(numbers, [count, 1]), graph.constant(waves[None].astype(np.float32))])
    waves = graph.op("Concat", [graph.op("Cos", [angles]), graph.op("Sin", [angles])], {"axis": 1})
    return graph.linear(graph.silu(graph.linear(waves, FILE, f"{name}.linear_1")), FILE, f"{name}.linear_2")


def _micro_conditions(graph: Graph) -> str:
    """Height, width and aspect ratio of the picture, a third of D each: (1, D)."""
    size = graph.input("size", np.float32, [1, 3])
    sides, ratio = graph.split_op("Split", [size, graph.constant([2, 1])], 2, {"axis": 1})
    sides = _embedded(graph, sides, 2, "adaln_single.emb.resolution_embedder")
    ratio = _embedded(graph, ratio, 1, "adaln_single.emb.aspect_ratio_embedder")
    return graph.op("Concat", [graph.reshape(sides, [1, -1]), ratio], {"axis": 1})


def _modulations(graph: Graph, time: str, depth: int, width: int) -> tuple[list[str], str, str]:
    """adaLN-single: shift, 1 + scale and gate of every block, and shift and 1 + scale of the last layer, (1, D) each.

    `time` is the embedded timestep (1, D), micro-conditions added.
    """
    shared = graph.reshape(graph.linear(graph.silu(time), FILE, "adaln_single.linear"), [6, width])
    tables = [graph.weight(FILE, f"transformer_blocks.{i}.scale_shift_table") for i in range(depth)]
    ones = np.zeros((6, 1), np.float32)
    ones[[1, 4]] = 1  # the scales are wanted as 1 + scale
    table = graph.op("Add", [graph.op("Concat", tables, {"axis": 0}), graph.constant(np.tile(ones, (depth, 1)))])
    shared = graph.op("Concat", [shared] * depth, {"axis": 0})
    blocks = graph.split_op(
        "Split", [graph.op("Add", [table, shared])], 6 * depth, {"axis": 0, "num_outputs": 6 * depth}
    )
    final_ones = graph.constant(np.array([[0.0], [1.0]], np.float32))
    final = graph.op("Add", [graph.op("Add", [graph.weight(FILE, "scale_shift_table"), final_ones]), time])
    shift, scale = graph.split_op("Split", [final], 2, {"axis": 0, "num_outputs": 2})
    return blocks, shift, scale


def _modulated_norm(graph: Graph, x: str, shift: str, scale: str) -> str:
    """LayerNorm whose affine part is the timestep's: one operator, since all rows share the timestep."""
    return graph.op("LayerNormalization", [x, scale, shift], {"axis": -1, "epsilon": 1e-6})


def _self_attention(graph: Graph, qkv: list[str], by_picture: str, width: int, heads: int) -> str:
    """Query, key and value (B·N, D) -> (B·N, D)."""
    query, key, value = (graph.reshape(part, by_picture) for part in qkv)
    attended = graph.op("MultiHeadAttention", [query, key, value], {"num_heads": heads}, CONTRIB)
    return graph.reshape(attended, [-1, width])


def _cross_attention(
    graph: Graph, query: str, text: str, at: int, mask: str, by_picture: str, width: int, heads: int
) -> str:
    """query (B·N, D) reads the keys text[at] and values text[at + 1] -> (B·N, D)."""
    key, value = (graph.op("Gather", [text, graph.constant(at + i)], {"axis": 0}) for i in (0, 1))
    inputs = [graph.reshape(query, by_picture), key, value, "", mask]
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
