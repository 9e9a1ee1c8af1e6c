"""Rows of manifests (JSON Lines, CSV and TSV, one long JSON list), and what pairs they are.

Bad rows have their line. The readers of pyarrow and pandas are not used: they end at the first bad row, or pass over it
without its number. Rows one after the other that name the same image become one pair with all their captions (as COCO's
five captions stand in many tables); the same image further on is reported.
"""

import codecs
import csv
import io
import json
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pixart.data.layouts.layout import Columns, gather, is_unicode
from pixart.data.pairs import (
    Caption,
    ImageProblem,
    InFile,
    InTable,
    Location,
    Pair,
    Problem,
    key_hash,
    printable,
)
from pixart.errors import PixArtError, UsageError
from pixart.files import unique_keys

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
        row = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object with keys such as file_name and text")
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
    decoder, space = json.JSONDecoder(object_pairs_hook=unique_keys), re.compile(r"[ \t\r\n]*")
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


IMAGE_COLUMNS = (
    "file_name", "image", "image_path", "path", "filename", "filepath", "file_path", "img_path", "image_file", "img",
    "file", "jpg", "png", "webp",
)  # fmt: skip
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "txt", "captions", "texts", "prompts", "sentences")
CAPTION_LISTS = ("captions", "texts", "prompts", "sentences")
WEB_COLUMNS = ("url", "image_url")
LABEL_COLUMNS = ("label", "class", "class_name", "category")
DENSE = "sharegpt4v"  # PixArt-Sigma's second caption
WEB = ("http://", "https://", "s3://", "gs://", "ftp://", "data:")
MAX_EXTRA = 200  # characters of a value that is kept in Pair.extra


@dataclass(frozen=True)
class Roles:
    """Which column of a row is what."""

    image: str | None
    captions: tuple[str, ...]
    dense: str | None
    width: str | None
    height: str | None
    label: str | None


@lru_cache(maxsize=1000)
def roles(names: tuple[str, ...], columns: Columns) -> Roles:
    """What the columns (or JSON keys) `names` are, in any case; a column that the user named is the one."""
    lower = {name.lower(): name for name in reversed(names)}

    def first(usual: Iterable[str], given: str | None = None) -> str | None:
        return next((lower[name] for name in usual if name in lower), None) if given is None else given

    main = first(CAPTION_COLUMNS, columns.caption)
    more = [] if columns.caption else [lower[name] for name in CAPTION_LISTS if name in lower]
    captions = tuple(name for name in dict.fromkeys([main, *more]) if name in names)
    image = first(IMAGE_COLUMNS, columns.image)
    dense = lower.get(DENSE) if lower.get(DENSE) not in captions else None
    return Roles(
        image if image in names else None, captions, dense, lower.get("width"), lower.get("height"),
        first(LABEL_COLUMNS),
    )  # fmt: skip


def check_columns(names: list[str], columns: Columns, title: str) -> None:
    """Refuse a table `title` that lacks a column of images, or one that was named, at once and not once a row."""
    there = printable(", ".join(names)[:200]) or "none"
    for given in (columns.image, columns.caption):
        if given is not None and given not in names:
            raise UsageError(f"{title} has no column {given!r}; it has {there}.")
    if roles(tuple(names), columns).image is None:
        if any(name.lower() in WEB_COLUMNS for name in names):
            raise UsageError(f"{title} has only web addresses; fetch the images first, for instance with img2dataset.")
        raise UsageError(f"{title} has no column of images among {there}; name it with --image-column.")


def pair_of(
    row: dict, found: Roles, key: str, image: Location, *, texts: Iterable[object] = (), label: str | None = None
) -> Pair:
    """The pair of an image and its row, the same for every layout; `texts` are those of its caption files.

    A column may hold a text or a list of texts. Captions of the column sharegpt4v have that model as their source.
    """
    values = [*texts, *(one for name in found.captions for one in _listed(row.get(name)))]
    if len(values) > 1:  # one empty column does not matter beside another that has a caption
        values = [value for value in values if value not in (None, "", b"")] or values[:1]
    captions, problem = gather(values, key)
    if found.dense:
        captions = _joined(captions, gather(_listed(row.get(found.dense)), key, DENSE)[0])
    value = row.get(found.label) if found.label else None
    if label is None and isinstance(value, str | int | float):
        label = str(value) or None
    used = (found.image, found.dense, found.width, found.height, found.label, *found.captions)
    extra = {
        name: value
        for name, value in row.items()
        if name not in used and (value is None or isinstance(value, str | int | float)) and len(str(value)) <= MAX_EXTRA
    }
    return Pair(
        key, captions, label, image, _size(row.get(found.width)), _size(row.get(found.height)), caption_problem=problem,
        extra=extra,
    )  # fmt: skip


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _joined(captions: tuple[Caption, ...], more: tuple[Caption, ...]) -> tuple[Caption, ...]:
    known = {caption.text for caption in captions}
    return (*captions, *(caption for caption in more if caption.text not in known))


def _size(value: object) -> int | None:
    """A width or height as a manifest declares it, or None if that is no sensible number."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < 2**31 else None


def pairs_of_rows(
    rows: Iterator[Row], columns: Columns, folder: Path, root: Path, seen: set[bytes]
) -> Iterator[Pair | Problem]:
    """Pairs of `rows`, whose image is a path as `locate` takes it, or an InTable.

    `seen` gets the hash of the key of every image that is named by a path.
    """
    waiting: Pair | None = None
    for where, row in rows:
        one = row if isinstance(row, Problem) else _pair(row, columns, where, folder, root)
        if isinstance(one, Problem):
            yield one
        elif waiting is not None and one.key == waiting.key:
            captions = _joined(waiting.captions, one.captions)
            if len(captions) > len(waiting.captions):
                problem = waiting.caption_problem or one.caption_problem
                waiting = replace(waiting, captions=captions, caption_problem=problem)
            else:
                yield Problem(where, "duplicate-row", f"{one.key} is in the row before, with the same caption.")
        elif isinstance(one.image, InFile) and key_hash(one.key) in seen:
            reason = f"{one.key} is in an earlier row; captions of one image belong into neighbouring rows."
            yield Problem(where, "duplicate-row", reason)
        else:
            if waiting is not None:
                yield waiting
            waiting = one
            if isinstance(one.image, InFile):
                seen.add(key_hash(one.key))
    if waiting is not None:
        yield waiting


def _pair(row: dict, columns: Columns, where: str, folder: Path, root: Path) -> Pair | Problem:
    found = roles(tuple(row), columns)
    if found.image is None:
        if any(name.lower() in WEB_COLUMNS for name in row):
            return Problem(where, "url", "The row has only a web address; fetch the images first (img2dataset does).")
        return Problem(where, "no-image", f"The row has none of the keys {', '.join(IMAGE_COLUMNS[:4])}, ...")
    value = row[found.image]
    if isinstance(value, InTable):
        return pair_of(row, found, where, value)
    try:
        key, path = locate(value, folder, root)
    except ImageProblem as problem:
        return Problem(where, problem.kind, problem.reason)
    return pair_of(row, found, key, InFile(path))


def locate(value: object, folder: Path, root: Path) -> tuple[str, str]:
    """Key (from `root`) and path of the image that a row names, by a path from `folder`.

    The path must not leave `root`: neither upwards with "..", nor absolutely. Links inside it are followed. Raises
    ImageProblem (no-image, url, path, missing, unreadable, not-a-file).
    """
    if isinstance(value, dict):
        value = value.get("path") or value.get("file_name")  # as Hugging Face writes images
    if not isinstance(value, str) or not value.strip():
        raise ImageProblem("no-image", "The row names no image.")
    shown = printable(value[:200])
    if value.startswith(WEB):
        raise ImageProblem("url", f"{shown} is a web address; fetch the images first (img2dataset does).")
    if "\0" in value or not is_unicode(value):
        raise ImageProblem("path", f"{shown} cannot be the name of a file.")
    # As it is written, as on Windows, and as macOS writes names (decomposed) or others do.
    forms = [value, value.replace("\\", "/"), *(unicodedata.normalize(form, value) for form in ("NFC", "NFD"))]
    base = root.as_posix().rstrip("/") + "/"
    paths = [posixpath.normpath(posixpath.join(folder.as_posix(), form)) for form in dict.fromkeys(forms)]
    if not all(path.startswith(base) for path in paths):
        reason = f"{shown} lies outside the data set, {printable(str(root))}; --image-root allows another folder."
        raise ImageProblem("path", reason)
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ImageProblem("unreadable", f"{shown} cannot be reached: {error.strerror}.") from None
        if not stat.S_ISREG(mode):
            raise ImageProblem("not-a-file", f"{shown} is a folder, pipe or device, not a file.")
        return path[len(base) :], path
    raise ImageProblem("missing", f"{shown} is not there.")
