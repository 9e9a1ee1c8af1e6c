"""Diffusers' AutoencoderKL as two graphs: latents -> pixels in [-1, 1], and back to the mean of the latents.

The mathematics is that of diffusers `models/autoencoders/vae.py`, on weights by their names there.
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
    levels = _levels(folder, config, "up_block_types", "UpDecoderBlock2D")
    graph = Graph(folder)
    groups = config["norm_num_groups"]
    x = graph.input("latent", np.float32, ["B", config["latent_channels"], "h", "w"])
    if (scale := config.get("scaling_factor", 0.18215)) != 1:
        x = graph.op("Div", [x, graph.constant(float(scale))])
    if config.get("use_post_quant_conv", True):
        x = _convolution(graph, x, "post_quant_conv")
    x = _convolution(graph, x, "decoder.conv_in")
    x = _middle(graph, x, "decoder", config)
    for level in range(len(levels)):
        for layer in range(config["layers_per_block"] + 1):
            x = _residual(graph, x, f"decoder.up_blocks.{level}.resnets.{layer}", groups)
        if level < len(levels) - 1:
            x = _doubled(graph, x)
            x = _convolution(graph, x, f"decoder.up_blocks.{level}.upsamplers.0.conv")
    x = graph.silu(_group_norm(graph, x, "decoder.conv_norm_out", groups))
    graph.output(_convolution(graph, x, "decoder.conv_out"), "pixels", ["B", config["out_channels"], "H", "W"])
    return graph.model()


def build_encoder(folder: Path, config: dict[str, Any]) -> onnx.ModelProto:
    """The graph of the other half, for images to start from; `config` as for `build_decoder`, which it mirrors.

    Input: pixels (B, 3, H, W). Output: latent (B, C, h, w), the mean, times `scaling_factor`. Both fp32.
    """
    levels = _levels(folder, config, "down_block_types", "DownEncoderBlock2D")
    graph = Graph(folder)
    groups = config["norm_num_groups"]
    x = graph.input("pixels", np.float32, ["B", config["in_channels"], "H", "W"])
    x = _convolution(graph, x, "encoder.conv_in")
    for level in range(len(levels)):
        for layer in range(config["layers_per_block"]):
            x = _residual(graph, x, f"encoder.down_blocks.{level}.resnets.{layer}", groups)
        if level < len(levels) - 1:
            x = _convolution(graph, x, f"encoder.down_blocks.{level}.downsamplers.0.conv", halved=True)
    x = _middle(graph, x, "encoder", config)
    x = graph.silu(_group_norm(graph, x, "encoder.conv_norm_out", groups))
    x = _convolution(graph, x, "encoder.conv_out")
    if config.get("use_quant_conv", True):
        x = _convolution(graph, x, "quant_conv")
    mean = graph.split_op("Split", [x], 2, {"axis": 1, "num_outputs": 2})[0]
    mean = graph.op("Mul", [mean, graph.constant(float(config.get("scaling_factor", 0.18215)))])
    graph.output(mean, "latent", ["B", config["latent_channels"], "h", "w"])
    return graph.model()


def _levels(folder: Path, config: dict[str, Any], blocks: str, known_block: str) -> list[int]:
    """The channels of each level; PixArtError where the autoencoder has a part that graphs do not know."""
    known = {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None}
    for key, value in known.items():
        if config.get(key, value) != value:
            raise PixArtError(
                f"{folder / 'vae' / 'config.json'} has {key} = {config[key]!r}; graphs know {value!r} only."
            )
    levels = config["block_out_channels"]
    given = config.get(blocks, [known_block])
    if len(given) != len(levels) or set(given) != {known_block}:
        raise PixArtError(f"{folder / 'vae' / 'config.json'} has {blocks} {given}; graphs know {known_block} only.")
    return levels


def _middle(graph: Graph, x: str, half: str, config: dict[str, Any]) -> str:
    groups = config["norm_num_groups"]
    x = _residual(graph, x, f"{half}.mid_block.resnets.0", groups)
    if config.get("mid_block_add_attention", True):
        x = _attention(graph, x, f"{half}.mid_block.attentions.0", groups)
    return _residual(graph, x, f"{half}.mid_block.resnets.1", groups)


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


def _convolution(graph: Graph, x: str, name: str, *, halved: bool = False) -> str:
    side = graph.shape_of(FILE, f"{name}.weight")[-1]
    attributes = {"kernel_shape": [side, side], "pads": [side // 2] * 4}
    if halved:  # Diffusers pads below and to the right only
        attributes |= {"strides": [2, 2], "pads": [0, 0, 1, 1]}
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
