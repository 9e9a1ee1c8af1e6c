"""What computes networks and how they are held in memory; needs no torch. docs/memory.md says what each saves."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pixart.config import shown, unknown
from pixart.errors import UsageError
from pixart.runtime.device import DTYPES

DECODE = ("auto", "whole", "tiled")
TEXT_ENCODER_MODES = ("auto", "loaded", "streamed")
PATHS = ("text_encoder", "text_states", "text_cache")
PART_DTYPES = ("auto", *DTYPES)
USUAL = {"text_encoder_mode": "loaded", "decode": "whole"}  # not named in image metadata


@dataclass(frozen=True)
class Computing:
    """What computes a model; `pixart.pipeline.networks.choose_runtime` checks it and decides what is auto."""

    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """onnx (ONNX Runtime, needs the folder's graphs), torch, or auto: the first where it can be had."""
    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32; with torch also bfloat16 and float16; with onnx int8, faster and not quite the same image; or auto."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu; with torch also cuda and mps; or auto: the CPU where the folder has graphs, else the fastest there is."""


@dataclass(frozen=True)
class Memory:
    """How the networks are held in memory, the text encoder above all, which is the largest.

    What is left out is decided for the machine: `pixart.runtime.plan`.

    `staged`, `offload`, `text_states` and `text_cache` change no pixel, the others may.
    """

    staged: bool = False
    """Load the networks one after another, each for all texts or images, and free it before the next: the peak is the
    largest of them instead of their sum. The images come together, at the end."""
    offload: bool = False
    """On a GPU: keep the networks in the computer's memory, and move each to the GPU while it works."""
    text_encoder: Annotated[Path | None, shown("FILE_OR_FOLDER", "the model's")] = None
    """A text encoder in the place of the model's: a T5 file as ComfyUI has it, such as t5xxl_fp16.safetensors, or a
    folder. The model needs none of its own then."""
    text_encoder_mode: Annotated[str, arg(metavar="NAME")] = "auto"
    """loaded; streamed, which reads it from its file layer by layer for every few texts; or auto: what fits."""
    text_encoder_8bit: bool = False
    """Keep the text encoder's linear layers as 8-bit whole numbers; not quite the same image."""
    decode: Annotated[str, arg(metavar="NAME")] = "auto"
    """whole; tiled, in overlapping tiles that are blended, whose tones differ a little; or auto: what fits."""
    text_encoder_dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32, bfloat16, float16, or auto: by the dtype of the denoiser."""
    vae_dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32, bfloat16, float16, or auto: bfloat16 on a GPU that computes in it, else float32."""
    text_states: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Take the encoded texts from a file of `pixart encode`, and load no text encoder."""
    text_cache: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Keep the encoded texts in this folder, and take from it what an earlier run has encoded."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What is not the default, for image metadata; without paths, which change no pixel."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in PATHS}
        return {name: value for name, value in values.items() if value not in (getattr(Memory, name), USUAL.get(name))}


PLAIN = Memory()
AUTO = Computing()


def check_memory(memory: Memory) -> Memory:
    """The same, if all its values can be; else UsageError with one sentence."""
    for name, value, known in (
        ("way to decode", memory.decode, DECODE),
        ("way to hold the text encoder", memory.text_encoder_mode, TEXT_ENCODER_MODES),
        ("dtype of the text encoder", memory.text_encoder_dtype, PART_DTYPES),
        ("dtype of the autoencoder", memory.vae_dtype, PART_DTYPES),
    ):
        if value not in known:
            raise UsageError(unknown(name, str(value), known))
    if memory.text_encoder_mode == "streamed" and memory.text_encoder_8bit:
        raise UsageError("A streamed text encoder is not kept in memory, in 8 bits or otherwise; leave one out.")
    return memory
