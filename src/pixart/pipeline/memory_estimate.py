"""What generating takes of memory with torch, from the sizes in the files' headers, before anything is loaded.

Weights in the dtype that they are kept in, plus the activations of the network that works; with `staged` the largest of
the three, else their sum. A test holds the estimate to a small model's measured peaks.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pixart.checkpoints.model_folder import ModelFolder
from pixart.files import read_json_object
from pixart.runtime.memory import Memory
from pixart.weights import read_header

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROGRAM = 510_000_000  # Python, torch, diffusers and transformers
LOADING = 1.5  # times its size that a denoiser takes while queries, keys and values are put together
LAYER_NUMBERS = 20  # per token and width that a step holds at once
DECODER_NUMBERS = 4.5  # per pixel and channel of the second-finest level that decoding holds at once


@dataclass(frozen=True)
class Way:
    """One way to generate, as options of `pixart generate`."""

    options: str
    dtype: str
    memory: Memory


WAYS = (
    Way("--dtype float32", "float32", Memory()),
    Way("--dtype float32 --staged", "float32", Memory(staged=True)),
    Way("--dtype bfloat16", "bfloat16", Memory()),
    Way("--dtype bfloat16 --staged", "bfloat16", Memory(staged=True)),
    Way("--dtype bfloat16 --text-encoder-8bit --staged", "bfloat16", Memory(text_encoder_8bit=True, staged=True)),
    Way(
        "--dtype bfloat16 --text-states FILE --staged --decode tiled",
        "bfloat16",
        Memory(text_states=Path("FILE"), staged=True, decode="tiled"),
    ),
)


def estimate(folder: ModelFolder, dtype: str, memory: Memory, height: int, width: int) -> int:
    """Bytes that generating one guided image of height x width pixels takes at its peak, on a CPU."""
    config = folder.transformer
    text_bytes = BYTES[dtype if memory.text_encoder_dtype == "auto" else memory.text_encoder_dtype]
    vae_bytes = BYTES["float32" if memory.vae_dtype == "auto" else memory.vae_dtype]
    text = 0
    if memory.text_states is None:
        linear, other = _numbers(folder, "text_encoder")
        text = linear * (1 if memory.text_encoder_8bit else text_bytes) + other * text_bytes
    denoiser = sum(_numbers(folder, "transformer")) * BYTES[dtype]
    decoder = sum(_numbers(folder, "vae")) * vae_bytes
    tokens = height * width / folder.size_multiple**2
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    step = 2 * tokens * channels * LAYER_NUMBERS * BYTES[dtype]
    decoding = _decoded_numbers(folder, memory, height, width) * vae_bytes
    if memory.staged:
        return int(PROGRAM + max(text, denoiser * LOADING, denoiser + step, decoder + decoding))
    return int(PROGRAM + text + denoiser + max(denoiser * (LOADING - 1), decoder + max(step, decoding)))


def _decoded_numbers(folder: ModelFolder, memory: Memory, height: int, width: int) -> float:
    config = read_json_object(folder.path / "vae" / "config.json")
    channels = config["block_out_channels"]
    pixels = height * width
    if memory.decode == "tiled":
        side = config.get("sample_size") or 512
        pixels = min(height, side) * min(width, side)
    return DECODER_NUMBERS * channels[min(1, len(channels) - 1)] * pixels


def _numbers(folder: ModelFolder, part: str) -> tuple[int, int]:
    """How many numbers the linear layers of a network have, and its other tensors."""
    if part == "transformer" and folder.checkpoint is not None:
        return sum(tensor.numel() for tensor in folder.checkpoint.state.values()), 0
    place = folder.transformer_folder if part == "transformer" else folder.path / part
    linear = other = 0
    for path in folder.weights:
        for name, entry in read_header(path).items() if path.parent == place else ():
            size = math.prod(entry.shape)
            looked_up = any(word in name for word in ("shared", "embed", "relative_attention_bias"))
            if len(entry.shape) == 2 and not looked_up:
                linear += size
            else:
                other += size
    return linear, other
