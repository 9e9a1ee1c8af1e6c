"""A folder on this machine or in the cloud: the few things that extraction does with the files it makes.

In the cloud an upload is what makes a file appear; those who write there count a file only when a record, uploaded
after it, names it.
"""

import contextlib
import errno
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pixart.errors import PixArtError, UsageError
from pixart.files import replacing


def is_url(path: str | Path) -> bool:
    """Whether `path` names a place that fsspec knows (s3://bucket/folder), and not a local path."""
    return "://" in str(path)


@dataclass(frozen=True)
class Folder:
    """`at` is a local path, or an fsspec URL such as s3://bucket/features. `name`s are relative, with slashes."""

    at: str

    def __post_init__(self):
        object.__setattr__(self, "at", self.at.removeprefix("file://"))

    def __str__(self) -> str:
        return self.at

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None in the cloud."""
        return None if is_url(self.at) else Path(self.at)

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none. Raises PixArtError where it cannot be read."""
        filesystem, root = self.filesystem()
        try:
            return filesystem.cat_file(f"{root}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise PixArtError(f"{self.at}/{name} cannot be read: {error}.") from None

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder within this one, sorted; empty where there is none."""
        filesystem, root = self.filesystem()
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(f"{root}/{folder}", detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file. Raises PixArtError where it cannot be written."""
        self.write_with(name, lambda path: path.write_bytes(content))

    def write_with(self, name: str, write: Callable[[Path], object]) -> int:
        """Let `write(path)` make a file, then bring it to its name. Returns its length in bytes."""
        if self.local is None:
            with tempfile.TemporaryDirectory(prefix="pixart-") as temporary:
                path = Path(temporary) / "file"
                write(path)
                filesystem, root = self.filesystem()
                filesystem.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
                filesystem.put_file(str(path), f"{root}/{name}")
                return path.stat().st_size
        target = self.local / name
        try:
            with replacing(target) as partial:
                write(partial)
                return partial.stat().st_size
        except Exception as error:
            # safetensors has an error of its own for what the system refused
            if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
                raise
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                error = "there is no room left; make room and run the same command again, which goes on"
            raise PixArtError(f"{target} cannot be written: {error}.") from None

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        filesystem, root = self.filesystem()
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{name}", recursive=True)

    def filesystem(self):
        """fsspec's file system and the path in it. Raises UsageError where fsspec knows no such place."""
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(self.at)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{self.at} is no place that can be reached: {error}.") from None
        return filesystem, root.rstrip("/")
