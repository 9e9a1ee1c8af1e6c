"""Where captions are kept: a file of JSON lines per source, which grows by complete lines and survives a kill.

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
from typing import Any, BinaryIO

from pixart.config import shortened
from pixart.data.pairs import ORIGINAL
from pixart.errors import PixArtError, UsageError
from pixart.files import locked, parse_json

# What a row says of its own caption; all else in it is how the captions of the file were made.
OF_THE_CAPTION = ("key", "caption", "index", "opening", "cut", "rejected", "answer", "error")


def check_source(name: str) -> None:
    """Raise UsageError unless captions can be called so ("" is for their captioner to fill in)."""
    if re.fullmatch(r"(?!\.)[\w.-]{0,100}", name) is None:
        raise UsageError(f"--source is {shortened(name)!r}; it names a file, so give letters, digits, dots and dashes.")
    if name == ORIGINAL:
        raise UsageError(f"--source is {name}, as the data set's own captions are called; give another name.")


class CaptionFile:
    """The captions of one source, open for adding to. A context manager; one process at a time.

    `settings` is what every row holds beside its caption. A half line at the end, left by a kill, is cut off, and so
    are the rows of a last image that lacks some of its `per_image` captions: it is captioned again.
    """

    def __init__(self, folder: Path, source: str, settings: dict[str, object], *, per_image: int = 1):
        self.path = folder / f"{source}.jsonl"
        self.failed_path = folder.parent / "failed-captions" / f"{source}.jsonl"
        self.settings, self.per_image = settings, per_image
        self.done: set[bytes] = set()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "CaptionFile":
        """Raises UsageError where the file was written with other settings, PixArtError where it cannot be written."""
        refusal = f"Another pixart data caption is writing {self.path}; wait for it, or stop it."
        with contextlib.ExitStack() as held:  # which closes what is open where the next fails
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.failed_path.parent.mkdir(exist_ok=True)
                held.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), refusal))
                self.file = held.enter_context(self.path.open("ab", buffering=0))
                self._resume()
                self.failed = held.enter_context(self.failed_path.open("wb", buffering=0))
            except OSError as error:
                raise _unwritable(self.path, error) from None
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()
        if self.failed_path.stat().st_size == 0:
            self.failed_path.unlink()

    def __contains__(self, key: str) -> bool:
        """Whether this image has its captions, or a refusal."""
        return _digest(key) in self.done

    def add(self, rows: Iterable[dict]) -> None:
        """Write the rows of one batch to the disk. Raises PixArtError on a full disk; what was there stays complete."""
        rows = list(rows)
        settled = [row for row in rows if "error" not in row]
        _append(self.file, self.path, settled)
        self.done.update(_digest(row["key"]) for row in settled)
        _append(self.failed, self.failed_path, [row for row in rows if "error" in row])

    def _resume(self) -> None:
        end = start = count = 0  # of the complete lines; where the rows of the last image begin; how many it has
        last: str | None = None
        for row, at, after in _rows(self.path):
            self._compare(row)
            end = after
            if row["key"] != last:
                if last is not None:
                    self.done.add(_digest(last))
                last, count, start = row["key"], 0, at
            count += 1
        if last is not None and count < self.per_image:
            end = start
        elif last is not None:
            self.done.add(_digest(last))
        os.truncate(self.path, end)

    def _compare(self, row: dict[str, Any]) -> None:
        found = {name: value for name, value in row.items() if name not in OF_THE_CAPTION}
        if found != self.settings:
            name = next(n for n in {**self.settings, **found} if found.get(n) != self.settings.get(n))
            before, now = (shortened(json.dumps(each.get(name), ensure_ascii=False)) for each in (found, self.settings))
            raise UsageError(
                f"{self.path} was written with {name} {before}, not {now}; give --source another name to keep both, or "
                "delete the file."
            )


def _digest(key: str) -> bytes:
    """A key in 16 bytes, so that millions of them fit into memory."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Every row that is complete, with the bytes at which it begins and ends."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                raise PixArtError(f"{where} is no object with a key; mend or delete the line.")
            yield row, at, at + len(line)
            at += len(line)


def _append(file: BinaryIO, path: Path, rows: list[dict]) -> None:
    """All of the rows or none: what a full disk took of them is cut off again."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    before = os.fstat(file.fileno()).st_size
    view = memoryview(lines.encode("utf-8", "surrogatepass"))
    try:
        while view:  # a write may take only a part; the next one then says why
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, before)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> PixArtError:
    return PixArtError(
        f"{path} cannot be written: {error.strerror}; what is in it stays, and later the same command goes on."
    )
