"""The decoder half of Diffusers' AutoencoderKL as a graph: latents -> pixels in [-1, 1].

The mathematics is that of diffusers `models/autoencoders/vae.py` (Decoder), on weights by their names there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pixart.errors import PixArtError
from pixart.graphs.builder import Graph

FILE = "vae/diffusion_pytorch_model.safetensors"
EPSILON = 1e-6


def build_decoder(folder: Path, config: dict[str, Any]) -> onnx.ModelProto:
    """The graph of a model folder's `vae/`, from latents as the denoiser makes them; `config` is its config.json.

    Input: latent (B, C, h, w). Output: pixels (B, 3, H, W). Both fp32; `scaling_factor` is undone inside.

    Raises:
        PixArtError: the autoencoder has a part that this does not know.
    """
    levels = config["block_out_channels"]
    known = {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None}
    for key, value in known.items():
        if config.get(key, value) != value:
            raise PixArtError(
                f"{folder / 'vae' / 'config.json'} has {key} = {config[key]!r}; graphs know {value!r} only."
            )
    blocks = config.get("up_block_types", ["UpDecoderBlock2D"])
    if len(blocks) != len(levels) or set(blocks) != {"UpDecoderBlock2D"}:
        raise PixArtError(
            f"{folder / 'vae' / 'config.json'} has up_block_types {blocks}; graphs know UpDecoderBlock2D only."
        )
    graph = Graph(folder)
    groups = config["norm_num_groups"]
    x = graph.input("latent", np.float32, ["B", config["latent_channels"], "h", "w"])
    if (scale := config.get("scaling_factor", 0.18215)) != 1:
        x = graph.op("Div", [x, graph.constant(float(scale))])
    if config.get("use_post_quant_conv", True):
        x = _convolution(graph, x, "post_quant_conv")
    x = _convolution(graph, x, "decoder.conv_in")
    x = _residual(graph, x, "decoder.mid_block.resnets.0", groups)
    if config.get("mid_block_add_attention", True):
        x = _attention(graph, x, "decoder.mid_block.attentions.0", groups)
    x = _residual(graph, x, "decoder.mid_block.resnets.1", groups)
    for level in range(len(levels)):
        for layer in range(config["layers_per_block"] + 1):
            x = _residual(graph, x, f"decoder.up_blocks.{level}.resnets.{layer}", groups)
        if level < len(levels) - 1:
            x = _doubled(graph, x)
            x = _convolution(graph, x, f"decoder.up_blocks.{level}.upsamplers.0.conv")
    x = graph.silu(_group_norm(graph, x, "decoder.conv_norm_out", groups))
    graph.output(_convolution(graph, x, "decoder.conv_out"), "pixels", ["B", config["out_channels"], "H", "W"])
    return graph.model()


def _residual(graph: Graph, x: str, name: str, groups: int) -> str:
    hidden = _convolution(graph, graph.silu(_group_norm(graph, x, f"{name}.norm1", groups)), f"{name}.conv1")
    hidden = _convolution(graph, graph.silu(_group_norm(graph, hidden, f"{name}.norm2", groups)), f"{name}.conv2")
    if graph.has(FILE, f"{name}.conv_shortcut.weight"):
        x = _convolution(graph, x, f"{name}.conv_shortcut")
    return graph.op("Add", [x, hidden])


def _attention(graph: Graph, x: str, name: str, groups: int) -> str:
    """Attention of one head over all places, as the middle of Stable Diffusion's autoencoder has it."""
    channels = graph.shape_of(FILE, f"{name}.to_q.weight")[0]
    normed = _group_norm(graph, x, f"{name}.group_norm", groups)
    tokens = graph.op("Transpose", [graph.reshape(normed, [0, channels, -1])], {"perm": [0, 2, 1]})  # (B, N, C)
    places = graph.op("Shape", [tokens])
    rows = graph.reshape(tokens, [-1, channels])
    query, key, value = (
        graph.reshape(graph.linear(rows, FILE, f"{name}.{part}"), places) for part in ("to_q", "to_k", "to_v")
    )
    scores = graph.op("MatMul", [query, graph.op("Transpose", [key], {"perm": [0, 2, 1]})])
    weights = graph.op("Softmax", [graph.op("Mul", [scores, graph.constant(float(channels**-0.5))])], {"axis": -1})
    read = graph.reshape(graph.op("MatMul", [weights, value]), [-1, channels])
    read = graph.reshape(graph.linear(read, FILE, f"{name}.to_out.0"), places)
    back = graph.op("Transpose", [read], {"perm": [0, 2, 1]})
    return graph.op("Add", [graph.reshape(back, graph.op("Shape", [x])), x])


def _convolution(graph: Graph, x: str, name: str) -> str:
    side = graph.shape_of(FILE, f"{name}.weight")[-1]
    attributes = {"kernel_shape": [side, side], "pads": [side // 2] * 4}
    return graph.op("Conv", [x, graph.weight(FILE, f"{name}.weight"), graph.weight(FILE, f"{name}.bias")], attributes)


def _group_norm(graph: Graph, x: str, name: str, groups: int) -> str:
    """GroupNorm is InstanceNorm with each group laid out as one channel, and the affine part after it."""
    channels = graph.shape_of(FILE, f"{name}.weight")[0]
    ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    grouped = graph.reshape(x, [0, groups, -1])
    normed = graph.op("InstanceNormalization", [grouped, ones, zeros], {"epsilon": EPSILON})
    normed = graph.reshape(normed, graph.op("Shape", [x]))
    scale, shift = (
        graph.reshape(graph.weight(FILE, f"{name}.{part}"), [1, channels, 1, 1]) for part in ("weight", "bias")
    )
    return graph.op("Add", [graph.op("Mul", [normed, scale]), shift])


def _doubled(graph: Graph, x: str) -> str:
    scales = graph.constant(np.array([1.0, 1.0, 2.0, 2.0]))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.op("Resize", [x, "", scales], attributes)
