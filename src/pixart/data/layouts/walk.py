"""Goes through folders in an order that is always the same, past links that loop, pipes and what cannot be read."""

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.images import EXTENSIONS, UNREAD_EXTENSIONS
from pixart.data.layouts.layout import Notes
from pixart.data.pairs import Problem, kind_of_file, printable

MAX_LOOKS = 400  # folders that a first look goes into; 1000 entries of each


@dataclass(frozen=True)
class Folder:
    """One folder: `path`, its name `rel` from where the walk began ("" for that itself), its files, sorted."""

    path: str
    rel: str
    files: list[str]

    def key(self, name: str) -> str:
        return f"{self.rel}/{name}" if self.rel else name


def ending(name: str) -> str:
    """The ending of a file name, in small letters: ".jpg", or "" without one."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def unusable_name(key: str) -> Problem | None:
    """The problem of a file name that is not Unicode (such bytes reach Python as surrogates), else None."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return Problem(printable(key), "name-encoding", f"The file name {printable(key)} is not UTF-8; rename it.")
    return None


def walk(root: Path, notes: Notes) -> Iterator[Folder | Problem]:
    """Every folder under `root`, each with its files, then its subfolders by name. Hidden ones are passed over.

    A linked folder is entered if it lies outside `root` and has not been entered before; otherwise it loops, or will be
    read under its own name. Pictures that are no regular files are problems, other such files are counted in `notes`.
    """
    real_root = os.path.realpath(root)
    entered: set[tuple[int, int]] = set()
    waiting = [(str(root), "")]
    while waiting:
        path, rel = waiting.pop()
        try:
            with os.scandir(path) as entries:
                found = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            yield Problem(
                printable(rel or "."), "unreadable", f"The folder cannot be read: {error.strerror}.", lost=None
            )
            continue
        folders, files, problems = [], [], []
        for entry in found:
            key = f"{rel}/{entry.name}" if rel else entry.name
            kind, problem = _kind(entry, key, real_root, entered)
            if kind == "folder":
                folders.append((entry.path, key))
            elif kind == "file":
                files.append(entry.name)
            if problem is not None:
                if ending(entry.name) in EXTENSIONS or problem.kind in ("name-encoding", "link"):
                    problems.append(problem)
                else:
                    notes.count(f"entries that are no files ({problem.kind})", key)
        yield from problems
        yield Folder(path, rel, files)
        waiting.extend(reversed(folders))


def _kind(
    entry: os.DirEntry, key: str, real_root: str, entered: set[tuple[int, int]]
) -> tuple[str | None, Problem | None]:
    name_problem = unusable_name(key)
    if name_problem is not None:
        return None, name_problem
    if entry.is_file(follow_symlinks=False):  # known from the folder, without a look at the file
        return "file", None
    shown = printable(key)
    try:
        about = entry.stat()  # follows links
        linked = entry.is_symlink()
    except OSError as error:
        return None, Problem(shown, "unreadable", f"{shown} cannot be reached: {error.strerror}.")
    if stat.S_ISREG(about.st_mode):
        return "file", None
    if not stat.S_ISDIR(about.st_mode):
        return None, Problem(shown, "not-a-file", f"{shown} is a {kind_of_file(about.st_mode)}, not a file.")
    if linked:
        if _entangled(entry.path, real_root):
            return None, Problem(shown, "link", f"{shown} is a link into the data set itself; it is not followed.")
        if (about.st_dev, about.st_ino) in entered:
            return None, Problem(shown, "link", f"{shown} is a link to a folder that was read before; not followed.")
    entered.add((about.st_dev, about.st_ino))
    if ending(entry.name) in EXTENSIONS:
        return "folder", Problem(shown, "not-a-file", f"{shown} is a folder, not a picture.")
    return "folder", None


def _entangled(link: str, real_root: str) -> bool:
    """Whether a link leads into the data set, or to a folder that the data set is in."""
    target = os.path.realpath(link)
    return os.path.commonpath((target, real_root)) in (target, real_root)


@dataclass(frozen=True)
class Glance:
    """What a first look at a folder shows: names of its files and folders, hidden ones left out."""

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]

    def below(self, name: str) -> "Glance":
        return glance(self.path / name, limit=1000)

    def endings(self) -> frozenset[str]:
        return frozenset(ending(name) for name in self.files)

    def has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)  # which, unlike Path.is_file, never raises


def glance(path: Path, limit: int = 1_000_000) -> Glance:
    """At most `limit` entries of a folder, sorted; nothing where it cannot be read."""
    files, folders = [], []
    try:
        with os.scandir(path) as entries:
            for number, entry in enumerate(entries):
                if number >= limit:
                    break
                if is_hidden(entry.name):
                    continue
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:
                    continue
                if is_folder:
                    folders.append(entry.name)
                elif is_file:
                    files.append(entry.name)
    except OSError:
        pass
    return Glance(path, tuple(sorted(files)), tuple(sorted(folders)))


def look_around(top: Glance) -> Iterator[tuple[str, Glance]]:
    """The folder itself (as "") and folders below it by relative name, nearest first; enough to tell the layout."""
    real_top = os.path.realpath(top.path)
    waiting = deque([""])
    for _ in range(MAX_LOOKS):
        if not waiting:
            return
        rel = waiting.popleft()
        here = top.below(rel) if rel else top
        yield rel, here
        for name in here.folders[:MAX_LOOKS]:
            if not (os.path.islink(here.path / name) and _entangled(str(here.path / name), real_top)):
                waiting.append(f"{rel}/{name}" if rel else name)


def find_all(root: Path, wanted: Callable[[Folder, str], bool]) -> list[str]:
    """Every file below `root` that is `wanted(folder, name)`, relative to it, in the order of `walk`."""
    folders = (one for one in walk(root, Notes()) if isinstance(one, Folder))
    return [folder.key(name) for folder in folders for name in folder.files if wanted(folder, name)]


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


def is_picture(name: str) -> bool:
    return ending(name) in EXTENSIONS


def count_other(folder: Folder, name: str, notes: Notes) -> Problem | None:
    """For a file that a layout does not read: a problem if it is a picture of an unread format, else counted."""
    if ending(name) in UNREAD_EXTENSIONS:
        key = printable(folder.key(name))
        return Problem(key, "format", f"{key}: pictures of this format are not read; convert it to PNG or JPEG.")
    notes.count(f"files that are not read, ending in {ending(name) or 'nothing'}", folder.key(name))
    return None
