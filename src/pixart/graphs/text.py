"""The text encoder as a graph, up to what the denoiser's blocks read: tokens -> keys and values.

The mathematics is that of transformers' BertModel and T5EncoderModel, on weights by their names there, followed by the
transformer's own projections (model/pixart.py: `encode_text`). Padding is masked as a key; L is a free size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pixart.errors import PixArtError
from pixart.graphs.builder import CONTRIB, Graph

FILE = "text_encoder/model.safetensors"
DENOISER = "transformer/diffusion_pytorch_model.safetensors"
T5_POSITIONS = 320  # relative positions are tabled for texts up to this many tokens


def build_text(
    folder: Path, encoder: dict[str, Any], denoiser: dict[str, Any], *, fast: bool = False
) -> onnx.ModelProto:
    """The graph of a model folder's text encoder; `encoder` and `denoiser` are the two config.json.

    `fast`: for what the fast denoiser reads.

    Inputs: tokens (B, L) int64; text_mask (B, L) int32. Output: text (2·depth, B, h, L, d), keys and values in turn.

    Raises:
        PixArtError: the encoder is neither BERT nor T5, or has a part that this does not know.
    """
    graph = Graph(folder, fast=fast)
    tokens = graph.input("tokens", np.int64, ["B", "L"])
    mask = graph.input("text_mask", np.int32, ["B", "L"])
    where = folder / "text_encoder" / "config.json"
    match encoder.get("model_type"):
        case "bert":
            _expect(encoder, where, {"hidden_act": "gelu", "position_embedding_type": "absolute"})
            states = _bert(graph, tokens, mask, encoder)
        case "t5":
            _expect(encoder, where, {"tie_encoder_decoder": False})
            states = _t5(graph, tokens, mask, encoder)
        case other:
            raise PixArtError(f"{where} has model_type = {other!r}; graphs know bert and t5 only.")
    heads, depth = denoiser["num_attention_heads"], denoiser["num_layers"]
    text = graph.linear(states, DENOISER, "caption_projection.linear_1")  # (B·L, D)
    text = graph.op("Gelu", [text], {"approximate": "tanh"})
    text = graph.linear(text, DENOISER, "caption_projection.linear_2")
    names = [f"transformer_blocks.{i}.attn2.{part}" for i in range(depth) for part in ("to_k", "to_v")]
    parts = graph.stacked_linear(text, DENOISER, names)  # (B·L, 2·depth·D)
    shape = [graph.op("Shape", [tokens]), graph.constant([2 * depth, heads, denoiser["attention_head_dim"]])]
    parts = graph.reshape(parts, graph.op("Concat", shape, {"axis": 0}))
    parts = graph.op("Transpose", [parts], {"perm": [2, 0, 3, 1, 4]})
    graph.output(parts, "text", [2 * depth, "B", heads, "L", denoiser["attention_head_dim"]])
    return graph.model()


def _expect(config: dict[str, Any], where: Path, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if config.get(key, value) != value:
            raise PixArtError(f"{where} has {key} = {config[key]!r}; graphs know {value!r} only.")


def _table_rows(graph: Graph, table: str, rows: str) -> str:
    """Rows of a large table, cast to fp32 after they are picked: the table itself stays as it is stored."""
    return graph.op("Cast", [graph.op("Gather", [graph.weight(FILE, table, as_stored=True), rows])], {"to": 1})


def _bert(graph: Graph, tokens: str, mask: str, config: dict[str, Any]) -> str:
    """Last hidden states (B·L, T)."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    shape = graph.op("Shape", [tokens])
    length = graph.op("Gather", [shape, graph.constant(1)])
    places = graph.op("Range", [graph.constant(0), length, graph.constant(1)])
    by_text = graph.op("Concat", [shape, graph.constant([width])], {"axis": 0})
    x = graph.op(
        "Add",
        [
            _table_rows(graph, "embeddings.word_embeddings.weight", tokens),
            _table_rows(graph, "embeddings.position_embeddings.weight", places),
        ],
    )
    x = graph.op("Add", [x, _table_rows(graph, "embeddings.token_type_embeddings.weight", graph.constant([0]))])
    x = _bert_norm(graph, graph.reshape(x, [-1, width]), "embeddings.LayerNorm", config)  # (B·L, T)
    for i in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{i}"
        qkv = graph.stacked_linear(x, FILE, [f"{name}.attention.self.{part}" for part in ("query", "key", "value")])
        parts = graph.split_op("Split", [qkv], 3, {"axis": 1, "num_outputs": 3})
        inputs = [*(graph.reshape(part, by_text) for part in parts), "", mask]
        read = graph.op("MultiHeadAttention", inputs, {"num_heads": heads, "mask_filter_value": -1e30}, CONTRIB)
        read = graph.linear(graph.reshape(read, [-1, width]), FILE, f"{name}.attention.output.dense")
        x = _bert_norm(graph, graph.op("Add", [x, read]), f"{name}.attention.output.LayerNorm", config)
        hidden = graph.op("Gelu", [graph.linear(x, FILE, f"{name}.intermediate.dense")])
        hidden = graph.linear(hidden, FILE, f"{name}.output.dense")
        x = _bert_norm(graph, graph.op("Add", [x, hidden]), f"{name}.output.LayerNorm", config)
    return x


def _bert_norm(graph: Graph, x: str, name: str, config: dict[str, Any]) -> str:
    inputs = [x, graph.weight(FILE, f"{name}.weight"), graph.weight(FILE, f"{name}.bias")]
    return graph.op("LayerNormalization", inputs, {"axis": -1, "epsilon": config["layer_norm_eps"]})


def _t5(graph: Graph, tokens: str, mask: str, config: dict[str, Any]) -> str:
    """Last hidden states (B·L, T)."""
    heads, inner = config["num_heads"], config["num_heads"] * config["d_kv"]
    shape = graph.op("Shape", [tokens])
    by_text = graph.op("Concat", [shape, graph.constant([inner])], {"axis": 0})
    bias = _t5_bias(graph, shape, config)
    table = "shared.weight" if graph.has(FILE, "shared.weight") else "encoder.embed_tokens.weight"
    x = graph.reshape(_table_rows(graph, table, tokens), [-1, config["d_model"]])
    for i in range(config["num_layers"]):
        name = f"encoder.block.{i}.layer"
        normed = _t5_norm(graph, x, f"{name}.0.layer_norm", config)
        qkv = graph.stacked_linear(normed, FILE, [f"{name}.0.SelfAttention.{part}" for part in "qkv"])
        parts = graph.split_op("Split", [qkv], 3, {"axis": 1, "num_outputs": 3})
        inputs = [*(graph.reshape(part, by_text) for part in parts), "", mask, bias]
        attributes = {"num_heads": heads, "mask_filter_value": -1e30, "scale": 1.0}
        read = graph.op("MultiHeadAttention", inputs, attributes, CONTRIB)
        x = graph.op("Add", [x, graph.linear(graph.reshape(read, [-1, inner]), FILE, f"{name}.0.SelfAttention.o")])
        normed = _t5_norm(graph, x, f"{name}.1.layer_norm", config)
        x = graph.op("Add", [x, _t5_feed_forward(graph, normed, f"{name}.1.DenseReluDense", config)])
    return _t5_norm(graph, x, "encoder.final_layer_norm", config)


def _t5_feed_forward(graph: Graph, x: str, name: str, config: dict[str, Any]) -> str:
    match config.get("feed_forward_proj", "relu"):
        case "relu":
            hidden = graph.op("Relu", [graph.linear(x, FILE, f"{name}.wi")])
        case "gated-gelu":
            gate = graph.op("Gelu", [graph.linear(x, FILE, f"{name}.wi_0")], {"approximate": "tanh"})
            hidden = graph.op("Mul", [gate, graph.linear(x, FILE, f"{name}.wi_1")])
        case other:
            raise PixArtError(
                f"The text encoder has feed_forward_proj = {other!r}; graphs know relu and gated-gelu only."
            )
    return graph.linear(hidden, FILE, f"{name}.wo")


def _t5_norm(graph: Graph, x: str, name: str, config: dict[str, Any]) -> str:
    """Root mean square norm: no mean is taken away, no bias added."""
    inputs = [x, graph.weight(FILE, f"{name}.weight")]
    return graph.op("SimplifiedLayerNormalization", inputs, {"axis": -1, "epsilon": config["layer_norm_epsilon"]})


def _t5_bias(graph: Graph, shape: str, config: dict[str, Any]) -> str:
    """Relative position bias (1, h, L, L) of the first layer, which all layers use (T5, section 2.1)."""
    buckets = graph.constant(
        _t5_buckets(config["relative_attention_num_buckets"], config["relative_attention_max_distance"])
    )
    length = graph.op("Slice", [shape, graph.constant([1]), graph.constant([2])])
    ends = graph.op("Concat", [length, length], {"axis": 0})
    buckets = graph.op("Slice", [buckets, graph.constant([0, 0]), ends, graph.constant([0, 1])])
    table = graph.weight(FILE, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    bias = graph.op("Transpose", [graph.op("Gather", [table, buckets])], {"perm": [2, 0, 1]})
    return graph.op("Unsqueeze", [bias, graph.constant([0])])


def _t5_buckets(count: int, farthest: int) -> np.ndarray:
    """The bucket of each (query, key) pair, (T5_POSITIONS, T5_POSITIONS): exact when near, logarithmic when far."""
    places = np.arange(T5_POSITIONS)
    distance = places[None, :] - places[:, None]
    half = count // 2
    side = np.where(distance > 0, half, 0)
    distance = np.abs(distance)
    near = half // 2
    with np.errstate(divide="ignore"):
        far = np.log(distance.astype(np.float32) / near) / np.float32(np.log(farthest / near)) * (half - near)
    far = np.minimum(near + np.nan_to_num(far, neginf=0).astype(np.int64), half - 1)
    return side + np.where(distance < near, distance, far)
