"""Rows of manifests, one after the other: JSON Lines, CSV and TSV, and one long JSON list. Bad rows have their line."""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pixart.data.pairs import Problem
from pixart.errors import PixArtError, UsageError

MAX_LINE = 4 * 1024**2
PIECE = 1024**2  # characters of a JSON list that are read at a time
Row = tuple[str, dict | Problem]  # where it stands ("metadata.jsonl:17"), and the row or what is wrong with it


def json_lines(path: Path, name: str) -> Iterator[Row]:
    """The objects of a JSON Lines file; `name` stands in keys and problems. Empty lines are passed over."""
    with _open(path) as file:
        for number, line in _lines(file):
            where = f"{name}:{number}"
            if line is None:
                yield where, Problem(where, "row", f"Line {number} is longer than {MAX_LINE:,} bytes.")
            elif line.strip():
                row = _json_row(line, number, where)
                if isinstance(row, Problem) and not line.endswith(b"\n"):  # only the last line of a file has no end
                    row = replace(row, reason=f"{row.reason} The file may be cut off here.", lost=None)
                yield where, row


def _json_row(line: bytes, number: int, where: str) -> dict | Problem:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        return Problem(where, "row-encoding", f"Line {number} is not UTF-8 (byte {error.start} of the line).")
    except RecursionError:
        return Problem(where, "row", f"Line {number} is nested too deeply.")
    except ValueError as error:
        lost = None if "Extra data" in str(error) else 1  # several rows on one line
        return Problem(where, "row", f"Line {number} is not JSON: {error}.", lost)
    if not isinstance(row, dict):
        return Problem(where, "row", f"Line {number} is not a JSON object with keys such as file_name and text.")
    return row


def unique(pairs: list[tuple[str, object]]) -> dict:
    """An object whose keys are each there once: which of two values was meant, nobody can say."""
    row = dict(pairs)
    if len(row) < len(pairs):
        double = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {double!r} is there twice")
    return row


def json_list(path: Path, name: str) -> Iterator[Row]:
    """The objects of a file that is one JSON list, read piece by piece; the row's place is its number, from 0.

    Where the text stops being JSON, nothing after it can be told apart: that is one problem, and the end.
    """
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    with _open(path) as file:
        text = _Pieces(file)
        number = 0

        def end(reason: str) -> Row:
            where = f"{name}:{number}"
            return where, Problem(where, "row", f"{reason}; nothing after it can be read.", lost=None)

        try:
            if text.next() != "[":
                yield end(f"{name} is not a JSON list of objects")
                return
            text.at += 1
            while (sign := text.next()) != "]":
                if number:
                    if sign != ",":
                        yield end(f"Entry {number - 1} is followed by neither a comma nor the end of the list")
                        return
                    text.at += 1
                    text.next()
                row = text.decode(decoder)
                where = f"{name}:{number}"
                yield where, row if isinstance(row, dict) else Problem(where, "row", f"Entry {number} is no object.")
                number += 1
            text.at += 1
            if text.next():
                yield end("More follows behind the list")
        except RecursionError:
            yield end(f"Entry {number} is nested too deeply")
        except ValueError as error:
            yield end(f"Entry {number} is not JSON ({error})")


class _Pieces:
    """A text file read a megabyte at a time: `at` is where in the piece the reader is."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")  # names and captions refuse these
        self._text = ""
        self._ended = False
        self.at = 0

    def _more(self) -> None:
        piece = self._file.read(PIECE)
        self._ended = not piece
        self._text = self._text[self.at :] + self._decoder.decode(piece, final=self._ended)
        self.at = 0

    def next(self) -> str:
        """The next character that is not white space, which `at` is moved to; "" at the end."""
        while True:
            while self.at < len(self._text):
                if self._text[self.at] not in " \t\r\n":
                    return self._text[self.at]
                self.at += 1
            if self._ended:
                return ""
            self._more()

    def decode(self, decoder: json.JSONDecoder) -> object:
        """The value that begins at `at`, which is moved behind it."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self.at)
                if end < len(self._text) or self._ended:  # else a number could go on in the next piece
                    self.at = end
                    return value
            except ValueError:
                if self._ended or len(self._text) - self.at > MAX_LINE:
                    raise
            self._more()


def csv_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file with a header, by column name; places are line numbers, the header is line 1.

    Quotes as in RFC 4180. Cells with bytes that are not UTF-8 keep them as surrogates, which captions and names refuse.
    """
    header, delimiter = csv_header(path)
    with _open(path) as file:
        lines = _CsvLines(file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        while True:
            first = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # An open quote swallows lines; every one of them is a row that is lost, and is counted as one.
                for number in range(first, lines.number + 1):
                    where = f"{name}:{number}"
                    last = f" to {lines.number}" if lines.number > first else ""
                    lost = None if lines.cut and number == lines.number else 1
                    yield where, Problem(where, "row", f"Line {first}{last} cannot be read: {error}.", lost)
                continue
            where = f"{name}:{first}"
            if not cells:
                continue
            if lines.too_long:
                lines.too_long = False
                yield where, Problem(where, "row", f"Line {first} is longer than {MAX_LINE:,} bytes.")
            elif len(cells) != len(header):
                reason = f"Line {first} has {len(cells)} cells, the header {len(header)}; quote commas and line ends."
                yield where, Problem(where, "row", reason, None if lines.cut else 1)
            else:
                yield where, dict(zip(header, cells, strict=True))


def csv_header(path: Path) -> tuple[list[str], str]:
    """The column names of a CSV or TSV file and what stands between them. Raises UsageError where there are none."""
    with _open(path) as file:
        lines = _CsvLines(file)
        line = next(lines, "")
    best: list[str] = []
    delimiter = ","
    for candidate in ("\t",) if path.suffix.lower() == ".tsv" else (",", ";", "\t"):
        try:
            cells = next(csv.reader([line], delimiter=candidate, strict=True), [])
        except csv.Error:
            continue
        if len(cells) > len(best):
            best, delimiter = cells, candidate
    best = [cell.strip() for cell in best]
    if len(set(best)) < len(best):
        double = next(cell for i, cell in enumerate(best) if cell in best[:i])
        raise UsageError(f"{path} has the column {double!r} twice in its first line; rename one.")
    return best, delimiter


class _CsvLines:
    """Decoded lines for csv.reader; `number` is that of the last one given, `cut` whether it has no line end."""

    def __init__(self, file: BinaryIO):
        self._lines = _lines(file)
        self.number = 0
        self.too_long = self.cut = False

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if line is None:
            self.too_long = True
            return "too long\n"
        self.cut = not line.endswith((b"\n", b"\r"))
        return line.decode("utf-8", "surrogateescape")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines, from 1; None for one over MAX_LINE, which is never held whole. A byte order mark goes."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line


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


def count_lines(path: Path) -> int:
    """Line ends in a file: a cheap guess at its rows (some 2 GB/s)."""
    with _open(path) as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1024**2), b""))
