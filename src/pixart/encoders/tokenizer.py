"""Words to token ids, without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixart.encoders.text_files import encoder_config
from pixart.errors import PixArtError, reason_of
from pixart.files import read_json_object

MAX_TOKENS = 120  # of PixArt-α, and what its stock pipeline cuts at
SIGMA_TOKENS = 300  # of PixArt-Σ, and what its stock pipeline cuts at
PAD_TO = 16
MAX_GROWTH = 1000  # times that the rules of a tokenizer.json may lengthen a text
MAX_RULES = 200
PROBES = ("", "a", "a red fox, 3D: \N{FOX FACE} \u00c9 1.5\n</s> [SEP]")
UNKNOWN = ("[UNK]", "<unk>")  # what BERT and T5 call the token of all that is not in their vocabulary


class Tokenizer:
    """The tokenizer of a model folder, cutting at what its text encoder reads. Holds no state between calls."""

    def __init__(self, folder: Path, encoder: Path, max_tokens: int = MAX_TOKENS):
        """Load from disk only: `folder` is the tokenizer's, `encoder` the text encoder's folder or file.

        `max_tokens` is what the transformer was trained on.

        Raises:
            PixArtError: one of them does not hold what it should; names it.
        """
        self.folder, self.tokenizer = folder, _load(folder)
        config = encoder_config(encoder)
        positions, words = (_count(config, name) for name in ("max_position_embeddings", "vocab_size"))
        # BERT has a table of positions, T5 has none and takes any length.
        self.positions = positions or max_tokens + PAD_TO
        self.words = words
        self.max_tokens = min(max_tokens, self.positions)

    def tokenize(self, text: str) -> tuple[list[int], str]:
        """Token ids with the special tokens, at most `max_tokens`, and the words that did not fit."""
        encoding, kept = self._encoded(text)
        ids = [encoding.ids[index] for index in kept]
        if len(ids) == len(encoding.ids):
            return ids, ""
        start = encoding.offsets[next(index for index in range(len(encoding.ids)) if index not in kept)][0]
        while start > 0 and not text[start - 1].isspace():
            start -= 1  # a word cut in its middle is named whole
        return ids, text[start:].strip()

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `tokenize` stands in the text, from and to; of a special token these are equal."""
        encoding, kept = self._encoded(text)
        return [encoding.offsets[index] for index in kept]

    def _encoded(self, text: str) -> tuple[Any, list[int]]:
        """A text as `tokenizers` encodes it, and the numbers of the tokens that fit."""
        with _panics(self.folder):
            encoding = self.tokenizer.encode(text)
        if self.words is not None and max(encoding.ids, default=0) >= self.words:
            raise PixArtError(
                f"The tokenizer in {self.folder} has the token {max(encoding.ids)}, and the text encoder knows "
                f"{self.words}; put the one there that the text encoder was trained with."
            )
        count = len(encoding.ids)
        if count <= self.max_tokens:
            return encoding, list(range(count))
        closing = 0  # special tokens at the end (BERT's [SEP], T5's </s>), which stay
        while closing < count and encoding.special_tokens_mask[-1 - closing]:
            closing += 1
        return encoding, [*range(self.max_tokens - closing), *range(count - closing, count)]

    def unknown(self, text: str) -> list[str]:
        """The parts of a text that the vocabulary does not have, such as emoji: the encoder reads them all alike."""
        ids = [self.tokenizer.token_to_id(token) for token in UNKNOWN]
        encoding = self.tokenizer.encode(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[start:end] for token, (start, end) in pairs if token in ids))

    def padded(self, text: str) -> tuple[list[int], list[int], str]:
        """One text as the stock pipeline reads it, lower-cased and stripped: ids and mask, and the words cut.

        Padded by its own length (to a multiple of 16), never by its neighbours'.
        """
        ids, cut = self.tokenize(text.lower().strip())
        padding = min(-len(ids) % PAD_TO, self.positions - len(ids))
        return ids + [0] * padding, [1] * len(ids) + [0] * padding, cut


def _load(folder: Path):
    """A `tokenizers.Tokenizer` that neither cuts nor pads: many stored ones are set to do both."""
    from tokenizers import Tokenizer as Loaded

    file = folder / "tokenizer.json"
    if file.is_file():
        _check_growth(read_json_object(file), file)
    with _panics(folder):
        tokenizer = Loaded.from_file(str(file)) if file.is_file() else _from_sentencepiece(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for text in PROBES:  # what is wrong with the rules shows at the first text
            if len(tokenizer.encode(text).ids) > 10 * len(text) + 100:
                raise PixArtError(f"The tokenizer in {folder} makes far too many tokens of a text; copy it again.")
    return tokenizer


def _from_sentencepiece(folder: Path) -> Any:
    """The conversion of transformers: what stock Diffusers reads `spiece.model` with, T5's only tokenizer file."""
    from sentencepiece import SentencePieceProcessor
    from transformers import T5TokenizerFast

    if not (folder / "spiece.model").is_file():
        raise PixArtError(f"{folder / 'tokenizer.json'} is missing, and there is no spiece.model either.")
    if not SentencePieceProcessor(model_file=str(folder / "spiece.model")).get_piece_size():
        raise PixArtError("spiece.model is empty")  # transformers makes a tokenizer without a vocabulary of it
    return T5TokenizerFast.from_pretrained(folder, local_files_only=True).backend_tokenizer


def _check_growth(value: Any, file: Path) -> None:
    """Refuse rules that may make a text very long: each replacement of a letter by several multiplies its length."""
    growth, steps, waiting = 1.0, 0, [value.get(name) for name in ("normalizer", "pre_tokenizer")]
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, dict):
            steps += 1
            pattern, content = rule.get("pattern"), rule.get("content")
            if isinstance(content, str):
                fixed = pattern.get("String") if isinstance(pattern, dict) else None
                growth *= max(1.0, len(content) / max(1, len(fixed or "")))
            waiting += [one for one in rule.values() if isinstance(one, dict | list)]
        elif isinstance(rule, list):
            waiting += rule
        if growth > MAX_GROWTH or steps > MAX_RULES:
            raise PixArtError(f"The rules in {file} make a text far too long, or are too many; copy it again.")


@contextmanager
def _panics(folder: Path) -> Iterator[None]:
    """One sentence for what tokenizers raises: bare Exceptions, and panics of Rust, which are BaseExceptions."""
    try:
        yield
    except (PixArtError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise PixArtError(f"The tokenizer in {folder} cannot be used: {reason_of(error)}.") from None


def _count(config: dict, name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None
