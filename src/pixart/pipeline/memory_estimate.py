"""What drawing will take of memory, from the sizes of a model's tensors: for `pixart info`, before anything is loaded.

Two figures for each way to draw. `needs` must be free: what the process has of its own, and files of weights that it
computes from in place. `peak` is the largest resident memory that the system will report (ru_maxrss); it also counts
files that are mapped only while they are read, which the system drops where room is short.

The rules below were found with XL/2 and T5-XXL's layers on Linux, torch 2.13 for CPUs (benchmarks/memory.py); a test
holds them to a small model's peaks. They are for the engine torch on a CPU.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.weight_files import check_whole, read_object
from pixart.runtime.memory import Memory

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I64": 8, "I32": 4, "BOOL": 1}
# Python, torch, diffusers and transformers: their own memory, and with their libraries' files.
PROGRAM_OWN, PROGRAM = 510_000_000, 860_000_000
FUSED = 0.3  # of a denoiser's weights are queries, keys and values, which are copied side by side while loading
CAST = 1.5  # times its size in the new type that a denoiser takes while it is cast and put together
LAYER_ACTIVATIONS = 20  # numbers per token and width that a step holds at once; a token is there once for each text
# Numbers per pixel and channel of the second-finest level that the decoder holds at once, and with its strips.
DECODER_ACTIVATIONS = {"whole": 3.5, "sequential": 1.5, "tiled": 3.5}
ROUNDING = 3  # fp32 copies of the largest weight while it is rounded to 8 bits


@dataclass(frozen=True)
class Way:
    """One way to draw, as options of `pixart generate`."""

    options: str
    dtype: str
    memory: Memory


BF16 = {"text_encoder_dtype": "bfloat16"}
WAYS = (
    Way("(none)", "float32", Memory()),
    Way("--staged", "float32", Memory(staged=True)),
    Way("--dtype bfloat16 --text-encoder-dtype bfloat16", "bfloat16", Memory(**BF16)),
    Way("--dtype bfloat16 --text-encoder-dtype bfloat16 --staged", "bfloat16", Memory(**BF16, staged=True)),
    Way("--dtype bfloat16 --text-encoder-8bit --staged", "bfloat16", Memory(text_encoder_8bit=True, staged=True)),
    Way(
        "--dtype bfloat16 --text-encoder-8bit --staged --decode sequential",
        "bfloat16",
        Memory(text_encoder_8bit=True, staged=True, decode="sequential"),
    ),
    Way(
        "--dtype bfloat16 --text-states FILE --staged --decode sequential",
        "bfloat16",
        Memory(text_states=Path("FILE"), staged=True, decode="sequential"),
    ),
)


@dataclass(frozen=True)
class Estimate:
    """In bytes; see the module's words."""

    needs: int
    peak: int


@dataclass(frozen=True)
class Part:
    """A network's memory in bytes: while it is there, and at most while it is loaded; its own and mapped files'."""

    own: float = 0
    mapped: float = 0
    loading: float = 0
    mapped_loading: float = 0


def estimate(folder: ModelFolder, dtype: str, memory: Memory, height: int, width: int) -> Estimate:
    """The peak of drawing one picture of height x width pixels, with guidance, by the engine torch on a CPU."""
    text, denoiser, decoder = _text_encoder(folder, memory), _denoiser(folder, dtype), _decoder(folder, memory)
    tokens = height * width / folder.size_multiple**2
    config = folder.transformer
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    step = 2 * tokens * channels * LAYER_ACTIVATIONS * max(2, BYTES[dtype])
    decoding = _decoding(folder, memory, height, width)
    work = ((text, 0.0), (denoiser, step), (decoder, decoding))
    moments = []  # own and mapped bytes, and how many of the mapped are in use
    held = Part()
    for part, _activations in work:
        before = Part() if memory.staged else held
        moments.append((before.own + part.loading, before.mapped + part.mapped_loading, before.mapped + part.mapped))
        held = Part(before.own + part.own, before.mapped + part.mapped)
    for part, activations in work:
        there = part if memory.staged else held
        moments.append((there.own + activations, there.mapped, there.mapped))
    return Estimate(
        needs=int(PROGRAM_OWN + max(own + used for own, _mapped, used in moments)),
        peak=int(PROGRAM + max(own + mapped for own, mapped, _used in moments)),
    )


def free_memory() -> int | None:
    """Bytes that a process may still take on this machine, or in its container; None where nobody says."""
    amounts = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        amounts += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            amounts.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError, IndexError):
        pass
    if not amounts and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(amounts) if amounts else None


def _text_encoder(folder: ModelFolder, memory: Memory) -> Part:
    if memory.text_states is not None:
        return Part()
    shapes, stored = _tensors(folder, "text_encoder")
    count = sum(size for size, _linear in shapes)
    width = BYTES[memory.text_encoder_dtype]
    if memory.text_encoder_8bit:
        linear = sum(size for size, is_linear in shapes if is_linear)
        largest = max(size for size, _linear in shapes)
        own = linear + (count - linear) * width
        return Part(own, 0, own + ROUNDING * 4 * largest, 4 * largest)
    if stored == count * width:  # computed with where it lies in the file
        return Part(0, stored, 0, stored)
    return Part(count * width, 0, count * width, stored)


def _denoiser(folder: ModelFolder, dtype: str) -> Part:
    shapes, stored = _tensors(folder, "transformer")
    count = sum(size for size, _linear in shapes)
    width = max(2, BYTES[dtype])
    packed = count * BYTES[dtype]
    in_place = stored == count * width  # packed from where it lies in the file
    return Part(packed, 0, packed + FUSED * count * width if in_place else max(packed, CAST * count * width), stored)


def _decoder(folder: ModelFolder, memory: Memory) -> Part:
    shapes, stored = _tensors(folder, "vae")
    count = sum(size for size, _linear in shapes)
    own = count * BYTES[memory.vae_dtype]
    at_random = 4 * count  # Diffusers fills it so first, in fp32
    return Part(own, 0, at_random if own == at_random else at_random + own, stored)


def _decoding(folder: ModelFolder, memory: Memory, height: int, width: int) -> float:
    config = read_object(folder.path / "vae" / "config.json")
    channels = config["block_out_channels"]
    finest = channels[min(1, len(channels) - 1)]
    pixels = height * width
    if memory.decode == "tiled":
        side = config.get("sample_size") or 512
        pixels = min(height, side) * min(width, side)
    numbers = DECODER_ACTIVATIONS[memory.decode] * finest * pixels + 6 * height * width
    return numbers * BYTES[memory.vae_dtype]


def _tensors(folder: ModelFolder, part: str) -> tuple[list[tuple[int, bool]], int]:
    """How many numbers each tensor of a part has and whether it is a linear layer's weight; and the bytes of all."""
    if part == "transformer" and folder.checkpoint is not None:
        state = folder.checkpoint.state
        return [(tensor.numel(), tensor.dim() == 2) for tensor in state.values()], sum(
            tensor.numel() * tensor.element_size() for tensor in state.values()
        )
    found, stored = [], 0
    for path in folder.weights:
        if path.parent != (folder.transformer_folder if part == "transformer" else folder.path / part):
            continue
        for name, entry in check_whole(path).items():
            if name == "__metadata__":
                continue
            size = 1
            for side in entry["shape"]:
                size *= side
            looked_up = any(word in name for word in ("shared", "embed", "relative_attention_bias"))
            found.append((size, len(entry["shape"]) == 2 and not looked_up))
            stored += size * STORED.get(entry["dtype"], 4)
    return found, stored
