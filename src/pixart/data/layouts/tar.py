"""Members of an uncompressed tar with their offsets, by Python's tarfile, and what it passes over in silence.

tarfile takes a damaged header, a missing end and archives joined by `cat` for the end of the archive. Here each of them
is a problem that loses an unknown number of images.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pixart.data.pairs import ImageProblem, Problem, open_regular, printable

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
        except (
            Exception
        ) as error:  # bytes of strangers make tarfile raise ValueError, RecursionError, OverflowError, ...
            reason = printable((str(error) or type(error).__name__)[:200])
            end = ("damaged-tar", f"The shard is damaged or cut off ({reason}); what comes after it cannot be read.")
    if end is not None:
        yield Problem(shard, *end, lost=None)


def _member(info: tarfile.TarInfo, shard: str) -> Iterator[Member | Problem]:
    name = info.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if info.isdir() or info.name.endswith("/"):
        return
    problem = None
    if not info.isreg() or info.issparse():
        problem = "not-a-file", f"{printable(name)} is a link, device or sparse file; only plain files are read."
    elif not name or "\0" in name:
        problem = "path", "The member has no usable name."
    elif name.startswith("/") or ".." in name.split("/"):
        problem = "path", f"{printable(name)} points out of the shard; such names are refused."
    elif any("\ud800" <= letter <= "\udfff" for letter in name):
        problem = "path", f"The name {printable(name)} is not UTF-8."
    yield Problem(f"{shard}/{info.name}", *problem) if problem else Member(name, info.offset_data, info.size)


def _end(file: BinaryIO, at: int) -> tuple[str, str] | None:
    """Kind and reason of what is wrong where tarfile stopped reading; None for a proper end: two blocks of zeros."""
    file.seek(at)
    block = file.read(len(_ZEROS))
    if not block:
        return "no-end", "The shard has no end mark; members may be missing."
    if block != _ZEROS:
        what = "is cut off within" if len(block) < len(_ZEROS) else "is damaged in"
        return "damaged-tar", f"The shard {what} the header at byte {at:,}; what comes after it cannot be read."
    for _ in range(MAX_PADDING // 2**20):
        piece = file.read(2**20)
        if any(piece):
            return "after-end", "More follows behind the end mark, as where tars were joined with cat; it is not read."
        if not piece:
            break
    return None
