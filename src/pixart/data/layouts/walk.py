"""Goes through folders in an order that is always the same, past links that loop, pipes and what cannot be read."""

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pixart.data.images import EXTENSIONS, UNREAD_EXTENSIONS
from pixart.data.layouts.layout import Notes
from pixart.data.pairs import Problem

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
