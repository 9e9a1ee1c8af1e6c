r"""Weights in a prompt, as A1111 writes them: (word), (word:1.2), [word]; \( is a bracket itself.

The text is encoded without the brackets, and the states of a token are multiplied by the weight of its letters. A1111
multiplies CLIP's states so, and then restores their mean over the text, which for T5 lies near 0: that is left out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import UsageError, shown

STRONGER = 1.1  # by a pair of round brackets; by square ones as much weaker
MOST = 10.0
DEEPEST = 100  # brackets that are open at once
PIECES = re.compile(r"\\[()\[\]\\]|:\s*([+-]?\d*\.?\d+)\s*\)|[()\[\]]|[^()\[\]\\:]+|[:\\]")
LIKE_A_WEIGHT = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)")


@dataclass(frozen=True)
class WeightedText:
    """A text as the encoder reads it, lower-cased and stripped, and the weight of each of its letters."""

    text: str
    weights: tuple[float, ...]

    def of_tokens(self, tokenizer: Tokenizer) -> list[float]:
        """The weight of each token; special ones have 1."""
        return [1.0 if start == end else self.weights[end - 1] for start, end in tokenizer.spans(self.text)]


def read_weights(prompt: str) -> WeightedText:
    """Take the brackets out of a prompt. What is not closed counts to its end, and what was not opened is a letter.

    Raises:
        UsageError: a weight is not from 0 to 10, or more than 100 brackets are open.
    """
    letters: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each began

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]
        if not 0 <= min(weights[start:], default=1) <= max(weights[start:], default=1) <= MOST:
            raise UsageError(
                f"A weight in the prompt {shown(prompt, 100)} is not from 0 to {MOST:g}, brackets together."
            )

    for match in PIECES.finditer(prompt.lower()):
        piece = match[0]
        if piece in opened:
            opened[piece].append(len(letters))
            if sum(map(len, opened.values())) > DEEPEST:
                raise UsageError(f"More than {DEEPEST} brackets are open in the prompt; write weights as (word:1.2).")
        elif match[1] is not None and opened["("]:
            close("(", float(match[1]))
        elif piece == ")" and opened["("]:
            close("(", STRONGER)
        elif piece == "]" and opened["["]:
            close("[", 1 / STRONGER)
        else:
            plain = piece[1:] if piece[0] == "\\" and len(piece) == 2 else piece
            letters += plain
            weights += [1.0] * len(plain)
    for bracket, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        while opened[bracket]:
            close(bracket, factor)
    text = "".join(letters)
    first = len(text) - len(text.lstrip())
    text = text.strip()
    return WeightedText(text, tuple(weights[first : first + len(text)]))


def have_weights(prompts: Iterable[str]) -> bool:
    """Whether one of them has a weight in it such as (word:1.2)."""
    return any(LIKE_A_WEIGHT.search(prompt) for prompt in prompts)
