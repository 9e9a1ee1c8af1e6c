"""Members of an uncompressed tar file with their offsets, read defensively (ustar, GNU and PAX headers).

Python's tarfile keeps every member in memory and believes the sizes in headers; shards of strangers are read here. The
format is POSIX.1-2001 pax and the GNU tar manual's "Basic Tar Format".
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pixart.data.pairs import Problem, kind_of_file, printable

BLOCK = 512
MAX_HEADER = 64 * 1024  # bytes of a long name or a PAX header; a name has at most 4096
_REGULAR = b"0", b"\0", b"7"
_KINDS = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "pipe", b"S": "sparse file"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its bytes are `length` from `offset`. `name` is as stored, without "./"."""

    name: str
    offset: int
    length: int


class _Damaged(Exception):
    """The header cannot be believed, so nothing after it can be found."""


def members(path: Path, shard: str) -> Iterator[Member | Problem]:
    """Regular files in a tar, in its order, and a problem for everything else but folders.

    `shard` names the tar in problems. A damaged or truncated header is the last problem: nothing behind it can be told
    apart. A member that does not fit into the file is a problem, not a member.
    """
    try:
        # O_NONBLOCK: to open a pipe without a writer would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        yield Problem(printable(shard), "unreadable", f"The shard cannot be opened: {error}.")
        return
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            yield Problem(printable(shard), "not-a-file", f"The shard is a {kind_of_file(about.st_mode)}.")
            return
        try:
            yield from _read(file, about.st_size, shard)
        except _Damaged as error:
            yield Problem(printable(shard), "damaged-tar", f"{error}; what comes after it cannot be read.")
        except OSError as error:
            yield Problem(printable(shard), "unreadable", f"The shard cannot be read: {error.strerror}.")


def _read(file: BinaryIO, total: int, shard: str) -> Iterator[Member | Problem]:
    at, empty = 0, 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    everywhere: dict[str, str] = {}  # of a global PAX header
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if not header or empty == 2:
            if at == 0:
                raise _Damaged("The shard is empty")
            if long_name is not None or pax:
                raise _Damaged("The shard ends after an extended header")
            if empty == 2 and _more(file, header):
                yield Problem(
                    printable(shard),
                    "after-end",
                    "More follows behind the end mark, as in joined tars; it is not read.",
                )
            elif empty == 0:
                yield Problem(printable(shard), "no-end", "The shard has no end mark; members may be missing.")
            return
        if len(header) < BLOCK:
            raise _Damaged(f"The shard is cut off within the header at byte {at:,}")
        if not any(header):
            empty += 1
            at += BLOCK
            continue
        if empty:
            raise _Damaged(f"There is an end mark before byte {at:,}, but more follows")
        kind = header[156:157]
        _check_sum(header, at)
        size = _number(header[124:136], at)
        at += BLOCK
        if kind in (b"L", b"K", b"x", b"g", b"X"):
            if size > MAX_HEADER:
                raise _Damaged(f"The extended header at byte {at - BLOCK:,} claims {size:,} bytes")
            body = file.read(size)
            if len(body) < size:
                raise _Damaged(f"The shard is cut off within the extended header at byte {at - BLOCK:,}")
            if kind == b"L":
                long_name = _text(body.split(b"\0", 1)[0])
            elif kind in (b"x", b"X"):
                pax = _pax(body, at)
            elif kind == b"g":
                everywhere.update(_pax(body, at))
            at += _padded(size)
            continue
        found = everywhere | pax
        name = found.get("path", long_name if long_name is not None else _name(header))
        if "size" in found:
            size = _decimal(found["size"], at)
        sparse = any(key.startswith("GNU.sparse") for key in found)
        long_name, pax = None, {}
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
            size = 0  # links may repeat the size of what they point to; no data follows
        key = printable(f"{shard}/{name}")
        if kind in _REGULAR and not name.endswith("/") and not sparse:
            if at + size > total:
                raise _Damaged(f"The shard is cut off within {printable(name)}, which claims {size:,} bytes")
            bad = _bad_name(name)
            if bad is None:
                yield Member(_plain(name), at, size)
            else:
                yield Problem(key, "path", bad)
        elif kind != b"5" and not name.endswith("/"):
            what = "sparse file" if sparse else _KINDS.get(kind, "member of an unknown kind")
            yield Problem(key, "not-a-file", f"{printable(name)} is a {what}; only plain files are read.")
        at += _padded(size)


def _more(file: BinaryIO, header: bytes) -> bool:
    """Whether anything but the zeros that fill the last record follows; these are rarely more than 10 KB."""
    return any(header) or any(file.read(64 * 1024))


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _bad_name(name: str) -> str | None:
    if not _plain(name) or "\0" in name:
        return "The member has no usable name."
    if name.startswith("/") or ".." in name.split("/"):
        return f"{printable(name)} points out of the shard; such names are refused."
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"The name {printable(name)} is not UTF-8."
    return None


def _check_sum(header: bytes, at: int) -> None:
    stored = _number(header[148:156], at)
    plain = sum(header) - sum(header[148:156]) + 8 * 32
    if stored != plain:
        # Very old tars took bytes as signed. (The field itself counts as eight spaces.)
        signed = plain - 256 * sum(byte > 127 for byte in (*header[:148], *header[156:]))
        if stored != signed:
            raise _Damaged(f"The header at byte {at:,} has a wrong check sum, or this is no tar file")


def _number(field: bytes, at: int) -> int:
    """An octal number, or GNU's big-endian binary one."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if digits.strip(b"01234567"):
            raise _Damaged(f"The header at byte {at:,} has a number that is none, or this is no tar file")
        value = int(digits or b"0", 8)
    if value >= 2**62:
        raise _Damaged(f"The header at byte {at:,} claims {value:,} bytes")
    return value


def _decimal(text: str, at: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _Damaged(f"The extended header before byte {at:,} has a size that is no number")
    return int(text)


def _pax(body: bytes, at: int) -> dict[str, str]:
    """Records "length key=value\\n"."""
    records: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position] != 0:
        space = body.find(b" ", position, position + 20)
        digits = body[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise _Damaged(f"The extended header at byte {at:,} is damaged")
        end = position + int(digits)
        record = body[space + 1 : end - 1]
        if end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n" or b"=" not in record:
            raise _Damaged(f"The extended header at byte {at:,} is damaged")
        key, value = record.split(b"=", 1)
        records[_text(key)] = _text(value)
        position = end
    return records


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    if prefix and header[257:263] == b"ustar\0":  # GNU's own magic uses these bytes for other things
        name = prefix + b"/" + name
    return _text(name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK
