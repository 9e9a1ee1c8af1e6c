"""A SentencePiece model (`spiece.model`), the only tokenizer in the published PixArt folders, without its library.

The file is a protocol buffer (google/sentencepiece `src/sentencepiece_model.proto`): pieces with scores, and how text
is normalised before it is cut into them. `tokenizers` knows the unigram model and the normaliser's table. Only where a
text spells out a control piece ("</s>") are the tokens other than the library's: it is taken for that piece, as stock
Diffusers does.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.errors import PixArtError
from pixart.files import read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 << 20
UNIGRAM = 1
USER_DEFINED, BYTE = 4, 6  # types of pieces
# Fields of the messages, by number.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, UNKNOWN_ID, END_ID = 3, 40, 42
CHARACTERS, DUMMY_PREFIX, ONE_SPACE = 2, 3, 4


def read_sentencepiece(path: Path) -> "Tokenizer":
    """The tokenizer in a `spiece.model`, ending every text with its end token, as T5 reads it.

    Raises:
        PixArtError: the file is damaged, or holds another model than a unigram one.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        pieces, trainer, normalizer = _read(read_bytes(path, MAX_BYTES))
        if trainer.get(MODEL_TYPE, UNIGRAM) != UNIGRAM:
            raise PixArtError(f"{path} holds no unigram model, and pixart reads only those (T5's is one).")
        unknown, end = trainer.get(UNKNOWN_ID, 0), trainer.get(END_ID, 2)
        vocabulary = [(name, score) for name, score, _ in pieces]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unknown, any(kind == BYTE for *_, kind in pieces)))
        steps = [normalizers.Precompiled(normalizer[CHARACTERS])] if normalizer.get(CHARACTERS) else []
        if normalizer.get(ONE_SPACE, 1):
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        prefix = "always" if normalizer.get(DUMMY_PREFIX, 1) else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name, _, kind in pieces if kind == USER_DEFINED])
        last = vocabulary[end][0]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {last}", special_tokens=[(last, end)])
    except PixArtError:
        raise
    except Exception as error:  # a damaged file can fail anywhere, in tokenizers with a bare Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"{path} is no SentencePiece model, or damaged ({reason}); copy it again.") from None
    return tokenizer


def _read(content: bytes) -> tuple[list[tuple[str, float, int]], dict, dict]:
    """Pieces (text, score, type), and the two other messages by the numbers of their fields."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(content):
        if number == PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(SCORE, bytes(4)))[0]
            pieces.append((piece[PIECE].decode(), score, piece.get(TYPE, 1)))
        elif number == TRAINER:
            trainer = dict(_fields(value))
        elif number == NORMALIZER:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("there are no pieces in it")
    return pieces, trainer, normalizer


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: whole numbers as int, all else as the bytes that they are."""
    at = 0
    while at < len(content):
        key, at = _number(content, at)
        width = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 0:
            value, at = _number(content, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            width, at = _number(content, at)
        if width is None or at + width > len(content):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, content[at : at + width]
        at += width


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, lowest first, and where the next field begins."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
