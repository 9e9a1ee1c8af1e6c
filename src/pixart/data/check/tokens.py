"""How long captions are in tokens, and which words a text encoder would not read."""

from dataclasses import dataclass, field
from pathlib import Path

from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import UsageError

TOGETHER = 512  # captions that are tokenized in one call
LONGEST = 512  # the histogram's last bin holds all captions of this many tokens and more


class TokenCounter:
    """Counts tokens as training and drawing would: lower-cased, stripped, with the special tokens."""

    def __init__(self, tokenizer: Path, text_encoder: Path, max_tokens: int | None):
        """Folders in Hugging Face layout; without `max_tokens` the limit is the text encoder's, at most 120.

        Raises UsageError for a limit below 2, PixArtError for a folder that holds no tokenizer.
        """
        self.tokenizer = Tokenizer(tokenizer, text_encoder)
        if max_tokens is not None:
            if max_tokens < 2:
                raise UsageError(f"--max-tokens is {max_tokens}; give at least 2.")
            self.tokenizer.max_tokens = max_tokens
        self.max_tokens = self.tokenizer.max_tokens

    def counts(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        encodings = self.tokenizer.tokenizer.encode_batch_fast([text.lower().strip() for text in texts])
        return [len(encoding.ids) for encoding in encodings]

    def cut(self, text: str) -> str:
        """The words that do not fit."""
        return self.tokenizer.tokenize(text.lower().strip())[1]


@dataclass
class CaptionLengths:
    """Lengths of all captions of one source: `histogram[n]` captions have n tokens; `cut` have more than the limit."""

    captions: int = 0
    cut: int = 0
    tokens: int = 0  # after the cut: what the text states will hold
    histogram: list[int] = field(default_factory=lambda: [0] * (LONGEST + 1))

    def add(self, count: int, limit: int) -> None:
        self.captions += 1
        self.cut += count > limit
        self.tokens += min(count, limit)
        self.histogram[min(count, LONGEST)] += 1
