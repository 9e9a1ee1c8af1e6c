"""One pass over a data set: what it holds, what is wrong with it and what mends that, and how it falls into buckets."""

import hashlib
import heapq
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import TextIO

from pixart.buckets import MIN_KEPT, BucketTable, cover, kept_share
from pixart.config import shortened
from pixart.data.check.duplicates import Fingerprint, Fingerprints, fingerprint
from pixart.data.dataset import Dataset
from pixart.data.pairs import ImageProblem, InFile, Location, Pair, Problem, read_bytes
from pixart.encoders.tokenizer import Tokenizer
from pixart.images import open_image
from pixart.runtime.device import threads

DROPPED, ATTENTION, NOTE = "dropped", "attention", "note"
EXAMPLES = 8  # of each kind

CAPTION = "pixart data caption PATH --model llava-hf/llava-1.5-7b-hf"
LIST = "pixart data check PATH --list findings.jsonl"

# Kinds that the readers do not explain themselves: level, why it matters, and the command that mends it, in which PATH
# is the data set and FILE the first example's image.
KINDS: dict[str, tuple[str, str, str | None]] = {
    "narrow": (ATTENTION, "Even the nearest bucket would crop away more than half. Crop them by hand.", LIST),
    "crop": (
        ATTENTION,
        "Their buckets crop away more than a quarter; a crop can keep the part with most detail.",
        "pixart data extract PATH PATH-features --crop clever",
    ),
    "small": (ATTENTION, "They would be enlarged and teach blur; choose a smaller --base-size.", None),
    "duplicate": (ATTENTION, "The same pixels again: trained on more often, and soon known by heart.", LIST),
    "near-duplicate": (ATTENTION, "Nearly the same image: another size, saved again, retouched.", LIST),
    "caption-cut": (
        ATTENTION,
        "Longer than the text encoder reads: the last words count neither in training nor in generating.",
        f'{CAPTION} --question "Describe this image in one sentence."',
    ),
    "label-only": (NOTE, "A class and no caption: enough for stage 1; stages 2 and 3 need captions.", CAPTION),
    "declared-size": (ATTENTION, "The data set states another size; the image's own counts.", None),
    "alpha": (NOTE, "Transparent images are put on white.", None),
    "rotated": (NOTE, "Images are turned upright as EXIF says.", None),
    "animated": (NOTE, "Only the first frame is used.", None),
    "converted": (NOTE, "Unusual colour modes are converted to RGB with 8 bits per channel.", None),
    "profile": (NOTE, "Colour profiles are not applied.", None),
}
FIXES = {
    "format": "magick FILE FILE.png",
    "mode": "magick FILE -colorspace sRGB -depth 8 FILE.png",
    "bomb": 'magick FILE -resize "4096x4096>" FILE.png',
    "unreadable": "chmod u+r FILE",
    "caption-unreadable": LIST,
}


@dataclass(frozen=True)
class Example:
    """One image: `text` says what is wrong with it; `same_as` is the image that it repeats."""

    key: str
    text: str
    place: Location | None = None
    same_as: "Example | None" = None


@dataclass
class Finding:
    """One kind of problem, found `count` times."""

    kind: str
    level: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def why(self) -> str:
        """Empty for what each example explains itself."""
        return KINDS[self.kind][1] if self.kind in KINDS else ""

    def fix(self, data: Path) -> str | None:
        """The command that mends it, ready for a shell."""
        fallback = FIXES.get(self.kind, CAPTION if self.kind.startswith("caption-") else LIST)
        fix = KINDS[self.kind][2] if self.kind in KINDS else fallback
        file = next((example.place.path for example in self.examples if isinstance(example.place, InFile)), None)
        if fix is None or ("FILE" in fix and file is None):  # inside a shard no other program reaches it
            return None
        words = {"PATH": data, "PATH-features": f"{data}-features", "FILE": file, "FILE.png": f"{file}.png"}
        return " ".join(shlex.quote(str(words[word])) if word in words else word for word in fix.split(" "))


def level_of(kind: str) -> str:
    return KINDS[kind][0] if kind in KINDS else ATTENTION


TOGETHER = 256  # pairs that are read before their images are opened
SHEET = 24  # images of the page's contact sheet
PLAIN_MODES = ("RGB", "L", "P", "RGBA", "LA", "PA")


@dataclass(frozen=True)
class Seen:
    """One image that can be opened; `remarks` are kinds of notes."""

    width: int
    height: int
    format: str
    remarks: tuple[str, ...]
    fingerprint: Fingerprint


@dataclass
class BucketUse:
    """What falls into one bucket: images, and the sum of the shares that are cropped away."""

    images: int = 0
    cropped: float = 0.0


@dataclass
class Captions:
    """Of one source: how many, how many are cut, and how many have so many tokens (those cut: the limit)."""

    count: int = 0
    cut: int = 0
    lengths: Counter[int] = field(default_factory=Counter)


@dataclass
class Tally:
    """What was counted. `dropped` counts each image once, by the first reason why extraction would leave it out.

    `findings_file` gets every finding that is not a note, as a JSON line.
    """

    table: BucketTable
    tokenizer: Tokenizer
    findings_file: TextIO | None = None
    pairs: int = 0
    lost: int = 0  # images that never became a pair, as far as their number is known
    unusable: int = 0  # pairs without a caption and without a class
    opened: int = 0
    candidates: int = 0  # of those opened, that are usable but for what the image shows
    dropped: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)  # places that lost nobody knows how many images
    findings: dict[str, Finding] = field(default_factory=dict)
    captions: dict[str, Captions] = field(default_factory=dict)
    buckets: list[BucketUse] = field(default_factory=list)
    sides: Counter[int] = field(default_factory=Counter)  # by the power of two below the square root of the area
    formats: Counter[str] = field(default_factory=Counter)
    sheet: list[tuple[int, int, Example]] = field(default_factory=list)  # a heap
    fingerprints: Fingerprints = field(default_factory=Fingerprints)

    def __post_init__(self) -> None:
        self.buckets = [BucketUse() for _ in self.table.buckets]

    @property
    def rows(self) -> int:
        """All images that the data set lists."""
        return self.pairs + self.lost

    @property
    def placed(self) -> int:
        """Images in buckets."""
        return sum(use.images for use in self.buckets)

    @property
    def kept(self) -> int:
        """Images that can be trained on; estimated where only some were opened."""
        share = self.placed / self.candidates if self.candidates else float(self.opened == 0)
        return round((self.pairs - self.unusable) * share)

    def read(self, dataset: Dataset, sample: float, progress: Callable[[int], None]) -> None:
        """Count the whole data set and open the share `sample` of its images, always the same ones."""
        items = dataset.pairs()
        with ThreadPoolExecutor(threads()) as pool:
            while some := list(islice(items, TOGETHER)):
                pairs = [one for one in some if isinstance(one, Pair)]
                looked = pool.map(lambda pair: self._look(pair, sample), pairs)
                for one in some:
                    if isinstance(one, Problem):
                        self._add_problem(one)
                    else:
                        self._add_pair(one, *next(looked))
                progress(self.rows)
        self._find_duplicates(one for one in dataset.pairs() if isinstance(one, Pair))

    def found(self, kind: str, example: Example, *, dropped: int = 0) -> None:
        self.dropped[kind] += dropped
        finding = self.findings.setdefault(kind, Finding(kind, level_of(kind)))
        finding.count += 1
        finding.level = DROPPED if dropped else finding.level
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example)
        if self.findings_file is not None and finding.level != NOTE:
            path = getattr(example.place, "path", None)
            line = {"kind": kind, "key": example.key, "reason": example.text, "path": path}
            line |= {"same_as": example.same_as.key} if example.same_as else {}
            self.findings_file.write(json.dumps(line) + "\n")

    def _add_problem(self, problem: Problem) -> None:
        lost = 0 if problem.kind.startswith("caption-") else problem.lost  # the pair of a caption follows
        self.lost += lost or 0
        self.found(problem.kind, Example(problem.key, problem.reason), dropped=lost or 0)
        if lost is None:
            self.unknown[problem.kind] += 1
            self.findings[problem.kind].level = DROPPED

    def _look(self, pair: Pair, sample: float) -> tuple[list[tuple[int, str]], Seen | ImageProblem | None]:
        """The tokens of each caption and the words that are cut; the image, where it is in the sample."""
        words = [self.tokenizer.tokenize(caption.text.lower().strip()) for caption in pair.captions]
        return [(len(ids), cut) for ids, cut in words], look_at(pair.image) if _share(pair) < sample else None

    def _add_pair(self, pair: Pair, captions: list[tuple[int, str]], seen: Seen | ImageProblem | None) -> None:
        usable = bool(pair.captions) or pair.label is not None
        problem = pair.caption_problem
        if problem is None and not pair.captions:
            kind = "caption-missing" if pair.label is None else "label-only"
            problem = Problem(pair.key, kind, "There is no caption.")
        if problem is not None:
            self.found(problem.kind, Example(pair.key, problem.reason, pair.image), dropped=not usable)
        self.unusable += not usable
        for caption, (tokens, cut) in zip(pair.captions, captions, strict=True):
            source = self.captions.setdefault(caption.source, Captions())
            source.count += 1
            source.lengths[tokens] += 1
            if cut:
                source.cut += 1
                text = f"The text encoder does not read: {shortened(cut)}"
                self.found("caption-cut", Example(pair.key, text, pair.image))
        if seen is not None:
            self._add_image(pair, seen, usable)
        self.pairs += 1

    def _add_image(self, pair: Pair, seen: Seen | ImageProblem, usable: bool) -> None:
        self.opened += 1
        self.candidates += usable
        if isinstance(seen, ImageProblem):
            self.found(seen.kind, Example(pair.key, seen.reason, pair.image), dropped=usable)
            return
        self.formats[seen.format] += 1
        self.sides[isqrt(seen.width * seen.height).bit_length() - 1] += 1
        self.fingerprints.add(self.pairs, seen.fingerprint)
        size = f"{seen.width} x {seen.height}"
        words = next((caption.text for caption in pair.captions), pair.label or "no caption")
        self._show(pair, words)
        for remark in seen.remarks:
            self.found(remark, Example(pair.key, size, pair.image))
        declared = pair.width, pair.height
        if None not in declared and sorted(declared) != sorted((seen.width, seen.height)):
            text = f"{pair.width} x {pair.height} is stated, and it is {size}."
            self.found("declared-size", Example(pair.key, text, pair.image))
        index = self.table.nearest(seen.height, seen.width)
        bucket = self.table.buckets[index]
        kept, covering = kept_share(seen.height, seen.width, bucket), cover(seen.height, seen.width, bucket)
        fitted = Example(pair.key, f"{size}; {bucket.width} x {bucket.height} keeps {kept:.0%} of it.", pair.image)
        if kept < MIN_KEPT:
            self.found("narrow", fitted, dropped=usable)
        elif usable:
            self.buckets[index].images += 1
            self.buckets[index].cropped += 1 - kept
            if kept < 0.75:
                self.found("crop", fitted)
            if covering[0] > seen.height or covering[1] > seen.width:
                self.found("small", fitted)

    def _show(self, pair: Pair, words: str) -> None:
        """Put an image on the contact sheet if its hash is among the smallest."""
        entry = (-int(_share(pair, "sheet") * 2**53), self.pairs, Example(pair.key, words, pair.image))
        (heapq.heappush if len(self.sheet) < SHEET else heapq.heappushpop)(self.sheet, entry)

    def _find_duplicates(self, pairs: Iterable[Pair]) -> None:
        """Their keys are not kept, so the data set is listed once more."""
        same, near = self.fingerprints.duplicates()
        if not same and not near:
            return
        wanted, firsts = {*same.values(), *near.values()}, {}
        for row, pair in enumerate(pairs):
            if row in wanted:
                firsts[row] = Example(pair.key, "", pair.image)
            for kind, of in (("duplicate", same), ("near-duplicate", near)):
                if row in of and of[row] in firsts:
                    first = firsts[of[row]]
                    self.found(kind, Example(pair.key, f"repeats {first.key}", pair.image, first))


def look_at(place: Location) -> Seen | ImageProblem:
    """Open one image; what is wrong with it is the answer."""
    try:
        opened = open_image(read_bytes(place))
    except ImageProblem as problem:
        return problem
    remarks = {
        "alpha": opened.alpha,
        "rotated": opened.orientation > 1,
        "animated": opened.animated,
        "converted": opened.mode not in PLAIN_MODES,
        "profile": opened.icc,
    }
    there = tuple(kind for kind, found in remarks.items() if found)
    return Seen(opened.image.width, opened.image.height, opened.format, there, fingerprint(opened.image))


def _share(pair: Pair, purpose: str = "sample") -> float:
    """A number from 0 to below 1 that belongs to an image."""
    digest = hashlib.blake2b(f"{purpose}\n{pair.key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64
