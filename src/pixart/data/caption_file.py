"""Where captions are kept: a file of JSON lines per source, which grows by whole lines and survives a kill.

`captions_folder(path)/<source>.jsonl` holds the captions, and refusals with the caption null, which readers of the data
set pass over. `failed-captions/<source>.jsonl`, beside that folder, names what the last run could not read or caption;
the next run tries those again.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pixart.data.pairs import METADATA, ORIGINAL
from pixart.errors import PixArtError, UsageError
from pixart.files import locked

# What a row says of its own caption; all else in it is how the captions of the file were made.
OF_THE_CAPTION = ("key", "caption", "index", "opening", "cut", "rejected", "answer", "error")


def check_source(name: str) -> None:
    """Raise UsageError unless captions can be called so ("" is for their captioner to fill in)."""
    if re.fullmatch(r"(?!\.)[\w.-]{0,100}", name) is None:
        raise UsageError(f"--source is {name!r}; it names a file, so give letters, digits, dots and dashes.")
    if name in (ORIGINAL, METADATA):
        raise UsageError(f"--source is {name}, as the data set's own captions are called; give another name.")


class CaptionFile:
    """The captions of one source, open for adding to. A context manager; one process at a time.

    `settings` is what every row holds beside its caption. A half line at the end, left by a kill, is cut off, and so
    are the rows of a last picture that lacks some of its `per_picture` captions: it is captioned again.

    Raises UsageError where the file was written with other settings, PixArtError where it cannot be written.
    """

    def __init__(self, folder: Path, source: str, settings: dict[str, object], *, per_picture: int = 1):
        self.path = folder / f"{source}.jsonl"
        self.failed_path = folder.parent / "failed-captions" / f"{source}.jsonl"
        self.settings = settings
        self.taken_up = 0  # pictures that earlier runs captioned
        self.done: set[bytes] = set()
        refusal = f"Another pixart data caption is writing {self.path}; wait for it, or stop it."
        with contextlib.ExitStack() as held:  # closes what was opened before the error
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.failed_path.parent.mkdir(exist_ok=True)
                held.enter_context(locked(folder / f".{source}.lock", refusal))
                self.file = held.enter_context(self.path.open("ab", buffering=0))
                self._take_up(per_picture)
                self.failed = held.enter_context(self.failed_path.open("wb", buffering=0))
            except OSError as error:
                raise _unwritable(self.path, error) from None
            self._held = held.pop_all()

    def close(self) -> None:
        self._held.close()
        if self.failed_path.exists() and self.failed_path.stat().st_size == 0:
            self.failed_path.unlink()

    def __enter__(self) -> "CaptionFile":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        """Has this picture its captions, or a refusal?"""
        return _digest(key) in self.done

    def add(self, rows: Iterable[dict]) -> None:
        """Write the rows of one batch to the disk. Raises PixArtError on a full disk; what was there stays whole."""
        settled: list[dict] = []
        failed: list[dict] = []
        for row in rows:
            (failed if "error" in row else settled).append(row)
        if settled:
            _append(self.file, self.path, settled)
            self.done.update(_digest(row["key"]) for row in settled)
        if failed:
            _append(self.failed, self.failed_path, failed)

    def _take_up(self, per_picture: int) -> None:
        os.ftruncate(self.file.fileno(), _end_of_lines(self.path))
        last, count, start = None, 0, 0  # the picture of the last rows, how many it has, and where they begin
        for at, row in _rows(self.path):
            self._compare(row)
            if row["key"] != last:
                if last is not None:
                    self.done.add(_digest(last))
                last, count, start = row["key"], 0, at
            count += 1
        if count >= per_picture:
            self.done.add(_digest(last))
        elif count:
            os.ftruncate(self.file.fileno(), start)
        self.taken_up = len(self.done)

    def _compare(self, row: dict) -> None:
        found = {name: value for name, value in row.items() if name not in OF_THE_CAPTION}
        if found != self.settings:
            different = next(n for n in {**self.settings, **found} if found.get(n) != self.settings.get(n))
            raise UsageError(
                f"{self.path} was written with {different} {_shown(found.get(different))}, not "
                f"{_shown(self.settings.get(different))}; give --source another name to keep both, or delete the file."
            )


def _shown(value: object) -> str:
    return "left out" if value is None else json.dumps(value, ensure_ascii=False)


def _digest(key: str) -> bytes:
    """A key in 16 bytes, so that millions of them fit into memory."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _end_of_lines(path: Path) -> int:
    """The length of the file up to its last line break."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - 65536)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            at = start
    return 0


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Every row with its offset in bytes."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                    raise ValueError("it is no object with a key")
            except (ValueError, RecursionError) as error:
                raise PixArtError(f"{path}, line {number} is damaged ({error}); mend or delete the line.") from None
            yield at, row
            at += len(line)


def _append(file: BinaryIO, path: Path, rows: list[dict]) -> None:
    """All of the rows or none: what a full disk took of them is cut off again."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    before = os.fstat(file.fileno()).st_size
    view = memoryview(lines.encode("utf-8", "surrogatepass"))
    try:
        while view:  # a write may take only a part; the next one then says why
            view = view[os.write(file.fileno(), view) :]
        os.fsync(file.fileno())
    except OSError as error:
        os.ftruncate(file.fileno(), before)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> PixArtError:
    return PixArtError(
        f"{path} cannot be written: {error.strerror}; what is in it stays, and later the same command goes on."
    )
