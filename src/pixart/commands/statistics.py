"""`pixart data statistics PATH`: the nouns of a data set's captions, by source, beside table 1 of the PixArt-α paper.

The vocabulary analysis of section 2.4. The tagger is TextBlob's, whose lexicon of 94,000 words and rules come inside
its package: nothing is fetched.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pixart.commands.dataset_options import DatasetOptions
from pixart.config import shown
from pixart.data.pairs import Pair, Problem, printable
from pixart.errors import PixArtError, UsageError
from pixart.files import write_json
from pixart.progress import Progress

VALID_ABOVE = 10  # "valid" nouns occur more often than this in the data set, says the paper
LONGEST_CAPTION = 20_000  # characters that are tagged; nobody writes longer captions, but files may hold them
MOST_FREQUENT = 20
# Words with inner hyphens are one; the genitive's 's is apart, and so is each punctuation mark.
TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\w\s]")
COLUMNS = ("nouns_per_image", "nouns", "distinct", "valid", "ratio")
PAPER = {
    "LAION": (6.4, 72_000_000, 2_461_000, 210_000, 0.085),
    "LAION-LLaVA": (20.9, 233_900_000, 646_000, 85_000, 0.133),
    "SAM-LLaVA": (29.3, 327_900_000, 124_000, 23_000, 0.186),
    "Internal": (12.2, 136_600_000, 582_000, 152_000, 0.261),
}


@dataclass(frozen=True)
class Statistics:
    """Count the nouns in the captions of a data set, by their source, beside table 1 of the PixArt-α paper."""

    path: Annotated[Path, arg(metavar="PATH")]
    """Folder or file with captions; docs/data.md lists what is read."""
    json: Annotated[Path | None, shown("FILE", "none")] = None
    """Write all counts and the most frequent nouns as JSON."""
    dataset: Annotated[DatasetOptions, arg(name="")] = field(default_factory=DatasetOptions)


def statistics(options: Statistics) -> int:
    """Run `pixart data statistics`; prints the table, and writes the JSON file."""
    # Counting may take an hour: what is wrong with the file comes first.
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise UsageError(f"{options.json} cannot be written: it is a folder, or its folder is not there.")
    dataset = options.dataset.open(options.path)
    with Progress() as progress:
        progress.start("counting", dataset.count_hint(), unit="images")
        rows, images = count(dataset.pairs(), progress.update)
    if not rows:
        raise PixArtError(f"{options.path} ({dataset.layout}) has no captions: {images:,} images, none with one.")
    paper = [{"name": name} | dict(zip(COLUMNS, values, strict=True)) for name, values in PAPER.items()]
    if options.json is not None:
        counted = {"path": str(options.path), "images": images, "sources": rows, "paper": paper}
        write_json(options.json, counted | {"valid_above": VALID_ABOVE})
    print(
        f"{'captions':<24}{'images':>11}{'nouns/image':>13}{'nouns':>13}{'distinct':>11}{'valid':>9}{'valid/distinct':>16}"
    )
    for row in [*rows, *({**row, "name": f"paper: {row['name']}"} for row in paper)]:
        counts = f"{row['nouns']:>13,}{row['distinct']:>11,}{row['valid']:>9,}{row['ratio']:>16.1%}"
        print(f"{printable(row['name']):<24}{row.get('images', ''):>11}{row['nouns_per_image']:>13.1f}{counts}")
    print(
        f"Valid nouns occur more than {VALID_ABOVE} times. The paper's rows stand for about 11 million images each, "
        "and distinct and valid nouns grow with the number of images; nouns/image compares with any. See docs/data.md.",
        file=sys.stderr,
    )
    return 0


def count(
    pairs: Iterable[Pair | Problem], progress: Callable[[int], None] = lambda images: None
) -> tuple[list[dict[str, Any]], int]:
    """The row of every source, by name, and the number of images. Memory grows with the distinct nouns.

    A row is as in the paper's table; an image with several captions of a source counts with their mean.
    """
    found: dict[str, Counter[str]] = {}
    images, captions, per_image = Counter[str](), Counter[str](), Counter[str]()
    number = 0
    for number, pair in enumerate((one for one in pairs if isinstance(one, Pair)), 1):
        of_source = Counter(caption.source for caption in pair.captions)
        images.update(of_source.keys())
        captions.update(of_source)
        for caption in pair.captions:
            words = nouns(caption.text)
            found.setdefault(caption.source, Counter()).update(words)
            per_image[caption.source] += len(words) / of_source[caption.source]
        progress(number)
    rows = []
    for name, counts in sorted(found.items()):
        valid = sum(times > VALID_ABOVE for times in counts.values())
        values = (per_image[name] / images[name], counts.total(), len(counts), valid, valid / max(1, len(counts)))
        most = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT])
        about = {"name": name, "images": images[name], "captions": captions[name], "most_frequent": most}
        rows.append(about | dict(zip(COLUMNS, values, strict=True)))
    return rows, number


def tagged(caption: str) -> list[tuple[str, bool]]:
    """The words of a caption, lower case, each with whether it is a noun, common or proper.

    Lower case because titles write every word large, and the tagger takes unknown large words for names.
    """
    # The public `tag` leaves out the two sets of rules that come with the lexicon; with them a tenth of the nouns that
    # are none go. `find_tags` is where they can be given.
    from textblob._text import find_tags
    from textblob.en import lexicon

    tokens = TOKEN.findall(caption[:LONGEST_CAPTION].lower())
    if not tokens:
        return []
    tags = find_tags(tokens, lexicon=lexicon, morphology=lexicon.morphology, context=lexicon.context)
    return [(word, tag.startswith("NN")) for word, (_, tag) in zip(tokens, tags, strict=True) if re.search(r"\w", word)]


def nouns(caption: str) -> list[str]:
    """The nouns of a caption, lower case, in order, each as often as it stands there."""
    return [word for word, is_noun in tagged(caption) if is_noun]
