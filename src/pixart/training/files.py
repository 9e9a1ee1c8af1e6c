"""Files that are whole or not there, also after a kill or a power cut."""

import contextlib
import os
from pathlib import Path

from pixart.errors import PixArtError


def write_whole(path: Path, text: str) -> None:
    """Write `text` under another name, force it to the disk, and rename it to `path`.

    Raises:
        PixArtError: the disk refused (full, read-only); what was at `path` is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        force(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None


def force(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
