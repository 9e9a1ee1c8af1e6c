"""What a layout is, and what all have in common: columns, notes, captions, and a walk through folders.

Caption texts come as people write them: decoded, trimmed, and refused where they cannot be what was meant. Folders are
gone through in an order that is always the same, past links that loop, pipes and what cannot be read.
"""

import codecs
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pixart.data.pairs import ORIGINAL, Caption, ImageProblem, Pair, Problem, printable, read_file
from pixart.images import EXTENSIONS, UNREAD_EXTENSIONS


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


FIRST_FOLDERS, FIRST_NAMES = 400, 10_000  # by which a layout is recognised: folders, and names in each


@dataclass(frozen=True)
class Folder:
    """One folder: `path`, its name `rel` from where the walk began ("" for that itself), the names in it, sorted."""

    path: str
    rel: str
    files: list[str]
    folders: list[str]

    def key(self, name: str) -> str:
        return f"{self.rel}/{name}" if self.rel else name


def ending(name: str) -> str:
    """The ending of a file name, in small letters: ".jpg", or "" without one."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    return ending(name) in EXTENSIONS


def is_unicode(name: str) -> bool:
    """Whether a name is Unicode; bytes of a file name that are not reach Python as surrogates."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def walk(root: Path, notes: Notes, *, brief: bool = False) -> Iterator[Folder | Problem]:
    """Every folder under `root`, each with its files, then its subfolders by name. Hidden ones are passed over.

    With `brief`, the nearest folders come first, and of those below `root` only some names.

    A linked folder is entered if it lies outside `root` and has not been entered before; otherwise it loops, or will be
    read under its own name. Images that are no regular files are problems, other such files are counted in `notes`.
    """
    real_root = os.path.realpath(root)
    entered: set[tuple[int, int]] = set()
    waiting = deque([(str(root), "")])
    while waiting:
        folder = Folder(*(waiting.popleft() if brief else waiting.pop()), [], [])
        try:
            with os.scandir(folder.path) as entries:
                some = islice(entries, FIRST_NAMES if brief and folder.rel else None)
                found = sorted(some, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"The folder cannot be read: {error.strerror}."
            yield Problem(folder.rel or ".", "unreadable", reason, lost=None)
            continue
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            kind, reason = _kind(entry, real_root, entered)
            if kind == "file":
                folder.files.append(entry.name)
            elif kind == "folder":
                folder.folders.append(entry.name)
            elif is_image(entry.name) or kind in ("name-encoding", "link"):
                yield Problem(folder.key(entry.name), kind, reason)
            else:
                notes.count(f"entries that are no files ({kind})", folder.key(entry.name))
        yield folder
        below = [(os.path.join(folder.path, name), folder.key(name)) for name in folder.folders]
        waiting.extend(below if brief else reversed(below))


def _kind(entry: os.DirEntry, real_root: str, entered: set[tuple[int, int]]) -> tuple[str, str]:
    """ "file", "folder", or the kind of a problem and its reason."""
    if not is_unicode(entry.name):
        return "name-encoding", "The file name is not UTF-8; rename it."
    if entry.is_file(follow_symlinks=False):  # known from the folder, without a look at the file
        return "file", ""
    try:
        about = entry.stat()  # follows links
    except OSError as error:
        return "unreadable", f"It cannot be reached: {error.strerror}."
    if stat.S_ISREG(about.st_mode):
        return "file", ""
    if not stat.S_ISDIR(about.st_mode):
        return "not-a-file", "It is a pipe, socket or device, not a file."
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath((target, real_root)) in (target, real_root):
            return "link", "The link leads into the data set itself; it is not followed."
        if (about.st_dev, about.st_ino) in entered:
            return "link", "The link leads to a folder that was read before; it is not followed."
    entered.add((about.st_dev, about.st_ino))
    return "folder", ""


def first_folders(root: Path) -> list[Folder]:
    """What a data set is recognised by: the folder itself, then those nearest to it."""
    folders = (one for one in walk(root, Notes(), brief=True) if isinstance(one, Folder))
    return list(islice(folders, FIRST_FOLDERS)) or [Folder(str(root), "", [], [])]


def find_files(root: Path, wanted: Callable[[Folder, str], bool]) -> Iterator[str]:
    """Every file below `root` that is `wanted(folder, name)`, relative to it, in the order of `walk`."""
    for folder in walk(root, Notes()):
        if isinstance(folder, Folder):
            yield from (folder.key(name) for name in folder.files if wanted(folder, name))


def missing_parts(files: Iterable[str]) -> list[Problem]:
    """A problem for each set of shards called NAME-00000-of-00003 of which some are not there."""
    sets: dict[tuple[str, str], set[str]] = {}
    for name in files:
        if matched := re.match(r"(.*)-(\d{5,})-of-(\d{5,})\b", name):
            sets.setdefault((matched[1], matched[3]), set()).add(matched[2])
    return [
        Problem(f"{stem}-*-of-{total}", "missing", f"{len(found)} of {int(total)} shards are there.", lost=None)
        for (stem, total), found in sets.items()
        if len(found) < int(total)
    ]


def other_file(key: str, notes: Notes) -> Iterator[Problem]:
    """For a file that a layout does not read: a problem if it is an image of an unread format, else it is counted."""
    if ending(key) in UNREAD_EXTENSIONS:
        yield Problem(key, "format", "Images of this format are not read; convert it to PNG or JPEG.")
    else:
        notes.count(f"files that are not read, ending in {ending(key) or 'nothing'}", key)
