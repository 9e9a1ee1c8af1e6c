"""Rows of manifests, one after the other: JSON Lines, CSV and TSV, and one long JSON list. Bad rows have their line.

The readers of pyarrow and pandas are not used: they end at the first bad row, or pass over it without its number.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pixart.data.pairs import Problem
from pixart.errors import PixArtError, UsageError

MAX_ROW = 1024**2  # bytes of a line, or characters of an entry of a JSON list
QUOTED = re.compile(r'"((?:[^"]|"")*)"')  # a whole cell
Row = tuple[str, dict | Problem]  # where it stands ("metadata.jsonl:17"), and the row or what is wrong with it


class _Lines:
    """Lines of a file as text; `number` is that of the last one, from 1, `cut` whether it has no line end.

    Bytes that are not UTF-8 become surrogates, which captions and names refuse. Lines over MAX_ROW are empty here.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.number = self.too_long = 0
        self.cut = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW)
        if not line:
            raise StopIteration
        self.number += 1
        self.cut = not line.endswith(b"\n")
        if self.cut and len(line) == MAX_ROW:
            self.too_long = self.number
            while (rest := self._file.readline(MAX_ROW)) and not rest.endswith(b"\n"):
                pass
            return "\n"
        return line.removeprefix(codecs.BOM_UTF8 if self.number == 1 else b"").decode("utf-8", "surrogateescape")


def json_lines(path: Path, name: str) -> Iterator[Row]:
    """The objects of a JSON Lines file; `name` stands in keys and problems. Empty lines are passed over."""
    with _open(path) as file:
        lines = _Lines(file)
        for line in lines:
            where = f"{name}:{lines.number}"
            if lines.too_long == lines.number:
                yield where, Problem(where, "row", f"The line is longer than {MAX_ROW:,} bytes.")
            elif line.strip():
                try:
                    yield where, parse_object(line)
                except ValueError as error:
                    unknown = lines.cut or "Extra data" in str(error)  # the file is cut off, or several rows in a line
                    yield where, Problem(where, "row", f"The line {error}.", None if unknown else 1)


def parse_object(text: str | bytes) -> dict:
    """A JSON object whose keys are each there once. Raises ValueError with the end of a sentence."""
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object with keys such as file_name and text")
    return row


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):  # which of two values was meant, nobody can say
        raise ValueError("a key is there twice")
    return row


def json_list(path: Path, name: str) -> Iterator[Row]:
    """The objects of a file that is one JSON list, read piece by piece; a row's place is its number, from 0.

    Where the text stops being JSON, nothing after it can be told apart: that is one problem, and the end.
    """
    number = 0
    with _open(path) as file:
        try:
            for value in _values(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")):
                where = f"{name}:{number}"
                yield where, value if isinstance(value, dict) else Problem(where, "row", "The entry is no object.")
                number += 1
        except (ValueError, RecursionError) as error:
            reason = f"Entry {number} is not JSON, or too long or deep ({error}); nothing after it can be read."
            yield f"{name}:{number}", Problem(f"{name}:{number}", "row", reason, lost=None)


def _values(text: io.TextIOWrapper) -> Iterator[object]:
    """The values of a JSON list. Raises ValueError where it is none, or has a value of over MAX_ROW characters."""
    decoder, space = json.JSONDecoder(object_pairs_hook=_unique), re.compile(r"[ \t\r\n]*")
    buffer, at = "", 0

    def next_sign() -> str:
        """What comes after white space; behind it, as much is in the buffer as a value may have."""
        nonlocal buffer, at
        while True:
            at = space.match(buffer, at).end()  # type: ignore[union-attr]
            if len(buffer) - at > MAX_ROW or not (piece := text.read(MAX_ROW + 1)):
                return buffer[at : at + 1]
            buffer, at = buffer[at:] + piece, 0

    if next_sign() != "[":
        raise ValueError("it is not a list")
    at += 1
    sign = next_sign()
    while sign != "]":
        value, at = decoder.raw_decode(buffer, at)
        yield value
        sign = next_sign()
        if sign not in (",", "]"):
            raise ValueError("neither a comma nor the end of the list follows")
        if sign == ",":
            at += 1
            next_sign()
    at += 1
    if next_sign():
        raise ValueError("more follows behind the list")


def csv_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file with a header, by column name; places are line numbers, the header is line 1.

    Quotes as in RFC 4180 between commas. Between tabs only a cell that is quoted as a whole has quotes taken off: most
    TSV files know no quoting, and `"OPEN" on a door` is a caption.
    """
    header, delimiter = csv_header(path)
    with _open(path) as file:
        lines = _Lines(file)
        reader = _tab_cells(lines) if delimiter == "\t" else csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        while True:
            first = lines.number + 1
            try:
                cells, reason = next(reader), ""
            except StopIteration:
                return
            except csv.Error as error:
                cells, reason = [], f"Lines {first} to {lines.number} cannot be read: {error}."
            if lines.too_long >= first:
                reason = f"Line {lines.too_long} is longer than {MAX_ROW:,} bytes."
            elif cells and len(cells) != len(header):
                reason = f"The row has {len(cells)} cells, the header {len(header)}; quote commas and line ends."
            if not reason and cells:
                yield f"{name}:{first}", dict(zip(header, cells, strict=True))
            elif reason:
                # An open quote swallows lines; every one of them is a row that is lost.
                for number in range(first, lines.number + 1):
                    cut = lines.cut and number == lines.number
                    yield f"{name}:{number}", Problem(f"{name}:{number}", "row", reason, None if cut else 1)


def _tab_cells(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        cells = line.rstrip("\r\n").split("\t") if line.strip("\r\n") else []
        yield [match[1].replace('""', '"') if (match := QUOTED.fullmatch(cell)) else cell for cell in cells]


def csv_header(path: Path) -> tuple[list[str], str]:
    """The column names of a CSV or TSV file and what stands between them. Raises UsageError for a name twice."""
    with _open(path) as file:
        line = next(_Lines(file), "")
    best: list[str] = []
    delimiter = ","
    for candidate in ("\t",) if path.suffix.lower() == ".tsv" else (",", ";", "\t"):
        try:
            cells = next(csv.reader([line], delimiter=candidate, strict=True), [])
        except csv.Error:
            continue
        if len(cells) > len(best):
            best, delimiter = [cell.strip() for cell in cells], candidate
    if len(set(best)) < len(best):
        raise UsageError(f"{path} has a column twice in its first line, {line.strip()[:200]}; rename one.")
    return best, delimiter


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise PixArtError(f"{path} cannot be read: {error.strerror}.") from None
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        file.close()
        raise PixArtError(f"{path} is UTF-16; save it as UTF-8.")
    file.seek(0)
    return file


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, without white space around them."""
    with _open(path) as file:
        lines = _Lines(file)
        for line in lines:
            yield lines.number, line.strip()


def count_lines(path: Path) -> int:
    """Line ends in a file: a cheap guess at its rows (some 2 GB/s)."""
    with _open(path) as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1024**2), b""))
