"""What a layout is: something found at a path that can be read as pairs; what its readers were given, and captions.

Caption texts come as people write them: decoded, trimmed, and refused where they cannot be what was meant.
"""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.pairs import ORIGINAL, Caption, ImageProblem, Pair, Problem, printable, read_file


@dataclass(frozen=True)
class Columns:
    """What was given about a manifest: names of columns, and the folder that its paths start from."""

    image: str | None = None
    caption: str | None = None
    root: Path | None = None


class Notes:
    """Remarks of one pass over a data set: how often each applies, and an example."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def count(self, what: str, example: str) -> None:
        number, first = self._counts.get(what, (0, example))
        self._counts[what] = (number + 1, min(first, example))

    def lines(self) -> list[str]:
        return [f"{what}: {n:,}, such as {printable(first)}" for what, (n, first) in sorted(self._counts.items())]


def unknown_count() -> int | None:
    return None


@dataclass(frozen=True)
class Layout:
    """One way of laying out images and captions, found at a path; it can be pickled.

    `name` is what `open_dataset(layout=...)` takes, `title` what people read. `count()` is about how many images there
    are, where that is cheap to find out.
    """

    name: str
    title: str
    read: Callable[[Notes], Iterator[Pair | Problem]]
    count: Callable[[], int | None] = unknown_count


MAX_CAPTION = 50_000  # characters, some ten pages; text encoders read 120 to 300 tokens
MAX_CAPTION_FILE = 1024**2


def as_caption(value: object, key: str, source: str = ORIGINAL) -> Caption | Problem:
    """`value` (text, UTF-8 bytes, or None) as a caption of the image `key`, or why it is none.

    A byte order mark and outer white space go, line ends become "\\n". UTF-16 is read where a byte order mark names it
    (as Windows writes "Unicode"). Nothing is guessed: other bytes that are not UTF-8 are a problem, because read as
    Latin-1 they would be a wrong caption as often as a right one.
    """

    def problem(kind: str, reason: str) -> Problem:
        return Problem(key, f"caption-{kind}", reason)

    if isinstance(value, Problem):  # the caption's file could not be read
        return value
    if value is None:
        return problem("missing", "There is no caption.")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-16" if value[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        except UnicodeDecodeError as error:
            return problem("encoding", f"The caption is not UTF-8 (byte {error.start}); save it as UTF-8.")
    if not isinstance(value, str):
        return problem("type", f"The caption is a {type(value).__name__}, not a text.")
    if len(value) > MAX_CAPTION:
        return problem("long", f"The caption has {len(value):,} characters; at most {MAX_CAPTION:,} are taken.")
    if "\0" in value:
        return problem("nul", "The caption has a NUL character, as UTF-16 has; save it as UTF-8.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return problem("encoding", "The caption has a byte that is not UTF-8, or half a surrogate pair.")
    value = value.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip()
    return Caption(value, source) if value else problem("empty", "The caption is empty.")


def gather(values: list[object], key: str, source: str = ORIGINAL) -> tuple[tuple[Caption, ...], Problem | None]:
    """All captions of an image, equal ones once, and the first problem among them."""
    found = [as_caption(value, key, source) for value in values or [None]]
    captions = {one.text: one for one in found if isinstance(one, Caption)}
    return tuple(captions.values()), next((one for one in found if isinstance(one, Problem)), None)


def read_caption_file(path: str, key: str) -> object:
    """The bytes of a caption file for `gather`, or the Problem of a file that cannot be read."""
    try:
        return read_file(path, limit=MAX_CAPTION_FILE)
    except ImageProblem as error:
        if error.kind == "empty":
            return b""
        return Problem(key, "caption-long" if error.kind == "too-large" else "caption-unreadable", error.reason)
