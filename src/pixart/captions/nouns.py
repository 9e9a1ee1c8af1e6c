"""Which words of a caption are nouns, and how often each occurs: the vocabulary analysis of PixArt-α (section 2.4).

The tagger is TextBlob's, whose lexicon of 94,000 words and rules come inside its package: nothing is fetched. Its error
was measured on hand-tagged captions: `MEASURED`, which a test counts again.
"""

import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

VALID_ABOVE = 10  # "valid" nouns occur more often than this in the data set, says the paper
MOST_WORDS = 400_000  # distinct nouns that are counted in memory before they go to the disk; about 60 MB
LONGEST_CAPTION = 20_000  # characters that are tagged; nobody writes longer captions, but files may hold them

# Words with inner hyphens are one; the genitive's 's is apart, and so is each punctuation mark.
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\w\s]")
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class TaggerError:
    """How a tagger does on `tokens` words of hand-tagged captions: of what it calls nouns, the share that are
    (`precision`); of the nouns, the share that it finds (`recall`); and the nouns that it counts too many (`excess`).
    """

    tokens: int
    nouns: int
    precision: float
    recall: float
    excess: float


MEASURED = TaggerError(tokens=686, nouns=250, precision=0.941, recall=0.960, excess=0.020)


class NounTagger:
    """Finds nouns with TextBlob's tagger: a lexicon, rules on endings for other words, rules on neighbours for all."""

    def __init__(self) -> None:
        # The public `tag` leaves out the two sets of rules that come with the lexicon; with them a tenth of the nouns
        # that are none go. `find_tags` is where they can be asked for.
        from textblob._text import find_tags
        from textblob.en import lexicon

        self._find_tags = find_tags
        self._lexicon = lexicon

    def tagged(self, caption: str) -> list[tuple[str, bool]]:
        """The words of a caption, lower case, each with whether it is a noun, common or proper.

        Lower case because titles write every word large, and the tagger takes unknown large words for names.
        """
        tokens = _TOKEN.findall(caption[:LONGEST_CAPTION].lower())
        if not tokens:
            return []
        tags = self._find_tags(
            tokens, lexicon=self._lexicon, morphology=self._lexicon.morphology, context=self._lexicon.context
        )
        return [(word, tag.startswith("NN")) for word, (_, tag) in zip(tokens, tags, strict=True) if _WORD.search(word)]

    def nouns(self, caption: str) -> list[str]:
        """The nouns of a caption, lower case, in order, each as often as it stands there."""
        return [word for word, is_noun in self.tagged(caption) if is_noun]


@dataclass
class NounCounts:
    """How often each noun occurs, in bounded memory: beyond MOST_WORDS distinct nouns, counts go to sorted files."""

    most_words: int = MOST_WORDS
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    runs: list[IO[str]] = field(default_factory=list)

    def add(self, nouns: Counter[str]) -> None:
        self.total += nouns.total()
        self.counts.update(nouns)
        if len(self.counts) > self.most_words:
            run = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - it lives until the counts are read
            run.writelines(f"{word}\t{count}\n" for word, count in sorted(self.counts.items()))
            self.runs.append(run)
            self.counts = Counter()

    def summary(self, most_frequent: int = 20) -> "Vocabulary":
        """Distinct and valid nouns, and the most frequent ones."""
        distinct = valid = 0
        most: list[tuple[int, str]] = []
        for word, count in self._merged():
            distinct += 1
            valid += count > VALID_ABOVE
            if len(most) < most_frequent:
                heapq.heappush(most, (count, word))
            elif most:
                heapq.heappushpop(most, (count, word))
        ordered = sorted(most, key=lambda pair: (-pair[0], pair[1]))
        return Vocabulary(self.total, distinct, valid, {word: count for count, word in ordered})

    def _merged(self) -> Iterator[tuple[str, int]]:
        if not self.runs:
            yield from self.counts.items()
            return
        last, total = "", 0
        for word, count in heapq.merge(*map(_read, self.runs), sorted(self.counts.items())):
            if word != last:
                if last:
                    yield last, total
                last, total = word, 0
            total += count
        if last:
            yield last, total


@dataclass(frozen=True)
class Vocabulary:
    """`nouns` occurrences of `distinct` nouns, of which `valid` occur more than ten times; the most frequent ones."""

    nouns: int
    distinct: int
    valid: int
    most_frequent: dict[str, int]

    @property
    def ratio(self) -> float:
        """Valid among distinct nouns, 0 to 1."""
        return self.valid / self.distinct if self.distinct else 0.0


def _read(run: IO[str]) -> Iterator[tuple[str, int]]:
    run.seek(0)
    for line in run:
        word, _, count = line.rstrip("\n").partition("\t")
        yield word, int(count)
