"""Rows of a manifest to pairs: which columns hold what, where the image is, and what cannot be a pair.

Rows one after the other that name the same image become one pair with all their captions (as COCO's five captions
stand in many tables); the same image further on is reported.
"""

import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.lines import Row
from pixart.data.layouts.texts import gather
from pixart.data.layouts.walk import is_unicode
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
from pixart.errors import UsageError

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
