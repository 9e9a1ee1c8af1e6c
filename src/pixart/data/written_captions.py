"""Captions that were written later, beside a data set: `captions/<source>.jsonl`, found by key in any order."""

import os
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixart.data.layouts.layout import Notes, as_caption
from pixart.data.layouts.rows import MAX_ROW, parse_object
from pixart.data.pairs import Caption, Pair, Problem, key_hash
from pixart.errors import PixArtError


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
