"""How to draw in less memory: what may be chosen, without torch. `sampling/parts.py` does it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pixart.errors import UsageError
from pixart.sampling.prompts import unknown

DECODE = ("whole", "sequential", "tiled")
PART_DTYPES = ("float32", "bfloat16")
# These round differently from the networks whole and in fp32, so single pixels, or many, may differ.
CHANGE_BYTES = ("text_encoder_8bit", "decode", "text_encoder_dtype", "vae_dtype")


@dataclass(frozen=True)
class Memory:
    """Ways to draw in less memory; the default is none of them. docs/memory.md has what each saves.

    `staged`, `offload` and `text_states` change no byte of a picture, the others may.
    """

    staged: bool = False
    """Load the networks one after another, each for all texts or pictures, and free it before the next: the peak is the
    largest of them instead of their sum. The pictures come together, at the end."""
    offload: bool = False
    """On a GPU: keep the networks in the computer's memory, and move each to the GPU while it works."""
    text_encoder_8bit: bool = False
    """Keep the text encoder's linear layers as 8-bit whole numbers; not quite the same picture."""
    decode: Annotated[str, arg(metavar="NAME")] = "whole"
    """How to decode: whole; sequential, strip by strip, the same picture to rounding; tiled, in tiles that are blended,
    whose tones differ a little."""
    text_encoder_dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """float32 or bfloat16; not quite the same picture."""
    vae_dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """float32 or bfloat16; not quite the same picture."""
    text_states: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Take the texts from a file of `pixart encode`, and load no text encoder."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What is not the default, for a picture's settings; without `text_states`, of which no pixel tells."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "text_states"}
        return {name: value for name, value in values.items() if value != getattr(Memory, name)}

    @property
    def changes_bytes(self) -> tuple[str, ...]:
        """The options in force that may change bytes of the picture."""
        return tuple(name for name in self.chosen if name in CHANGE_BYTES)


PLAIN = Memory()


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
