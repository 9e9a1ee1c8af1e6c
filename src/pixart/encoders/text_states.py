"""Texts that were encoded before: their states in a file, to generate where there is no room for the text encoder.

A safetensors file: for the text number i `states.<i>` (L, T) fp32 and `mask.<i>` (L,) bool, padded as the encoder
padded it, so that an image is the same as with the encoder. Its head says what made it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.config import structure
from pixart.errors import PixArtError, UsageError
from pixart.files import parse_json, replacing

if TYPE_CHECKING:
    from pixart.encoders.text import EncodedText

FORMAT = "pixart text states 1"
SHOWN = 5  # texts in a message


@dataclass(frozen=True)
class StatesHead:
    """What a file of text states holds and was made with."""

    prompts: tuple[str, ...]  # with the words of their style
    texts: tuple[str, ...]  # the prompts and the negative prompt, lower-cased and stripped, as the encoder read them
    cut: tuple[str, ...]  # the words of each that were over the limit
    max_tokens: int
    encoder: dict[str, str]  # hashes of the text encoder's weights, by file name (`pixart.checkpoints.hashes`)
    text_encoder_8bit: bool
    text_encoder_dtype: str

    def __post_init__(self):
        if not self.prompts or not self.texts or len(self.texts) != len(self.cut):
            raise UsageError("it has no texts, or not as many cuts")


def normalised(text: str) -> str:
    """A text as the encoder reads it; two texts that are the same so have the same states."""
    return text.lower().strip()


def write_text_states(path: Path, head: StatesHead, encoded: "list[EncodedText]") -> None:
    """Write the states of the head's texts, completely or not at all. Raises PixArtError if the disk refuses."""
    tensors = {}
    for number, text in enumerate(encoded):
        tensors |= {f"states.{number}": text.states[0].float(), f"mask.{number}": text.mask[0]}
    _save(tensors, path, {"format": FORMAT, "head": json.dumps(asdict(head))})


def read_head(path: Path) -> tuple[StatesHead, int]:
    """What the file says of itself, and the width T of its states; no torch is needed.

    Raises:
        UsageError: there is no such file. PixArtError: it is damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"There is no file {path}; write one with pixart encode.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError) as error:
        raise PixArtError(
            f"{path} is no file of text states, or damaged ({error}); write it with pixart encode."
        ) from None
    if metadata.get("format") != FORMAT:
        raise PixArtError(f"{path} holds no text states; give a file that pixart encode wrote.")
    try:
        head = structure(parse_json(metadata["head"], str(path)), StatesHead, str(path))
        widths = {shapes[f"states.{i}"][1] for i in range(len(head.texts))}
        whole = all(shapes[f"mask.{i}"] == shapes[f"states.{i}"][:1] for i in range(len(head.texts)))
    except (KeyError, IndexError, PixArtError):
        widths, whole = set(), False
    if not whole or len(widths) != 1:
        raise PixArtError(f"{path} is damaged: its states are not those that its head names; write it again.")
    return head, widths.pop()


def check_texts(path: Path, texts: list[str], *, max_tokens: int, width: int) -> StatesHead:
    """Whether a model that reads `max_tokens` tokens of `width` can generate from `texts` with this file.

    Raises:
        UsageError: it cannot; says why. PixArtError: the file is damaged.
    """
    head, found = read_head(path)
    if (head.max_tokens, found) != (max_tokens, width):
        raise UsageError(
            f"{path} is for another model: its texts have up to {head.max_tokens} tokens of width {found}, and this "
            f"model reads {max_tokens} of width {width}; write one for it with pixart encode --model."
        )
    for text in texts:
        if normalised(text) not in head.texts:
            shown = ", ".join(f'"{known}"' for known in head.texts[:SHOWN])
            more = f" and {len(head.texts) - SHOWN} more" if len(head.texts) > SHOWN else ""
            raise UsageError(
                f'{path} holds no states of "{normalised(text)}"; it holds {shown}{more}. Add it with pixart encode.'
            )
    return head


class StoredTexts:
    """In the place of a `TextEncoder`: the texts of a file, and no others. Reads a text when it is asked for."""

    def __init__(self, path: Path):
        """Raises as `read_head` does."""
        self.path = path
        self.head, self.width = read_head(path)
        self.max_tokens = self.head.max_tokens

    def encode(self, text: str) -> "EncodedText":
        """What the encoder made of this text. UsageError for one that is not in the file, PixArtError for NaN."""
        from safetensors import safe_open

        from pixart.encoders.text import EncodedText

        check_texts(self.path, [text], max_tokens=self.max_tokens, width=self.width)
        number = self.head.texts.index(normalised(text))
        with safe_open(self.path, "pt") as file:
            states, mask = file.get_tensor(f"states.{number}"), file.get_tensor(f"mask.{number}")
        if not states.isfinite().all() or not mask.any():
            raise PixArtError(f'{self.path} is damaged: the states of "{normalised(text)}" cannot be; write it again.')
        return EncodedText(states.float()[None], mask.bool()[None], self.head.cut[number])


class TextCache:
    """States of texts in a folder: a file each, named by a hash of the text and of all that decides its states."""

    def __init__(self, folder: Path, made_by: dict[str, str]):
        """`made_by`: hashes of the text encoder's weights, dtypes and whatever else changes a number."""
        self.folder, self.made_by = folder, made_by

    def read(self, text: str) -> "EncodedText | None":
        """What `write` has kept; None where there is nothing, or it is damaged."""
        from safetensors import SafetensorError, safe_open

        from pixart.encoders.text import EncodedText

        try:
            with safe_open(self._path(text), "pt") as file:
                return EncodedText(file.get_tensor("states"), file.get_tensor("mask"), file.metadata()["cut"])
        except (OSError, SafetensorError, KeyError, TypeError):
            return None

    def write(self, text: str, encoded: "EncodedText") -> None:
        """Raises PixArtError if the disk refuses."""
        _save({"states": encoded.states, "mask": encoded.mask}, self._path(text), {"cut": encoded.cut})

    def _path(self, text: str) -> Path:
        what = json.dumps([normalised(text), self.made_by], sort_keys=True)
        return self.folder / f"{hashlib.sha256(what.encode()).hexdigest()}.safetensors"


def _save(tensors: dict, path: Path, metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as part:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise PixArtError(f"{path} cannot be written ({error}); make room or choose another place.") from None
