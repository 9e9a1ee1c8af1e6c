"""Captions that are written beside a data set: `captions/<source>.jsonl`, found by key in any order.

A file grows by complete lines and survives a kill. It holds the captions, and refusals with the caption null, which
readers pass over. What could not be read or captioned is not in it, and is tried again by the next run."""

import contextlib
import json
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pixart.config import shortened
from pixart.data.layouts.layout import Notes, as_caption
from pixart.data.layouts.rows import MAX_ROW, parse_object
from pixart.data.pairs import ORIGINAL, Caption, Pair, Problem, key_hash
from pixart.errors import PixArtError, UsageError
from pixart.files import locked, parse_json


class WrittenCaptions:
    """All sources in a captions folder, with an index of 16 bytes a line; the texts stay in their files.

    Lines are read as they stand when this is made: what a captioner adds later waits for the next time. Use it as a
    context manager, since it keeps the files open.
    """

    def __init__(self, folder: Path):
        try:
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            with ExitStack() as stack:
                self._sources = [_Source(folder / name, stack) for name in names if name.endswith(".jsonl")]
                self._files = stack.pop_all()
        except OSError as error:
            raise PixArtError(f"{error.filename} cannot be read: {error.strerror}.") from None

    def __enter__(self) -> "WrittenCaptions":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def problems(self) -> Iterator[Problem]:
        """Lines that are no captions, by file and line."""
        for source in self._sources:
            yield from source.problems

    def merged(self, pair: Pair) -> Pair:
        """`pair` with the captions that were written for its key, behind its own."""
        new = [caption for source in self._sources for caption in source.of(pair.key)]
        return replace(pair, captions=(*pair.captions, *new)) if new else pair

    def count_strangers(self, notes: Notes) -> None:
        """After a whole pass: captions whose key no image has."""
        for source in self._sources:
            for key in source.strangers():
                notes.count(f"captions in {source.name}.jsonl of images that are not in this data set", key)


def _number(key: str) -> int:
    return int.from_bytes(key_hash(key), "little")


class _Source:
    def __init__(self, path: Path, stack: ExitStack):
        self.name = sys.intern(path.stem)
        self.problems: list[Problem] = []
        self._file = stack.enter_context(path.open("rb"))
        hashes, offsets = array("Q"), array("Q")
        number = offset = 0
        while line := self._file.readline(MAX_ROW):
            number += 1
            row = self._row(line, f"captions/{path.name}:{number}")
            if isinstance(row, Problem):
                self.problems.append(row)
            elif row is not None:
                hashes.append(_number(row[0]))
                offsets.append(offset)
            offset += len(line)
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes, np.uint64)[order]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]
        self._used = np.zeros(len(order), bool)

    def of(self, key: str) -> list[Caption]:
        """The captions of one image, in the order of the lines, equal ones once."""
        value = np.uint64(_number(key))
        first, last = (int(np.searchsorted(self._hashes, value, side)) for side in ("left", "right"))
        captions: dict[str, Caption] = {}
        for place in range(first, last):
            found, caption = self._at(place)
            if found == key:  # else another key with the same hash
                captions.setdefault(caption.text, caption)
                self._used[place] = True
        return list(captions.values())

    def strangers(self) -> Iterator[str]:
        return (self._at(int(place))[0] for place in np.flatnonzero(~self._used))

    def _at(self, place: int) -> tuple[str, Caption]:
        self._file.seek(int(self._offsets[place]))
        row = self._row(self._file.readline(MAX_ROW), "")
        return row if isinstance(row, tuple) else ("", Caption("", self.name))  # if the file was changed meanwhile

    def _row(self, line: bytes, where: str) -> tuple[str, Caption] | Problem | None:
        """Key and caption of a line; None for an empty one, and for the captioner's own note of a failure."""
        try:
            row = parse_object(line) if line.strip() else {"caption": None}
        except ValueError:
            row = {}
        if row.get("caption", "") is None:
            return None
        if not isinstance(row.get("key"), str):
            return Problem(where, "caption-row", "The line is not a JSON object with key and caption.")
        caption = as_caption(row.get("caption"), row["key"], self.name)
        if isinstance(caption, Problem):
            return Problem(where, caption.kind, f"{row['key']}: {caption.reason}")
        return row["key"], caption


# What a row says of its own caption; all else in it is how the captions of the file were made.
OF_THE_CAPTION = ("key", "caption", "opening", "cut", "rejected", "answer", "error")


def check_source(name: str) -> None:
    """Raise UsageError unless captions can be called so ("" is for their captioner to fill in)."""
    if re.fullmatch(r"(?!\.)[\w.-]{0,100}", name) is None or name == ORIGINAL:
        raise UsageError(
            f"--source is {shortened(name)!r}; it names a file, so give letters, digits, dots and dashes, and not "
            f"{ORIGINAL}, as the data set's own captions are called."
        )


class CaptionFile:
    """The captions of one source, open for adding to. A context manager; one process at a time.

    `settings` is what every row holds beside its caption. A half line at the end, left by a kill, is cut off.
    """

    def __init__(self, folder: Path, source: str, settings: dict[str, object]):
        self.path = folder / f"{source}.jsonl"
        self.settings = settings
        self.done: set[bytes] = set()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "CaptionFile":
        """Raises UsageError where the file was written with other settings, PixArtError where it cannot be written."""
        refusal = f"Another pixart data caption is writing {self.path}; wait for it, or stop it."
        with contextlib.ExitStack() as held:  # which closes what is open where the next fails
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), refusal))
                self.file = held.enter_context(self.path.open("ab", buffering=0))
                self._resume()
            except OSError as error:
                raise self._unwritable(error) from None
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def __contains__(self, key: str) -> bool:
        """Whether this image has its captions, or a refusal."""
        return key_hash(key) in self.done

    def add(self, rows: Iterable[dict]) -> None:
        """Bring the rows of one batch to the disk, but those with an error. PixArtError on a full disk, then none."""
        settled = [row for row in rows if "error" not in row]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in settled)
        before = os.fstat(self.file.fileno()).st_size
        view = memoryview(lines.encode("utf-8", "surrogatepass"))
        try:
            while view:  # a write may take only a part; the next one then says why
                view = view[self.file.write(view) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            os.truncate(self.path, before)
            raise self._unwritable(error) from None
        self.done.update(key_hash(row["key"]) for row in settled)

    def _resume(self) -> None:
        """Note what is done, and cut off a line that is not complete."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                where = f"{self.path}, line {number}"
                row = parse_json(line, where)
                if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                    raise PixArtError(f"{where} is no object with a key; mend or delete the line.")
                self._compare(row)
                self.done.add(key_hash(row["key"]))
                end += len(line)
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

    def _unwritable(self, error: OSError) -> PixArtError:
        return PixArtError(
            f"{self.path} cannot be written: {error.strerror}; what is in it stays, and later the same command goes on."
        )
