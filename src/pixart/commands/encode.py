"""`pixart encode`: encode prompts into a file, to generate from them later without the text encoder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart.checkpoints.model_folder import ModelFolder, open_model_folder, text_hashes
from pixart.config import shown
from pixart.encoders.text_states import StatesHead, normalised, write_text_states
from pixart.errors import UsageError
from pixart.pipeline.request import make_request
from pixart.runtime.memory import Memory, check_memory


@dataclass
class Encode:
    """Encode prompts, and the negative prompt, into a file for generate --text-states; prints its path.

    Only the text encoder is loaded. The file serves every model that has the same one, and says which that is.
    """

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT ...")]]
    """Each in quotes."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(required)")] = None
    """The file to write, *.safetensors; it must be new."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder, or hub id, whose text encoder is used."""
    style: Annotated[str | None, shown("NAME", "none")] = None
    """One of the model's styles, put into the prompts."""
    negative_prompt: Annotated[str, shown("TEXT", "none")] = ""
    """What to steer away from; give it to generate again."""
    text_encoder: Annotated[Path | None, shown("FILE_OR_FOLDER", "the model's")] = None
    """A text encoder in the place of the model's: a T5 file as ComfyUI has it, or a folder."""
    text_encoder_8bit: bool = False
    """Keep the text encoder's linear layers as 8-bit whole numbers; not quite the same image."""
    text_encoder_dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """float32, or bfloat16; not quite the same image."""


def encode(options: Encode) -> int:
    """Run `pixart encode`."""
    memory = check_memory(
        Memory(text_encoder_8bit=options.text_encoder_8bit, text_encoder_dtype=options.text_encoder_dtype)
    )
    if options.output is None:
        raise UsageError("Name the file to write, with --output NAME.safetensors.")
    if options.output.suffix != ".safetensors":
        raise UsageError(f"States of texts are written as safetensors; {options.output} must end in .safetensors.")
    if options.output.exists():
        raise UsageError(f"{options.output} exists already; choose another name.")
    if not options.output.parent.is_dir():
        raise UsageError(f"There is no folder {options.output.parent} to write into.")
    folder = open_model_folder(options.model, text_encoder=options.text_encoder)
    request = make_request(
        folder, list(options.prompts), style=options.style, negative_prompt=options.negative_prompt, seed=0
    )
    prompts = list(dict.fromkeys(request.resolved_prompts))
    head, encoded = encode_texts(folder, prompts, request.resolved_negative_prompt, memory)
    for text, cut in zip(head.texts, head.cut, strict=True):
        if cut:
            print(f'"{text}" is longer than {head.max_tokens} tokens; left out: "{cut}"', file=sys.stderr)
    write_text_states(options.output, head, encoded)
    print(options.output)
    return 0


def encode_texts(folder: ModelFolder, prompts: list[str], negative: str, memory: Memory):
    """The head and the states of a file: prompts with their style, and the text to steer away from."""
    from pixart.encoders.text import TextEncoder
    from pixart.runtime.plan import LARGE

    large = sum(path.stat().st_size for path in folder.text_files) > LARGE
    dtype = "float32" if memory.text_encoder_dtype == "auto" else memory.text_encoder_dtype
    texts = list(dict.fromkeys(normalised(text) for text in (*prompts, negative)))
    encoder = TextEncoder(
        folder.text_encoder,
        folder.tokenizer,
        folder.text_encoder_class,
        folder.max_tokens,
        dtype=dtype,
        eight_bit=memory.text_encoder_8bit,
        arithmetic=dtype,
        streamed=large and not memory.text_encoder_8bit,
    )
    encoded = encoder.encode_all(texts)
    head = StatesHead(
        prompts=tuple(prompts),
        texts=tuple(texts),
        cut=tuple(text.cut for text in encoded),
        max_tokens=folder.max_tokens,
        encoder=text_hashes(folder),
        text_encoder_8bit=memory.text_encoder_8bit,
        text_encoder_dtype=dtype,
    )
    return head, encoded
