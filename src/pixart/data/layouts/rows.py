"""Rows of a manifest to pairs: which columns hold what, where the picture is, and what cannot be a pair.

Rows one after the other that name the same picture become one pair with all their captions (as COCO's five captions
stand in many tables); the same picture further on is reported.
"""

import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.lines import Row
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.texts import as_caption, gather
from pixart.data.layouts.walk import unusable_name
from pixart.data.pairs import METADATA, ORIGINAL, Caption, InFile, Pair, Problem, kind_of_file, printable
from pixart.errors import UsageError

IMAGE_COLUMNS = (
    "file_name", "image", "image_path", "path", "filename", "filepath", "file_path", "img_path", "image_file", "img",
    "file", "jpg", "png", "webp",
)  # fmt: skip
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "txt", "captions", "texts", "prompts", "sentences")
CAPTION_LISTS = ("captions", "texts", "prompts", "sentences")
WEB_COLUMNS = ("url", "image_url")
LABEL_COLUMNS = ("label", "class", "class_name", "category")
SECOND = "sharegpt4v"
MAX_EXTRA = 200  # characters of a value that is kept in Pair.extra


@dataclass(frozen=True)
class Manifest:
    """A manifest that is read: `name` in keys and problems, `folder` from which its paths start.

    `root` is the folder that paths must not leave, and that keys start from.
    """

    name: str
    folder: Path
    root: Path


@dataclass(frozen=True)
class Roles:
    """Which column of a row is what. `captions` may be several columns."""

    image: str | None
    captions: tuple[str, ...]
    width: str | None
    height: str | None
    label: str | None


def roles(names: list[str], columns: Columns, title: str) -> Roles:
    """What the columns `names` of `title` are. Raises UsageError if a column that the user named is not there."""
    for asked in (columns.image, columns.caption):
        if asked is not None and asked not in names:
            raise UsageError(f"{title} has no column {asked!r}; it has {', '.join(map(printable, names)) or 'none'}.")
    lower = {name.lower(): name for name in reversed(names)}

    def first(usual: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in usual if name in lower), None)

    if columns.caption is not None:
        captions = [columns.caption]
    else:
        main = first(CAPTION_COLUMNS)
        captions = [main] if main else []
        captions += [lower[name] for name in CAPTION_LISTS if name in lower and lower[name] != main]
    image = columns.image or first(IMAGE_COLUMNS)
    return Roles(image, tuple(captions), first(("width",)), first(("height",)), first(LABEL_COLUMNS))


def pairs_of_rows(rows: Iterator[Row], manifest: Manifest, columns: Columns, seen: Seen) -> Iterator[Pair | Problem]:
    """Pairs of `rows`, whose picture column holds paths; `seen` gets the key of every picture that is named."""
    known: dict[tuple[str, ...], Roles] = {}
    waiting: Pair | None = None
    for where, row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        names = tuple(row)
        if names not in known:
            if len(known) > 1000:  # rows with ever new keys must not fill the memory
                known.clear()
            known[names] = _roles_of_row(list(names), columns)
        one = _pair(row, known[names], where, manifest)
        if isinstance(one, Problem):
            yield one
        elif waiting is not None and one.key == waiting.key:
            merged = _merge(waiting, one)
            if merged is None:
                yield _repeated(where, one, "in the row before, with the same caption")
            else:
                waiting = merged
        elif not seen.add(one.key):
            yield _repeated(where, one, "in an earlier row; captions of one picture belong into neighbouring rows")
        else:
            if waiting is not None:
                yield waiting
            waiting = one
    if waiting is not None:
        yield waiting


def _repeated(where: str, one: Pair, what: str) -> Problem:
    return Problem(where, "duplicate-row", f"{printable(one.key)} stands already {what}.")


def _roles_of_row(names: list[str], columns: Columns) -> Roles:
    there = Columns(
        image=columns.image if columns.image in names else None,
        caption=columns.caption if columns.caption in names else None,
    )
    found = roles(names, there, "")
    return Roles(
        found.image if columns.image is None else there.image,
        found.captions if columns.caption is None else tuple(c for c in (there.caption,) if c),
        found.width, found.height, found.label,
    )  # fmt: skip


def _merge(first: Pair, second: Pair) -> Pair | None:
    known = {caption.text for caption in first.captions}
    new = tuple(caption for caption in second.captions if caption.text not in known)
    if not new:
        return None
    return Pair(
        first.key, first.captions + new, first.label, first.image, first.width, first.height, first.repeats,
        first.caption_problem or second.caption_problem, first.extra,
    )  # fmt: skip


def _pair(row: dict, found: Roles, where: str, manifest: Manifest) -> Pair | Problem:
    if found.image is None:
        web = next((name for name in row if name.lower() in WEB_COLUMNS), None)
        if web is not None:
            return Problem(where, "url", "The row has only a web address; fetch the pictures first (img2dataset does).")
        return Problem(where, "no-image", f"The row has none of the keys {', '.join(IMAGE_COLUMNS[:4])}, ...")
    place = locate(row[found.image], where, manifest)
    if isinstance(place, Problem):
        return place
    key, path = place
    captions, problem = captions_of(row, found.captions, key)
    used = {found.image, found.width, found.height, found.label, *found.captions}
    extra = {
        name: value
        for name, value in row.items()
        if name not in used and (value is None or isinstance(value, str | int | float)) and len(str(value)) <= MAX_EXTRA
    }
    label = row.get(found.label) if found.label else None
    return Pair(
        key=key, captions=captions, label=None if label in (None, "") else str(label), image=InFile(path),
        width=size(row.get(found.width)), height=size(row.get(found.height)), caption_problem=problem, extra=extra,
    )  # fmt: skip


def captions_of(row: dict, names: tuple[str, ...], key: str) -> tuple[tuple[Caption, ...], Problem | None]:
    """Captions of the columns `names` of a row; a column may hold a text or a list of texts.

    The key sharegpt4v is PixArt-Sigma's for captions by that model, which is then their source.
    """
    values: list[object] = []
    for name in names:
        value = row.get(name)
        values.extend(value if isinstance(value, list) else [value])
    if len(values) > 1:  # one empty column does not matter beside another that has a caption
        values = [value for value in values if value not in (None, "")] or [None]
    captions, problem = gather(values, key, METADATA if "base_concept" in row and "captions" in row else ORIGINAL)
    second = as_caption(row.get(SECOND), key, SECOND) if SECOND not in names else None
    if isinstance(second, Caption) and second.text not in {caption.text for caption in captions}:
        captions = (*captions, second)
    return captions, problem


def size(value: object) -> int | None:
    """A width or height as a manifest declares it, or None if that is no sensible number."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < 2**31 else None


def locate(value: object, where: str, manifest: Manifest) -> tuple[str, str] | Problem:
    """Key and path of the picture that a row names, or why there is none.

    Paths must not leave `manifest.root`: neither upwards with "..", nor absolutely. Links inside it are followed.
    """
    if isinstance(value, dict):
        value = value.get("path") or value.get("file_name")  # as Hugging Face writes pictures
    if not isinstance(value, str) or not value.strip():
        return Problem(where, "no-image", "The row names no picture.")
    shown = printable(value[:200])
    if value.startswith(("http://", "https://", "s3://", "gs://", "ftp://", "data:")):
        return Problem(where, "url", f"{shown} is a web address; fetch the pictures first (img2dataset does).")
    if "\0" in value or unusable_name(value):
        return Problem(where, "path", f"{shown} cannot be the name of a file.")
    outside = Problem(
        where, "path", f"{shown} lies outside the data set, {manifest.root}; --image-root allows another."
    )
    key = _key(value, manifest)
    if key is None:
        return outside
    about = _stat(os.path.join(manifest.root, key))
    if about is None and "\\" in value:  # written on Windows
        key = _key(value.replace("\\", "/"), manifest)
        if key is None:
            return outside
        about = _stat(os.path.join(manifest.root, key))
    path = os.path.join(manifest.root, key)
    if isinstance(about, str):
        return Problem(where, "unreadable", f"{printable(key)} cannot be reached: {about}.")
    if about is None:
        return Problem(where, "missing", f"{printable(key)} is not there{_other_case(path)}.")
    if not stat.S_ISREG(about.st_mode):
        return Problem(where, "not-a-file", f"{printable(key)} is a {kind_of_file(about.st_mode)}, not a file.")
    return key, path


def _key(value: str, manifest: Manifest) -> str | None:
    """The path from `manifest.root`, or None if it leaves it."""
    whole = posixpath.normpath(posixpath.join(manifest.folder.as_posix(), value))
    root = manifest.root.as_posix()
    root = root if root.endswith("/") else root + "/"
    if not whole.startswith(root):
        return None
    return whole[len(root) :]


def _stat(path: str) -> os.stat_result | str | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return error.strerror if isinstance(error, OSError) else str(error)


def _other_case(path: str) -> str:
    """A remark if the file is there in other letters: the commonest reason for a missing one."""
    folder, name = os.path.split(path)
    stem, ext = os.path.splitext(name)
    for other in (stem + ext.lower(), stem + ext.upper(), name.lower(), name.upper()):
        if other != name and os.path.exists(os.path.join(folder, other)):
            return f" (but {printable(other)} is)"
    return ""
