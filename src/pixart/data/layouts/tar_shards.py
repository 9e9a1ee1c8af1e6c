"""Tar shards as webdataset and img2dataset write them: files near each other that share a name are one sample.

A sample's name is the member's without its ending. webdataset itself cuts at the first dot, which gives "Mr. Fox.jpg"
the caption in "Mr. Owl.txt". Only the offsets of images are kept.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.images import EXTENSIONS, UNREAD_EXTENSIONS
from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.lines import unique
from pixart.data.layouts.rows import captions_of, roles, size
from pixart.data.layouts.tar import Member, members
from pixart.data.layouts.texts import MAX_CAPTION_FILE
from pixart.data.layouts.walk import Glance, ending, find_all, look_around, missing_parts
from pixart.data.pairs import ImageProblem, InTar, Pair, Problem, key_hash, printable, read_file
from pixart.errors import UsageError

LOOKED_FOR = ".tar shards (tar)"
_TEXTS = (".txt", ".caption", ".text")
_SMALL = frozenset((*_TEXTS, ".json", ".cls"))
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_FILES = 32  # files of one sample; more are no sample
WINDOW = 8  # samples whose files may be mixed with each other


@dataclass
class _Sample:
    shard: str
    name: str
    files: list[Member] = field(default_factory=list)
    too_many: bool = False

    @property
    def key(self) -> str:
        return f"{self.shard}/{self.name}"

    @property
    def images(self) -> list[Member]:
        return [file for file in self.files if ending(file.name) in EXTENSIONS]


@dataclass(frozen=True)
class TarShards:
    """`shards` are paths relative to `path`; their names stand in the keys. `packed` are compressed shards."""

    path: Path
    shards: tuple[str, ...]
    columns: Columns
    packed: tuple[str, ...] = ()
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
        last: _Sample | None = None  # of the shard before: its files may go on in this one
        for shard in self.shards:
            seen: set[bytes] = set()
            first = True
            for one in _samples(self.path / shard, shard, notes):
                if isinstance(one, Problem):
                    yield one
                    continue
                if last is not None and first and one.name == last.name and not (one.images and last.images):
                    reason = f"The files of this sample lie in {last.shard} and in {shard}; put them into one shard."
                    yield Problem(last.key, "split-sample", reason)
                    last, first = None, False
                    seen.add(key_hash(one.key))
                    continue
                first = False
                if last is not None:
                    yield _finish(last, self.path, self.columns)
                last = one
                if key_hash(one.key) in seen:
                    reason = "The shard has this sample twice, or its files lie far from each other."
                    yield Problem(one.key, "duplicate-sample", reason)
                    last = None
                seen.add(key_hash(one.key))
        if last is not None:
            yield _finish(last, self.path, self.columns)
        if not self.single:
            yield from missing_parts(self.shards)
            yield from self._missing()

    def _missing(self) -> Iterator[Problem]:
        """Shards that are compressed, or that an index (img2dataset's, webdataset's wids) names and that are gone."""
        for name in self.packed:
            yield Problem(name, "missing", "The shard is compressed; unpack it to a plain .tar.", lost=None)
        for name in find_all(self.path, lambda folder, name: ending(name) == ".json"):
            folder = os.path.dirname(name)
            if name.endswith("_stats.json"):
                shard = name.removesuffix("_stats.json") + ".tar"
                counts = {shard: _json(self.path / name).get("successes")} if shard not in self.shards else {}
            else:
                listed = _json(self.path / name).get("shardlist")
                rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
                named = {os.path.join(folder, str(row.get("url"))): row.get("nsamples") for row in rows}
                counts = {shard: count for shard, count in named.items() if os.path.normpath(shard) not in self.shards}
            for shard, count in counts.items():
                if count != 0:
                    lost = count if isinstance(count, int) and count > 0 else None
                    yield Problem(shard, "missing", f"{printable(name)} names this shard, which is not there.", lost)

    def count_hint(self) -> int | None:
        """What img2dataset's `00000_stats.json` files say, where every shard has one."""
        counts = [
            _json(self.path / f"{shard.removesuffix('.tar')}_stats.json").get("successes") for shard in self.shards
        ]
        return sum(counts) if all(isinstance(count, int) for count in counts) else None


def find(top: Glance, columns: Columns) -> TarShards | None:
    """Tar shards in a folder or its subfolders. Raises UsageError for compressed ones alone."""
    there = [f"{rel}/{name}" if rel else name for rel, here in look_around(top) for name in here.files]
    packed = tuple(name for name in there if name.lower().endswith(_PACKED))
    if any(ending(name) == ".tar" for name in there):
        shards = find_all(top.path, lambda folder, name: ending(name) == ".tar")
        return TarShards(top.path, tuple(shards), columns, packed)
    if packed:
        raise UsageError(f"{top.path / packed[0]} is compressed; unpack it to a plain .tar.")
    return None


def brace_range(path: Path, columns: Columns) -> TarShards | None:
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
    return TarShards(path.parent, tuple(names), columns, single=True)


def _json(path: Path) -> dict:
    try:
        value = json.loads(read_file(str(path), limit=2**24))
    except (ImageProblem, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _samples(path: Path, shard: str, notes: Notes) -> Iterator[_Sample | Problem]:
    """The samples of a shard by their first member; problems of the tar itself come as they are met."""
    begun: dict[str, _Sample] = {}
    for member in members(path, shard):
        if isinstance(member, Problem):
            yield member
            continue
        name = _sample_name(member.name)
        kind = ending(member.name)
        if name is None:
            continue
        if kind not in _SMALL and kind not in EXTENSIONS and kind not in UNREAD_EXTENSIONS:
            notes.count(f"members that are not read, ending in {kind or 'nothing'}", f"{shard}/{member.name}")
            continue
        if name not in begun and len(begun) == WINDOW:
            yield begun.pop(next(iter(begun)))
        sample = begun.setdefault(name, _Sample(shard, name))
        if any(member.name == other.name for other in sample.files):
            reason = f"The shard has {printable(member.name)} twice; the first one counts."
            yield Problem(sample.key, "duplicate-sample", reason, lost=int(kind not in _SMALL))
        elif len(sample.files) < MAX_FILES:
            sample.files.append(member)
        elif not sample.too_many:
            sample.too_many = True
            yield Problem(sample.key, "sample", f"More than {MAX_FILES} files share this name; the rest is not read.")
    yield from begun.values()


def _sample_name(name: str) -> str | None:
    """`a/b.c.jpg` belongs to the sample `a/b.c`, as do `a/b.c.txt` and `a/b.c.jpg.txt`; hidden files to none.

    Names are compared in Unicode's composed form, because macOS writes them decomposed.
    """
    folder, _, last = name.rpartition("/")
    stem, kind = os.path.splitext(last)
    if kind.lower() in _SMALL and ending(stem) in EXTENSIONS:
        stem = os.path.splitext(stem)[0]
    if last.startswith("."):
        return None
    return unicodedata.normalize("NFC", f"{folder}/{stem}" if folder else stem)


def _finish(sample: _Sample, root: Path, columns: Columns) -> Pair | Problem:
    key = sample.key
    images = sample.images
    if not images:
        names = ", ".join(printable(file.name) for file in sample.files[:3])
        if any(ending(file.name) in UNREAD_EXTENSIONS for file in sample.files):
            return Problem(key, "format", f"The image has a format that is not read ({names}).")
        return Problem(key, "no-image", f"There is no image beside {names}.")
    if len(images) > 1:
        names = ", ".join(printable(image.name) for image in images[:3])
        return Problem(key, "several-images", f"The sample has {len(images)} images ({names}), and one is needed.")
    image = images[0]
    path = str(root / sample.shard)
    texts: list[object] = []
    about: dict = {}
    label: str | None = None
    for file in sample.files:
        kind = ending(file.name)
        if kind not in _SMALL:
            continue
        own = os.path.splitext(file.name)[0]
        if ending(own) in EXTENSIONS and unicodedata.normalize("NFC", own) != unicodedata.normalize("NFC", image.name):
            return Problem(key, "same-stem", f"{printable(file.name)} belongs to another image than {image.name}.")
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
    found = roles(tuple(about), columns)
    captions, problem = captions_of(about, found, key, texts)
    if problem is not None and problem.kind == "caption-missing":
        problem = Problem(key, "caption-missing", "The sample has no .txt, and no caption in its .json.")
    if label is None and found.label and isinstance(about[found.label], str | int):
        label = str(about[found.label]) or None
    return Pair(
        key=printable(key), captions=captions, label=label, image=InTar(path, image.offset, image.length, image.name),
        width=size(about.get(found.width)), height=size(about.get(found.height)), caption_problem=problem,
    )  # fmt: skip
