"""`pixart data statistics PATH`: how rich the captions of a data set are, by the vocabulary analysis of PixArt-α.

The paper (section 2.4, table 1) counts the nouns of a caption, the distinct nouns of a data set, and those of them that
occur more than ten times ("valid"), and finds that captions of a vision-language model are denser. Here every source of
captions is counted by itself, beside the paper's rows.
"""

import functools
import itertools
import json
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pixart.captions.nouns import MEASURED, VALID_ABOVE, NounCounts, NounTagger, Vocabulary
from pixart.data.pairs import Pair, Problem
from pixart.errors import PixArtError

CHUNK = 500  # pictures that a process is given at a time


@dataclass(frozen=True)
class Row:
    """One line of the table. Counts are exact for our own rows; the paper gives its in thousands and millions.

    `nouns_per_image` is that of one caption per image: an image with several captions of a source has the mean of them.
    `images` and `captions` are None in the paper's rows. `ratio` is valid / distinct.
    """

    name: str
    nouns_per_image: float
    nouns: int
    distinct: int
    valid: int
    ratio: float
    images: int | None = None
    captions: int | None = None
    most_frequent: dict[str, int] = field(default_factory=dict)


PAPER = (
    Row("LAION", 6.4, 72_000_000, 2_461_000, 210_000, 0.085),
    Row("LAION-LLaVA", 20.9, 233_900_000, 646_000, 85_000, 0.133),
    Row("SAM-LLaVA", 29.3, 327_900_000, 124_000, 23_000, 0.186),
    Row("Internal", 12.2, 136_600_000, 582_000, 152_000, 0.261),
)


@dataclass
class Part:
    """What was counted in some pictures for one source. `per_image` sums the means over each image's captions."""

    nouns: Counter[str] = field(default_factory=Counter)
    images: int = 0
    captions: int = 0
    per_image: float = 0.0


def count(
    pairs: Iterable[Pair | Problem],
    *,
    workers: int = 1,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda pictures: None,
) -> tuple[list[Row], int]:
    """The rows of all sources, by name, and the number of pictures: the same for any number of processes.

    Streams: memory grows neither with the pictures nor, beyond a limit, with the nouns.
    """
    _tagger()  # a library that is missing is missed here, not in another process
    totals: dict[str, Part] = {}
    counts: dict[str, NounCounts] = {}
    pictures = 0
    chunks = _chunks(pairs, chunk)
    first = list(itertools.islice(chunks, 1))
    more = list(itertools.islice(chunks, 1))
    with _processes(workers if more else 1) as start:
        for found in _in_order(start, itertools.chain(first, more, chunks), 4 * workers):
            for name, part in found.parts.items():
                total = totals.setdefault(name, Part())
                total.images += part.images
                total.captions += part.captions
                total.per_image += part.per_image
                counts.setdefault(name, NounCounts()).add(part.nouns)
            pictures += found.pictures
            progress(pictures)
    return [_row(name, totals[name], counts[name].summary()) for name in sorted(totals)], pictures


@dataclass(frozen=True)
class Counted:
    pictures: int
    parts: dict[str, Part]


def count_chunk(chunk: list[list[tuple[str, str]]]) -> Counted:
    """Count some pictures, each a list of (source, caption)."""
    tagger = _tagger()
    parts: dict[str, Part] = {}
    for captions in chunk:
        found: dict[str, list[int]] = {}
        for source, text in captions:
            nouns = tagger.nouns(text)
            parts.setdefault(source, Part()).nouns.update(nouns)
            found.setdefault(source, []).append(len(nouns))
        for source, numbers in found.items():
            part = parts[source]
            part.images += 1
            part.captions += len(numbers)
            part.per_image += sum(numbers) / len(numbers)
    return Counted(len(chunk), parts)


@functools.cache
def _tagger() -> NounTagger:
    """One per process: its lexicon takes a tenth of a second to read."""
    return NounTagger()


def _chunks(pairs: Iterable[Pair | Problem], size: int) -> Iterator[list[list[tuple[str, str]]]]:
    whole = (pair for pair in pairs if isinstance(pair, Pair))
    while some := list(itertools.islice(whole, size)):
        yield [[(caption.source, caption.text) for caption in pair.captions] for pair in some]


@contextmanager
def _processes(workers: int) -> Iterator[Callable[[list], Future]]:
    """What starts counting a chunk: in another process, or, with one worker, here and now."""
    if workers == 1:
        yield _here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts) as pool:
        try:
            yield functools.partial(pool.submit, count_chunk)
        except BrokenProcessPool:
            raise PixArtError(
                "A process that counted was ended from outside, perhaps for want of memory; give fewer --workers."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one answers for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _here(chunk: list) -> Future:
    done: Future = Future()
    done.set_result(count_chunk(chunk))
    return done


def _in_order(start: Callable[[list], Future], chunks: Iterable[list], most: int) -> Iterator[Counted]:
    """Results in the order of the chunks, with at most `most` on their way: the reader must not run ahead."""
    waiting: deque[Future] = deque()
    for chunk in chunks:
        waiting.append(start(chunk))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _row(name: str, total: Part, found: Vocabulary) -> Row:
    return Row(
        name,
        nouns_per_image=total.per_image / total.images,
        nouns=found.nouns,
        distinct=found.distinct,
        valid=found.valid,
        ratio=found.ratio,
        images=total.images,
        captions=total.captions,
        most_frequent=found.most_frequent,
    )


def as_json(rows: list[Row], path: Path, pictures: int) -> str:
    """Everything that was counted, the paper's rows, and how far the tagger is off."""
    whole = {
        "path": str(path),
        "pictures": pictures,
        "sources": [asdict(row) for row in rows],
        "paper": [asdict(row) for row in PAPER],
        "valid_above": VALID_ABOVE,
        "tagger": {"name": "TextBlob, lexicon and rules", "measured_on_hand_tagged_captions": asdict(MEASURED)},
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
