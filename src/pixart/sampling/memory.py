"""How to draw in less memory: what may be chosen, without torch. `sampling/parts.py` does it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pixart.errors import UsageError
from pixart.sampling.prompts import unknown

DECODE = ("whole", "sequential", "tiled")
PART_DTYPES = ("float32", "bfloat16")
# These round differently from the networks whole and in fp32, so single pixels, or many, may differ.
CHANGE_BYTES = ("text_encoder_8bit", "decode", "text_encoder_dtype", "vae_dtype")


@dataclass(frozen=True)
class Memory:
    """Ways to draw in less memory; the first two never change a byte of a picture. The default is none of them.

    Attributes:
        staged: load the text encoder, read all texts, free it; load the denoiser, draw all latents, free it; load the
            autoencoder and decode. The peak is the largest of the three instead of their sum; each call loads again.
        offload: on a GPU, keep the parts in the computer's memory and move each to the GPU while it works. On a CPU
            there is nothing to move.
        text_encoder_8bit: the text encoder's linear layers as 8-bit whole numbers, scaled by output channel.
        decode: "whole", one picture after another; "sequential", strip after strip in the large layers, which is the
            same sum in another order; "tiled", in overlapping tiles that are blended, where each tile has statistics of
            its own and so other tones.
        text_encoder_dtype: "float32" or "bfloat16".
        vae_dtype: "float32" or "bfloat16".
        text_states: a file that `pixart encode` wrote; its texts are drawn without any text encoder.
    """

    staged: bool = False
    offload: bool = False
    text_encoder_8bit: bool = False
    decode: str = "whole"
    text_encoder_dtype: str = "float32"
    vae_dtype: str = "float32"
    text_states: Path | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """What is not the default, for a picture's settings; without `text_states`, of which no pixel tells."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "text_states"}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    @property
    def changes_bytes(self) -> tuple[str, ...]:
        """The options in force that may change bytes of the picture."""
        return tuple(name for name in self.chosen if name in CHANGE_BYTES)


def check_memory(memory: Memory) -> Memory:
    """The same, if all its values can be; else UsageError with one sentence."""
    for name, value, known in (
        ("way to decode", memory.decode, DECODE),
        ("dtype of the text encoder", memory.text_encoder_dtype, PART_DTYPES),
        ("dtype of the autoencoder", memory.vae_dtype, PART_DTYPES),
    ):
        if value not in known:
            raise UsageError(unknown(name, str(value), known))
    return memory
