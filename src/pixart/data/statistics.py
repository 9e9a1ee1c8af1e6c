"""The nouns of a data set's captions: the vocabulary analysis of PixArt-α (section 2.4, table 1), by source of caption.

The tagger is TextBlob's, whose lexicon of 94,000 words and rules come inside its package: nothing is fetched.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pixart.data.pairs import Pair, Problem

VALID_ABOVE = 10  # "valid" nouns occur more often than this in the data set, says the paper
LONGEST_CAPTION = 20_000  # characters that are tagged; nobody writes longer captions, but files may hold them
MOST_FREQUENT = 20
# On 686 words of hand-tagged captions, 250 of them nouns, which a test counts again: of what the tagger calls nouns
# the share that are, of the nouns the share that it finds, and the nouns that it counts too many.
TAGGER = {"words": 686, "nouns": 250, "precision": 0.941, "recall": 0.960, "excess": 0.020}

# Words with inner hyphens are one; the genitive's 's is apart, and so is each punctuation mark.
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\w\s]")
_WORD = re.compile(r"\w")


@dataclass
class Source:
    """What was counted in the captions of one source.

    `nouns_per_image` is that of one caption per image: an image with several captions of a source has the mean of them.
    """

    name: str
    images: int = 0
    captions: int = 0
    per_image: float = 0.0  # the sum over images of their mean
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def row(self) -> dict[str, object]:
        """As in the paper's table: nouns per image, nouns, distinct nouns, valid ones, and valid / distinct."""
        valid = sum(count > VALID_ABOVE for count in self.counts.values())
        by_count = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT]
        return {
            "name": self.name,
            "images": self.images,
            "captions": self.captions,
            "nouns_per_image": self.per_image / self.images,
            "nouns": self.counts.total(),
            "distinct": len(self.counts),
            "valid": valid,
            "ratio": valid / len(self.counts) if self.counts else 0.0,
            "most_frequent": dict(by_count),
        }


# In the paper in thousands and millions.
PAPER = [
    {"name": name, "nouns_per_image": each, "nouns": nouns, "distinct": distinct, "valid": valid, "ratio": ratio}
    for name, each, nouns, distinct, valid, ratio in (
        ("LAION", 6.4, 72_000_000, 2_461_000, 210_000, 0.085),
        ("LAION-LLaVA", 20.9, 233_900_000, 646_000, 85_000, 0.133),
        ("SAM-LLaVA", 29.3, 327_900_000, 124_000, 23_000, 0.186),
        ("Internal", 12.2, 136_600_000, 582_000, 152_000, 0.261),
    )
]


def tagged(caption: str) -> list[tuple[str, bool]]:
    """The words of a caption, lower case, each with whether it is a noun, common or proper.

    Lower case because titles write every word large, and the tagger takes unknown large words for names.
    """
    # The public `tag` leaves out the two sets of rules that come with the lexicon; with them a tenth of the nouns that
    # are none go. `find_tags` is where they can be given.
    from textblob._text import find_tags
    from textblob.en import lexicon

    tokens = _TOKEN.findall(caption[:LONGEST_CAPTION].lower())
    if not tokens:
        return []
    tags = find_tags(tokens, lexicon=lexicon, morphology=lexicon.morphology, context=lexicon.context)
    return [(word, tag.startswith("NN")) for word, (_, tag) in zip(tokens, tags, strict=True) if _WORD.search(word)]


def nouns(caption: str) -> list[str]:
    """The nouns of a caption, lower case, in order, each as often as it stands there."""
    return [word for word, is_noun in tagged(caption) if is_noun]


def count(
    pairs: Iterable[Pair | Problem], progress: Callable[[int], None] = lambda images: None
) -> tuple[list[dict[str, object]], int]:
    """The `Source.row` of every source, by name, and the number of images. Memory grows with the distinct nouns."""
    sources: dict[str, Source] = {}
    images = 0
    for pair in pairs:
        if isinstance(pair, Problem):
            continue
        found: dict[str, list[int]] = {}
        for caption in pair.captions:
            words = nouns(caption.text)
            sources.setdefault(caption.source, Source(caption.source)).counts.update(words)
            found.setdefault(caption.source, []).append(len(words))
        for name, numbers in found.items():
            sources[name].images += 1
            sources[name].captions += len(numbers)
            sources[name].per_image += sum(numbers) / len(numbers)
        images += 1
        progress(images)
    return [sources[name].row for name in sorted(sources)], images
