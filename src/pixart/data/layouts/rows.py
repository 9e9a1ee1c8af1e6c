"""Rows of a manifest to pairs: which columns hold what, where the image is, and what cannot be a pair.

Rows one after the other that name the same image become one pair with all their captions (as COCO's five captions
stand in many tables); the same image further on is reported.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.lines import Row
from pixart.data.layouts.places import Manifest, locate
from pixart.data.layouts.texts import gather
from pixart.data.pairs import METADATA, ORIGINAL, Caption, InFile, Pair, Problem, key_hash, printable
from pixart.errors import UsageError

IMAGE_COLUMNS = (
    "file_name", "image", "image_path", "path", "filename", "filepath", "file_path", "img_path", "image_file", "img",
    "file", "jpg", "png", "webp",
)  # fmt: skip
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "txt", "captions", "texts", "prompts", "sentences")
CAPTION_LISTS = ("captions", "texts", "prompts", "sentences")
WEB_COLUMNS = ("url", "image_url")
LABEL_COLUMNS = ("label", "class", "class_name", "category")
DENSE = "sharegpt4v"
MAX_EXTRA = 200  # characters of a value that is kept in Pair.extra


@dataclass(frozen=True)
class Roles:
    """Which column of a row is what. `captions` may be several columns, `dense` is PixArt-Sigma's sharegpt4v."""

    image: str | None
    captions: tuple[str, ...]
    dense: str | None
    width: str | None
    height: str | None
    label: str | None

    def used(self) -> list[str]:
        names = (self.image, *self.captions, self.dense, self.width, self.height, self.label)
        return [name for name in dict.fromkeys(names) if name]


@lru_cache(maxsize=1000)
def roles(names: tuple[str, ...], columns: Columns) -> Roles:
    """What the columns (or JSON keys) `names` are, in any case; a column that the user named is the one."""
    lower = {name.lower(): name for name in reversed(names)}

    def first(usual: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in usual if name in lower), None)

    if columns.caption is not None:
        captions = [columns.caption] if columns.caption in names else []
    else:
        main = first(CAPTION_COLUMNS)
        captions = [main] if main else []
        captions += [lower[name] for name in CAPTION_LISTS if name in lower and lower[name] != main]
    image = first(IMAGE_COLUMNS) if columns.image is None else columns.image if columns.image in names else None
    dense = lower.get(DENSE) if lower.get(DENSE) not in captions else None
    return Roles(image, tuple(captions), dense, first(("width",)), first(("height",)), first(LABEL_COLUMNS))


def check_named(names: list[str], columns: Columns, title: str) -> None:
    """Raise UsageError if a column that the user named is not among `names` of the table `title`."""
    for asked in (columns.image, columns.caption):
        if asked is not None and asked not in names:
            raise UsageError(f"{title} has no column {asked!r}; it has {', '.join(map(printable, names)) or 'none'}.")


def captions_of(
    row: dict, found: Roles, key: str, texts: Iterable[object] = ()
) -> tuple[tuple[Caption, ...], Problem | None]:
    """Captions of an image from `texts` (its caption files) and its row, the same for every layout.

    A column may hold a text or a list of texts. Captions of the column sharegpt4v have that model as their source.
    Emoji metadata, which is what a row with base_concept and captions is, has the source METADATA.
    """
    values = [*texts, *(one for name in found.captions for one in _listed(row.get(name)))]
    if len(values) > 1:  # one empty column does not matter beside another that has a caption
        values = [value for value in values if value not in (None, "", b"")] or values[:1]
    source = METADATA if "base_concept" in row and "captions" in row else ORIGINAL
    captions, problem = gather(values, key, source)
    dense = gather(_listed(row.get(found.dense)), key, DENSE)[0] if found.dense else ()
    known = {caption.text for caption in captions}
    return (*captions, *(caption for caption in dense if caption.text not in known)), problem


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def pairs_of_rows(
    rows: Iterator[Row], manifest: Manifest, columns: Columns, seen: set[bytes]
) -> Iterator[Pair | Problem]:
    """Pairs of `rows`, whose image column holds paths; `seen` gets the hash of the key of every image named."""
    waiting: Pair | None = None
    for where, row in rows:
        one = row if isinstance(row, Problem) else _pair(row, roles(tuple(row), columns), where, manifest)
        if isinstance(one, Problem):
            yield one
            continue
        if waiting is not None and one.key == waiting.key:
            known = {caption.text for caption in waiting.captions}
            new = tuple(caption for caption in one.captions if caption.text not in known)
            if new:
                problem = waiting.caption_problem or one.caption_problem
                waiting = replace(waiting, captions=waiting.captions + new, caption_problem=problem)
            else:
                yield _repeated(where, one, "in the row before, with the same caption")
        elif key_hash(one.key) in seen:
            yield _repeated(where, one, "in an earlier row; captions of one image belong into neighbouring rows")
        else:
            if waiting is not None:
                yield waiting
            waiting = one
            seen.add(key_hash(one.key))
    if waiting is not None:
        yield waiting


def _repeated(where: str, one: Pair, what: str) -> Problem:
    return Problem(where, "duplicate-row", f"{printable(one.key)} stands already {what}.")


def _pair(row: dict, found: Roles, where: str, manifest: Manifest) -> Pair | Problem:
    if found.image is None:
        if any(name.lower() in WEB_COLUMNS for name in row):
            return Problem(where, "url", "The row has only a web address; fetch the images first (img2dataset does).")
        return Problem(where, "no-image", f"The row has none of the keys {', '.join(IMAGE_COLUMNS[:4])}, ...")
    place = locate(row[found.image], where, manifest)
    if isinstance(place, Problem):
        return place
    key, path = place
    captions, problem = captions_of(row, found, key)
    used = found.used()
    extra = {
        name: value
        for name, value in row.items()
        if name not in used and (value is None or isinstance(value, str | int | float)) and len(str(value)) <= MAX_EXTRA
    }
    return Pair(
        key=key, captions=captions, label=label_of(row, found), image=InFile(path), width=size(row.get(found.width)),
        height=size(row.get(found.height)), caption_problem=problem, extra=extra,
    )  # fmt: skip


def label_of(row: dict, found: Roles, classes: Sequence[str] = ()) -> str | None:
    """The label of a row; a number stands for one of the `classes` where a schema names them."""
    value = row.get(found.label) if found.label else None
    if isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return None if value in (None, "") else str(value)


def size(value: object) -> int | None:
    """A width or height as a manifest declares it, or None if that is no sensible number."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < 2**31 else None
