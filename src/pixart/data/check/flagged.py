"""Every single finding: written as a list, or acted on by setting the pictures aside."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pixart.data.check.duplicates import Near, PictureTable
from pixart.data.check.kinds import kind_of
from pixart.data.check.tally import Example
from pixart.data.pairs import InFile, Location
from pixart.errors import PixArtError, UsageError
from pixart.files import glob_escape, replacing

# What is moved by --set-aside: pictures that no training can use, and later copies of the same pixels.
SET_ASIDE = ("empty", "truncated", "broken", "crash", "format", "bomb", "mode", "too-large", "narrow", "duplicate")
SIDECARS = (".txt", ".caption", ".json")


@dataclass(frozen=True)
class Flagged:
    """One finding about one picture; `same_as` is the key of the picture that it repeats."""

    kind: str
    key: str
    reason: str
    path: str | None
    same_as: str | None = None


class FlaggedFile:
    """All findings of a run in a scratch file, one JSON object a line."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115  held open for the whole run

    def add(self, kind: str, example: Example) -> None:
        """For `Tally.record`."""
        self._write(kind, example.key, example.text, example.place, None)

    def add_duplicates(self, pictures: PictureTable, near: Near) -> None:
        for kind, pairs in (("duplicate", pictures.copies()), ("near-duplicate", near.pairs)):
            for row, first in pairs:
                key, place = pictures.find(row)
                self._write(kind, key, kind_of(kind).why, place, pictures.find(first)[0])

    def _write(self, kind: str, key: str, reason: str, place: Location | None, same_as: str | None) -> None:
        path = place.path if isinstance(place, InFile) else None
        line = {"kind": kind, "key": key, "reason": reason, "path": path, "same_as": same_as}
        self.file.write(json.dumps({name: value for name, value in line.items() if value is not None}) + "\n")

    def read(self) -> Iterator[Flagged]:
        self.file.flush()
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                yield Flagged(
                    values["kind"], values["key"], values["reason"], values.get("path"), values.get("same_as")
                )

    def copy_to(self, target: Path) -> None:
        """Put the list where the user wants it, whole. Raises PixArtError where it cannot be written."""
        self.file.flush()
        try:
            with replacing(target) as partial:
                shutil.copyfile(self.path, partial)
        except OSError as error:
            raise PixArtError(f"{target} cannot be written: {error.strerror}.") from None

    def close(self) -> None:
        self.file.close()


def check_aside(data: Path, aside: Path) -> None:
    """Raises UsageError for a folder inside the data set, which would be read as part of it."""
    if aside.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"--set-aside {aside} lies inside the data set; give a folder outside of {data}.")
    if aside.exists() and not aside.is_dir():
        raise UsageError(f"--set-aside {aside} is a file; give a folder.")


def set_aside(data: Path, aside: Path, flagged: Iterator[Flagged]) -> tuple[int, int]:
    """Move pictures and their sidecars to the same names under `aside`; nothing is deleted, and nothing overwritten.

    Returns how many were moved, and how many stay because they are inside a shard or table, outside the data set, or
    because their name is taken. Raises PixArtError where a file cannot be moved.
    """
    moved = stay = 0
    done: set[str] = set()  # a picture can have several findings
    for item in flagged:
        if item.kind not in SET_ASIDE or item.key in done:
            continue
        done.add(item.key)
        source = Path(item.path) if item.path else None
        inside = source is not None and source.resolve().is_relative_to(data.resolve())
        target = aside / PurePosixPath(item.key)
        if not inside or not target.resolve().is_relative_to(aside.resolve()) or target.exists():
            stay += 1
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for sidecar in _sidecars(source):
                shutil.move(sidecar, target.with_name(sidecar.name))
            shutil.move(source, target)
        except OSError as error:
            raise PixArtError(f"{source} cannot be moved to {target}: {error.strerror}.") from None
        moved += 1
    return moved, stay


def _sidecars(picture: Path) -> list[Path]:
    """Captions that belong to this picture alone: not those that another picture of the same stem shares."""
    beside = [path for path in picture.parent.glob(f"{glob_escape(picture.stem)}.*") if path.stem == picture.stem]
    others = [path for path in beside if path != picture and path.suffix.lower() not in SIDECARS]
    return [] if others else [path for path in beside if path.suffix.lower() in SIDECARS]
