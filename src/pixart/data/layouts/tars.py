"""Tar shards as webdataset and img2dataset write them: the files of a shard that share a name are one sample.

A sample's name is the member's without its ending. webdataset itself cuts at the first dot, which gives "Mr. Fox.jpg"
the caption in "Mr. Owl.txt". tarfile finds the members, and what it passes over in silence is a problem here: a damaged
header, a missing end and archives joined by `cat`, each of which loses an unknown number of images.
"""

import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pixart.data.layouts.layout import (
    MAX_CAPTION_FILE,
    Columns,
    Folder,
    Layout,
    Notes,
    ending,
    find_files,
    is_unicode,
    missing_parts,
)
from pixart.data.layouts.rows import pair_of, parse_object, roles
from pixart.data.pairs import ImageProblem, InTar, Pair, Problem, open_regular, printable, read_file
from pixart.errors import UsageError
from pixart.images import EXTENSIONS, UNREAD_EXTENSIONS

TEXTS = (".txt", ".caption", ".text")
SMALL = frozenset((*TEXTS, ".json", ".cls"))
READ = SMALL | EXTENSIONS | UNREAD_EXTENSIONS
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_HEADER = 64 * 1024  # bytes of a long name or a PAX header; a name has at most 4096
MAX_PADDING = 64 * 1024**2  # zeros behind the end that are looked through for joined archives
_ZEROS = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its bytes are `length` from `offset`. `name` is as stored, without "./"."""

    name: str
    offset: int
    length: int


class _Headers:
    """A tar for tarfile, which reads nothing but headers here: one that claims more than a name can have is refused."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"an extended header claims {size:,} bytes")
        return self._read(size)


def members(path: Path, shard: str) -> Iterator[Member | Problem]:
    """Regular files in a tar, in its order, and a problem for everything else but folders.

    `shard` names the tar in problems. A header that cannot be believed is the last problem: nothing behind it can be
    told apart.
    """
    try:
        file, total = open_regular(str(path))
    except ImageProblem as problem:
        yield Problem(shard, problem.kind, f"The shard: {problem.reason}", lost=None)
        return
    with file:
        try:
            archive = tarfile.open(fileobj=_Headers(file), mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            while (info := archive.next()) is not None:
                archive.members.clear()  # else every member stays in memory
                if info.size < 0 or info.offset_data + (info.size if info.isreg() else 0) > total:
                    raise tarfile.ReadError(f"{printable(info.name)} claims {info.size:,} bytes")
                if archive.offset <= info.offset:
                    raise tarfile.ReadError("a header leads backwards")
                yield from _member(info, shard)
            end = _end(file, archive.offset)
        except Exception as error:  # foreign bytes make tarfile raise ValueError, RecursionError, OverflowError, ...
            reason = (str(error) or type(error).__name__)[:200]
            end = ("damaged-tar", f"The shard is damaged or cut off ({reason}); what comes after it cannot be read.")
    if end is not None:
        yield Problem(shard, *end, lost=None)


def _member(info: tarfile.TarInfo, shard: str) -> Iterator[Member | Problem]:
    name = re.sub(r"^(\./+)+", "", info.name)
    if info.isdir() or info.name.endswith("/"):
        return
    problem = None
    if not info.isreg() or info.issparse():
        problem = "not-a-file", "The member is a link, device or sparse file; only plain files are read."
    elif not name or "\0" in name or not is_unicode(name):
        problem = "path", "The member has no name, or one that is not UTF-8."
    elif name.startswith("/") or ".." in name.split("/"):
        problem = "path", "The name points out of the shard; such names are refused."
    yield Problem(f"{shard}/{info.name}", *problem) if problem else Member(name, info.offset_data, info.size)


def _end(file: BinaryIO, at: int) -> tuple[str, str] | None:
    """Kind and reason of what is wrong where tarfile stopped reading; None for a proper end: two blocks of zeros."""
    file.seek(at)
    block = file.read(len(_ZEROS))
    if not block:
        return "no-end", "The shard has no end mark; members may be missing."
    if block != _ZEROS:
        return "damaged-tar", f"The shard is damaged or cut off at byte {at:,}; what comes after it cannot be read."
    for _ in range(MAX_PADDING // 2**20):
        piece = file.read(2**20)
        if any(piece):
            return "after-end", "More follows behind the end mark, as where tars were joined with cat; it is not read."
        if not piece:
            break
    return None


def read(path: Path, shards: tuple[str, ...], columns: Columns, whole: bool, notes: Notes) -> Iterator[Pair | Problem]:
    """Shard by shard, in the order of the samples' first members. `shards` are relative to the folder `path`.

    With `whole`, shards that are missing in the folder are problems.
    """
    for shard in shards:
        samples: dict[str, list[Member]] = {}
        for member in members(path / shard, shard):
            if isinstance(member, Problem):
                yield member
                continue
            kind = ending(member.name)
            if os.path.basename(member.name).startswith("."):
                continue
            if kind not in READ:
                notes.count(f"members that are not read, ending in {kind or 'nothing'}", f"{shard}/{member.name}")
                continue
            name = _sample_name(member.name)
            files = samples.setdefault(name, [])
            if any(member.name == other.name for other in files):
                reason = f"The shard has {member.name} twice; the first one counts."
                yield Problem(f"{shard}/{name}", "duplicate-sample", reason, lost=int(kind not in SMALL))
            else:
                files.append(member)
        for name, files in samples.items():
            try:
                yield _pair(f"{shard}/{name}", files, str(path / shard), columns)
            except ImageProblem as problem:
                yield Problem(f"{shard}/{name}", problem.kind, problem.reason)
    if whole:
        yield from missing_parts(shards)
        yield from _missing(path, shards)


def _sample_name(name: str) -> str:
    """`a/b.c.jpg` belongs to the sample `a/b.c`, as do `a/b.c.txt` and `a/b.c.jpg.txt`.

    Names are compared in Unicode's composed form, because macOS writes them decomposed.
    """
    stem, kind = os.path.splitext(name)
    if kind.lower() in SMALL and ending(stem) in EXTENSIONS:
        stem = os.path.splitext(stem)[0]
    return unicodedata.normalize("NFC", stem)


def _pair(key: str, files: list[Member], path: str, columns: Columns) -> Pair:
    """The pair of a sample. Raises ImageProblem where it is none."""
    names = ", ".join(file.name for file in files[:3])
    images = [file for file in files if ending(file.name) in EXTENSIONS]
    if not images:
        unread = any(ending(file.name) in UNREAD_EXTENSIONS for file in files)
        raise ImageProblem("format" if unread else "no-image", f"There is no image that is read among {names}.")
    if len(images) > 1:
        raise ImageProblem("several-images", f"The sample has {len(images)} images ({names}), and one is needed.")
    image = images[0]
    texts: list[object] = []
    about: dict = {}
    label = None
    for file in files:
        kind, own = ending(file.name), os.path.splitext(file.name)[0]
        if kind not in SMALL:
            continue
        if ending(own) in EXTENSIONS and unicodedata.normalize("NFC", own) != unicodedata.normalize("NFC", image.name):
            raise ImageProblem("same-stem", f"{file.name} belongs to another image than {image.name}.")
        data = b""
        if file.length:
            data = read_file(path, offset=file.offset, length=file.length, limit=MAX_CAPTION_FILE)
        if kind in TEXTS:
            texts.append(data)
        elif kind == ".cls":
            label = data[:200].decode("utf-8", "replace").strip() or None
        else:
            try:
                about = parse_object(data)
            except ValueError as error:
                raise ImageProblem("row", f"{file.name} {error}.") from None
    if about.get("status", "success") != "success":
        raise ImageProblem("download-failed", f"img2dataset says: {str(about.get('error_message'))[:200]}.")
    place = InTar(path, image.offset, image.length, image.name)
    return pair_of(about, roles(tuple(about), columns), printable(key), place, texts=texts, label=label)


def _missing(path: Path, shards: tuple[str, ...]) -> Iterator[Problem]:
    """Shards that are compressed, or that an index (img2dataset's, webdataset's wids) names and that are gone."""
    for name in find_files(path, lambda folder, name: name.lower().endswith((*PACKED, ".json"))):
        if ending(name) != ".json":
            yield Problem(name, "missing", "The shard is compressed; unpack it to a plain .tar.", lost=None)
            continue
        about = _index(path / name)
        named = {name.removesuffix("_stats.json") + ".tar": about.get("successes")}
        if not name.endswith("_stats.json"):
            listed = about.get("shardlist") if isinstance(about.get("shardlist"), list) else []
            rows = [row for row in listed if isinstance(row, dict)]
            named = {os.path.join(os.path.dirname(name), str(row.get("url"))): row.get("nsamples") for row in rows}
        for shard, count in named.items():
            if os.path.normpath(shard) not in shards and count != 0:
                lost = count if isinstance(count, int) and count > 0 else None
                yield Problem(shard, "missing", f"{name} names this shard, which is not there.", lost)


def _index(path: Path) -> dict:
    try:
        return parse_object(read_file(str(path), limit=2**24))
    except (ImageProblem, ValueError):
        return {}


def _count(path: Path, shards: tuple[str, ...]) -> int | None:
    """What img2dataset's `00000_stats.json` files say, where every shard has one."""
    counts = [_index(path / f"{shard.removesuffix('.tar')}_stats.json").get("successes") for shard in shards]
    return sum(counts) if all(isinstance(count, int) for count in counts) else None


def layout(path: Path, shards: list[str], columns: Columns, *, whole: bool) -> Layout:
    """The shards `shards` in the folder `path`; `whole` if they are all that are in it."""
    title = f"webdataset, {len(shards):,} tar shard{'s' if len(shards) > 1 else ''}"
    names = tuple(shards)
    return Layout("tar", title, partial(read, path, names, columns, whole), partial(_count, path, names))


def find(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """Tar shards in a folder or its subfolders. Raises UsageError for compressed ones alone."""
    there = [folder.key(name) for folder in first for name in folder.files]
    if any(ending(name) == ".tar" for name in there):
        shards = list(find_files(path, lambda folder, name: ending(name) == ".tar"))
        return layout(path, shards, columns, whole=True)
    if packed := [name for name in there if name.lower().endswith(PACKED)]:
        raise UsageError(f"{path / packed[0]} is compressed; unpack it to a plain .tar.")
    return None


def brace_range(path: Path, columns: Columns) -> Layout | None:
    """The shards of a range such as `{00000..00099}.tar`; None if `path` is not one. Raises UsageError."""
    matched = RANGE.search(path.name)
    if matched is None:
        return None
    numbers = range(int(matched[1]), int(matched[2]) + 1)
    if not 0 < len(numbers) <= 1_000_000:
        raise UsageError(f"{path}: a range goes from a smaller to a larger number, with at most a million shards.")
    names = [RANGE.sub(str(number).zfill(len(matched[1])), path.name, count=1) for number in numbers]
    missing = [name for name in names if not os.path.isfile(path.parent / name)]
    if missing:
        raise UsageError(f"{path}: {len(missing):,} of {len(names):,} shards are not there, such as {missing[0]}.")
    return layout(path.parent, names, columns, whole=False)
