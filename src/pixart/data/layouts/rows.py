"""Rows of a manifest to pairs: which columns hold what, where the picture is, and what cannot be a pair.

Rows one after the other that name the same picture become one pair with all their captions (as COCO's five captions
stand in many tables); the same picture further on is reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.lines import Row
from pixart.data.layouts.places import Manifest, locate
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.texts import as_caption, gather
from pixart.data.pairs import METADATA, ORIGINAL, Caption, InFile, Pair, Problem, printable
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
