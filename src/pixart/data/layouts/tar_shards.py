"""Tar shards as webdataset and img2dataset write them: files side by side that share a name are one sample.

A sample's key is the member's name up to the first dot of its last part. The picture, its `.txt` and its `.json` must
follow each other; only the offsets of pictures are kept.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.images import EXTENSIONS, UNREAD_EXTENSIONS
from pixart.data.layouts.layout import Notes
from pixart.data.layouts.lines import unique
from pixart.data.layouts.rows import size
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.tar import Member, members
from pixart.data.layouts.texts import MAX_CAPTION_FILE, gather
from pixart.data.layouts.walk import Glance, ending, find_all, look_around
from pixart.data.pairs import ImageProblem, InTar, Pair, Problem, printable, read_file
from pixart.errors import UsageError

LOOKED_FOR = ".tar shards (tar)"
_TEXTS = (".txt", ".caption", ".text")
_SMALL = frozenset((*_TEXTS, ".json", ".cls"))
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_FILES = 32  # files of one sample; more are no sample


@dataclass(frozen=True)
class TarShards:
    """`shards` are paths relative to `path`; their names stand in the keys."""

    path: Path
    shards: tuple[str, ...]
    name: str = "tar"
    single: bool = False

    @property
    def title(self) -> str:
        many = len(self.shards)
        return f"webdataset, {many:,} tar shard{'s' if many > 1 else ''}"

    @property
    def roots(self) -> tuple[Path, ...]:
        return tuple(self.path / shard for shard in self.shards) if self.single else (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """Shard by shard, in the order of the members. A sample whose files lie in two shards is a problem."""
        last: _Sample | None = None
        for shard in self.shards:
            seen = Seen()
            first = True
            for one in _samples(self.path / shard, shard):
                if isinstance(one, Problem):
                    yield one
                    continue
                if last is not None and first and one.name == last.name and not (one.pictures and last.pictures):
                    reason = f"The files of this sample lie in {last.shard} and in {shard}; put them into one shard."
                    yield Problem(printable(last.key), "split-sample", reason)
                    last, first = None, False
                    seen.add(one.key)
                    continue
                first = False
                if last is not None:
                    yield _finish(last, self.path, notes)
                last = one
                if not seen.add(one.key):
                    reason = "The shard has this sample twice, or its files do not follow each other."
                    yield Problem(printable(one.key), "duplicate-sample", reason)
                    last = None
        if last is not None:
            yield _finish(last, self.path, notes)

    def count_hint(self) -> int | None:
        """What img2dataset's `00000_stats.json` files say, where every shard has one."""
        total = 0
        for shard in self.shards:
            stats = self.path / f"{shard.removesuffix('.tar')}_stats.json"
            try:
                total += int(json.loads(read_file(str(stats), limit=2**20))["successes"])
            except (ImageProblem, ValueError, TypeError, KeyError, RecursionError):
                return None
        return total


@dataclass
class _Sample:
    shard: str
    name: str
    files: list[Member]

    @property
    def key(self) -> str:
        return f"{self.shard}/{self.name}"

    @property
    def pictures(self) -> list[Member]:
        return [file for file in self.files if ending(file.name) in EXTENSIONS]


def find(top: Glance) -> TarShards | None:
    """Tar shards in a folder or its subfolders. Raises UsageError for compressed ones alone."""
    there = [f"{rel}/{name}" if rel else name for rel, here in look_around(top) for name in here.files]
    if any(ending(name) == ".tar" for name in there):
        return TarShards(top.path, tuple(find_all(top.path, lambda folder, name: ending(name) == ".tar")))
    packed = [name for name in there if name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))]
    if packed:
        raise UsageError(f"{top.path / packed[0]} is compressed; unpack it to a plain .tar.")
    return None


def brace_range(path: Path) -> TarShards | None:
    """The shards of a range such as `{00000..00099}.tar`; None if `path` is not one. Raises UsageError."""
    matched = _RANGE.search(path.name)
    if matched is None:
        return None
    first, last = int(matched[1]), int(matched[2])
    if not first <= last < first + 1_000_000:
        raise UsageError(f"{path}: a range goes from a smaller to a larger number, with at most a million shards.")
    width = len(matched[1])
    names = [_RANGE.sub(str(number).zfill(width), path.name, count=1) for number in range(first, last + 1)]
    missing = [name for name in names if not os.path.isfile(path.parent / name)]
    if missing:
        raise UsageError(f"{path}: {len(missing):,} of {len(names):,} shards are not there, such as {missing[0]}.")
    return TarShards(path.parent, tuple(names), single=True)


def _samples(path: Path, shard: str) -> Iterator[_Sample | Problem]:
    """Members that follow each other and share a key; problems of the tar itself come as they are met."""
    sample: _Sample | None = None
    too_many = False
    for member in members(path, shard):
        if isinstance(member, Problem):
            yield member
            continue
        name = _sample_name(member.name)
        if name is None:
            continue
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            sample, too_many = _Sample(shard, name, []), False
        if len(sample.files) < MAX_FILES:
            sample.files.append(member)
        elif not too_many:
            too_many = True
            yield Problem(
                printable(sample.key), "sample", f"More than {MAX_FILES} files share this name; the rest is not read."
            )
    if sample is not None:
        yield sample


def _sample_name(name: str) -> str | None:
    """`a/b.c.d` belongs to the sample `a/b`. Hidden files, such as macOS's `._b.jpg`, belong to none."""
    folder, _, last = name.rpartition("/")
    stem = last.split(".", 1)[0]
    if not stem:
        return None
    return f"{folder}/{stem}" if folder else stem


def _finish(sample: _Sample, root: Path, notes: Notes) -> Pair | Problem:
    key = printable(sample.key)
    pictures = sample.pictures
    if not pictures:
        names = ", ".join(printable(file.name) for file in sample.files[:3])
        if any(ending(file.name) in UNREAD_EXTENSIONS for file in sample.files):
            return Problem(key, "format", f"The picture has a format that is not read ({names}).")
        return Problem(key, "no-image", f"There is no picture beside {names}.")
    if len(pictures) > 1:
        names = ", ".join(printable(picture.name) for picture in pictures[:3])
        return Problem(key, "several-images", f"The sample has {len(pictures)} pictures ({names}), and one is needed.")
    path = str(root / sample.shard)
    texts: list[object] = []
    about: dict = {}
    label: str | None = None
    for file in sample.files:
        kind = ending(file.name)
        if kind not in _SMALL:
            if file is not pictures[0]:
                notes.count(f"members that are not read, ending in {kind or 'nothing'}", f"{sample.shard}/{file.name}")
            continue
        try:
            data = read_file(path, offset=file.offset, length=file.length, limit=MAX_CAPTION_FILE)
        except ImageProblem as error:
            if error.kind != "empty":
                return Problem(key, "unreadable", f"{printable(file.name)}: {error.reason}")
            data = b""
        if kind in _TEXTS:
            texts.append(data)
        elif kind == ".cls":
            label = data[:200].decode("utf-8", "replace").strip() or None
        else:
            try:
                about = json.loads(data, object_pairs_hook=unique)
            except (ValueError, RecursionError) as error:
                return Problem(key, "row", f"{printable(file.name)} is not JSON ({printable(str(error))}).")
            if not isinstance(about, dict):
                return Problem(key, "row", f"{printable(file.name)} is not a JSON object.")
    if about.get("status", "success") != "success":
        return Problem(key, "download-failed", f"img2dataset says: {printable(str(about.get('error_message'))[:200])}.")
    for name in ("caption", "text", "prompt"):
        if about.get(name) not in (None, "") or (not texts and name in about):
            texts.append(about[name])
            break
    captions, problem = gather(texts, sample.key)
    if problem is not None and problem.kind == "caption-missing":
        problem = Problem(key, "caption-missing", "The sample has no .txt, and no caption in its .json.")
    if label is None and isinstance(about.get("label"), str | int):
        label = str(about["label"])
    picture = pictures[0]
    return Pair(
        key=sample.key, captions=captions, label=label,
        image=InTar(path, picture.offset, picture.length, picture.name),
        width=size(about.get("width")), height=size(about.get("height")), caption_problem=problem,
    )  # fmt: skip
