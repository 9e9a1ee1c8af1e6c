"""One pass over a data set: counts of everything, and a few examples of each thing, in memory that does not grow."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import isqrt

from pixart.buckets import MIN_KEPT, BucketTable, cover, kept_share
from pixart.data.check.duplicates import PictureTable
from pixart.data.check.kinds import NOTE, kind_of
from pixart.data.check.look import Seen, look_at_all
from pixart.data.check.tokens import TOGETHER, CaptionLengths, TokenCounter
from pixart.data.dataset import Dataset
from pixart.data.pairs import Location, Pair, Problem

EXAMPLES = 8  # of each finding
SHEET = 24  # pictures of the contact sheet
SHOWN = 400  # characters of a caption that a report shows
COMMON_CAPTIONS = 1000  # counters for captions that many pictures share
LOST_BINS = 20  # of 5% each, of the share of a picture that its bucket crops away
SIDE_BINS = 16  # powers of two of the square root of the area

Tick = Callable[[str, int], None]


@dataclass(frozen=True)
class Example:
    """One picture to show: `text` says what is wrong with it, `caption` its words, `cut` those that would not be read.

    `kept` is the part (left, top, right, bottom, as shares) that its bucket keeps, where that is the point.
    """

    key: str
    text: str
    place: Location | None = None
    caption: str = ""
    cut: str = ""
    kept: tuple[float, float, float, float] | None = None


class Reservoir:
    """A few of many, each with the same chance, always the same ones for the same data."""

    def __init__(self, size: int):
        self.size, self.count, self.items = size, 0, []
        self.random = random.Random(0)

    def add(self, make: Callable[[], object]) -> None:
        """`make` is called only for what is kept."""
        self.count += 1
        if len(self.items) < self.size:
            self.items.append(make())
        elif (place := self.random.randrange(self.count)) < self.size:
            self.items[place] = make()


@dataclass
class BucketUse:
    """What falls into one bucket: pictures, the sum of the shares cropped away, and how many are enlarged."""

    pictures: int = 0
    lost: float = 0.0
    enlarged: int = 0


@dataclass
class Tally:
    """What was counted. `dropped` counts each picture once, by the first reason why extraction would skip it."""

    table: BucketTable
    max_tokens: int
    pairs: int = 0
    problems: int = 0  # of the readers: what never became a pair
    labelled: int = 0
    without_caption: int = 0  # and without a class: of no use until it is captioned
    long_pictures: int = 0  # with at least one caption that is cut
    dropped: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)  # places by kind, each of which lost nobody knows how many images
    counts: Counter = field(default_factory=Counter)  # of every kind of finding
    examples: dict[str, Reservoir] = field(default_factory=dict)
    sheet: Reservoir = field(default_factory=lambda: Reservoir(SHEET))
    sources: dict[str, CaptionLengths] = field(default_factory=dict)
    common: Counter = field(default_factory=Counter)
    looked: int = 0
    dropped_looking: int = 0  # of those looked at, and not dropped before
    buckets: list[BucketUse] = field(default_factory=list)
    lost: list[int] = field(default_factory=lambda: [0] * LOST_BINS)
    sides: list[int] = field(default_factory=lambda: [0] * SIDE_BINS)
    formats: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    worst_crops: list[tuple[float, Example]] = field(default_factory=list)
    pixels: int = 0
    bytes: int = 0
    seconds: float = 0.0  # reading and decoding, of one process
    record: Callable[[str, Example], None] | None = None  # called with every single finding that is not a note

    def __post_init__(self):
        self.buckets = [BucketUse() for _ in self.table.buckets]

    def found(self, kind: str, make: Callable[[], Example]) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, Reservoir(EXAMPLES)).add(make)
        if self.record is not None and kind_of(kind).level != NOTE:
            self.record(kind, make())

    @property
    def rows(self) -> int:
        """Everything that the data set lists: pairs, and what could not become one."""
        return self.pairs + self.problems

    def add_problem(self, problem: Problem) -> None:
        if problem.kind.startswith("caption-"):  # something about a caption; the pair itself follows
            self.found(problem.kind, lambda: Example(problem.key, problem.reason))
            return
        if problem.lost is None:
            self.unknown[problem.kind] += 1
        else:
            self.problems += problem.lost
            self.dropped[problem.kind] += problem.lost
        self.found(problem.kind, lambda: Example(problem.key, problem.reason))

    def add_pair(self, pair: Pair) -> None:
        self.pairs += 1
        self.labelled += pair.label is not None
        problem = pair.caption_problem
        if problem is not None:
            self.found(problem.kind, lambda: Example(pair.key, problem.reason, pair.image))
        if not pair.captions:
            if problem is None:
                text = "It has a class and no caption." if pair.label is not None else "It has no caption."
                kind = "label-only" if pair.label is not None else "caption-missing"
                self.found(kind, lambda: Example(pair.key, text, pair.image))
            if pair.label is None:
                self.without_caption += 1
                self.dropped[problem.kind if problem else "caption-missing"] += 1
        for caption in pair.captions:
            self.common[caption.text[:SHOWN]] += 1
        if len(self.common) > 2 * COMMON_CAPTIONS:  # Misra and Gries: whoever is frequent stays
            least = self.common.most_common(COMMON_CAPTIONS + 1)[-1][1]
            self.common = Counter({text: n - least for text, n in self.common.items() if n > least})

    def add_length(self, pair: Pair, source: str, count: int) -> None:
        self.sources.setdefault(source, CaptionLengths()).add(count, self.max_tokens)

    def add_seen(self, pair: Pair, seen: Seen) -> None:
        self.looked += 1
        self.bytes += seen.bytes
        self.seconds += seen.seconds
        usable_so_far = bool(pair.captions) or pair.label is not None
        if seen.kind:
            self.found(seen.kind, lambda: Example(pair.key, seen.reason, pair.image))
            self._drop_seen(seen.kind, usable_so_far)
            return
        self.pixels += seen.width * seen.height
        self.formats[seen.format] += 1
        self.modes[seen.mode] += 1
        self.sides[min(SIDE_BINS - 1, isqrt(seen.width * seen.height).bit_length() - 1)] += 1
        words = pair.captions[0].text[:SHOWN] if pair.captions else pair.label or ""
        self.sheet.add(lambda: Example(pair.key, "", pair.image, words))
        self._notes(pair, seen)
        self._place(pair, seen, usable_so_far)

    def _drop_seen(self, kind: str, usable_so_far: bool) -> None:
        if usable_so_far:
            self.dropped[kind] += 1
            self.dropped_looking += 1

    def _notes(self, pair: Pair, seen: Seen) -> None:
        def note(kind: str, text: str) -> None:
            self.found(kind, lambda: Example(pair.key, text, pair.image))

        if seen.alpha:
            note("alpha", f"{seen.mode}, transparent in places")
        if seen.orientation > 1:
            note("rotated", f"EXIF orientation {seen.orientation}")
        if seen.animated:
            note("animated", f"{seen.format} with several frames")
        if seen.mode not in ("RGB", "L", "P", "RGBA", "LA", "PA"):
            note("converted", f"stored as {seen.mode}")
        if seen.icc:
            note("profile", "with a colour profile")
        declared = pair.width, pair.height
        if None not in declared and declared not in ((seen.width, seen.height), (seen.height, seen.width)):
            note("declared-size", f"{declared[0]} x {declared[1]} declared, {seen.width} x {seen.height} found")

    def _place(self, pair: Pair, seen: Seen, usable_so_far: bool) -> None:
        index = self.table.nearest(seen.height, seen.width)
        bucket = self.table.buckets[index]
        share = kept_share(seen.height, seen.width, bucket)
        size = f"{seen.width} x {seen.height}"
        covering = cover(seen.height, seen.width, bucket)
        kept = _kept_box(covering, (bucket.height, bucket.width))
        if share < MIN_KEPT:
            text = f"{size}: its bucket {bucket.width} x {bucket.height} keeps {share:.0%} of it"
            self.found("narrow", lambda: Example(pair.key, text, pair.image, kept=kept))
            self._drop_seen("narrow", usable_so_far)
            return
        if not usable_so_far:
            return
        use = self.buckets[index]
        use.pictures += 1
        use.lost += 1 - share
        self.lost[min(LOST_BINS - 1, int((1 - share) * LOST_BINS))] += 1
        if covering[0] > seen.height or covering[1] > seen.width:
            use.enlarged += 1
            self.found("small", lambda: Example(pair.key, f"{size}, for {bucket.width} x {bucket.height}", pair.image))
        if share < 0.98 and (len(self.worst_crops) < EXAMPLES or 1 - share > self.worst_crops[-1][0]):
            text = f"{size} into {bucket.width} x {bucket.height}: {1 - share:.0%} cropped away"
            if any(text == example.text for _, example in self.worst_crops):
                return  # one of each shape
            self.worst_crops.append((1 - share, Example(pair.key, text, pair.image, kept=kept)))
            self.worst_crops.sort(key=lambda item: -item[0])
            del self.worst_crops[EXAMPLES:]


def _kept_box(covering: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The centre crop as shares of the picture."""
    down, across = size[0] / covering[0], size[1] / covering[1]
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


def gather(
    dataset: Dataset, tally: Tally, counter: TokenCounter, pictures: PictureTable, *,
    sample: int | None, workers: int, tick: Tick,
) -> None:  # fmt: skip
    """Read everything that `dataset` lists, and look at all its pictures (`sample` None) or at `sample` of them.

    The sample is drawn evenly from the whole data set, the same one every time.
    """
    pairs = _counted(_listed(dataset, tally, tick), tally, counter)
    if sample is None:
        _look(enumerate(pairs), tally, pictures, workers, tick)
        return
    chosen = Reservoir(sample)
    for row, pair in enumerate(pairs):
        if sample:
            chosen.add(lambda row=row, pair=pair: (row, pair))
    _look(iter(sorted(chosen.items, key=lambda item: item[0])), tally, pictures, workers, tick)


def _listed(dataset: Dataset, tally: Tally, tick: Tick) -> Iterator[Pair]:
    for item in dataset.pairs():
        if tally.rows % 256 == 0:
            tick("reading", tally.rows)
        if isinstance(item, Problem):
            tally.add_problem(item)
            continue
        tally.add_pair(item)
        yield replace(item, extra={}) if item.extra else item
    tick("reading", tally.rows)


def _counted(pairs: Iterable[Pair], tally: Tally, counter: TokenCounter) -> Iterator[Pair]:
    """The same pairs, their captions counted, many at a time."""
    waiting: list[Pair] = []
    for pair in pairs:
        waiting.append(pair)
        if len(waiting) == TOGETHER:
            _count(waiting, tally, counter)
            yield from waiting
            waiting = []
    _count(waiting, tally, counter)
    yield from waiting


def _count(pairs: list[Pair], tally: Tally, counter: TokenCounter) -> None:
    captions = [(pair, caption) for pair in pairs for caption in pair.captions]
    counts = counter.counts([caption.text for _, caption in captions])
    long_pairs: dict[str, None] = {}
    for (pair, caption), count in zip(captions, counts, strict=True):
        tally.add_length(pair, caption.source, count)
        if count > tally.max_tokens:
            long_pairs[pair.key] = None
            tally.found(
                "caption-cut",
                lambda pair=pair, text=caption.text, count=count: _cut_example(pair, text, count, counter),
            )
    tally.long_pictures += len(long_pairs)


def _cut_example(pair: Pair, text: str, count: int, counter: TokenCounter) -> Example:
    cut = counter.cut(text)
    whole = text.strip().lower().endswith(cut) and len(text.lower()) == len(text)
    kept = text.strip()[: -len(cut)] if whole and cut else text
    if len(kept) > SHOWN:
        kept = f"{kept[: SHOWN // 2]} ... {kept[-SHOWN // 2 :]}"
    return Example(pair.key, f"{count:,} tokens", pair.image, kept, f"{cut[:SHOWN]} ..." if len(cut) > SHOWN else cut)


def _look(rows: Iterator[tuple[int, Pair]], tally: Tally, pictures: PictureTable, workers: int, tick: Tick) -> None:
    numbers: deque[int] = deque()  # of the pairs that are under way

    def pairs() -> Iterator[Pair]:
        for row, pair in rows:
            numbers.append(row)
            yield pair

    for pair, seen in look_at_all(pairs(), workers):
        row = numbers.popleft()
        tally.add_seen(pair, seen)
        if not seen.kind:
            pictures.add(row, pair, seen)
        if tally.looked % 16 == 0:
            tick("looking", tally.looked)
    tick("looking", tally.looked)
