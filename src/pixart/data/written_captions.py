"""Captions that were written later, beside a data set: `captions/<source>.jsonl`, found by key in any order."""

import json
import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pixart.data.layouts.layout import Notes
from pixart.data.layouts.lines import MAX_LINE
from pixart.data.layouts.texts import as_caption
from pixart.data.pairs import Caption, Pair, Problem, key_hash, printable
from pixart.errors import PixArtError


class WrittenCaptions:
    """All sources in a captions folder, with an index of 16 bytes a line; the texts stay in their files.

    Lines are read as they stand when this is made: what a captioner adds later waits for the next time. Use it as a
    context manager, since it keeps the files open.
    """

    def __init__(self, folder: Path):
        try:
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        except OSError as error:
            raise PixArtError(f"{folder} cannot be read: {error.strerror}.") from None
        paths = [folder / name for name in names if name.endswith(".jsonl")]
        self._sources = [_Source(path) for path in paths if os.path.isfile(path)]

    def __enter__(self) -> "WrittenCaptions":
        return self

    def __exit__(self, *error: object) -> None:
        for source in self._sources:
            source.file.close()

    def problems(self) -> Iterator[Problem]:
        """Lines that are no captions, by file and line."""
        for source in self._sources:
            yield from source.problems

    def merged(self, pair: Pair) -> Pair:
        """`pair` with the captions that were written for its key, behind its own."""
        new = [caption for source in self._sources for caption in source.of(pair.key)]
        if not new:
            return pair
        return replace(pair, captions=(*pair.captions, *new))

    def say_strangers(self, notes: Notes) -> None:
        """After a whole pass: lines whose key no picture has."""
        for source in self._sources:
            if source.strangers():
                what = f"captions in {source.path.name} of pictures that are not in this data set"
                notes.say(f"{what}: {source.strangers():,}")


def _number(key: str) -> int:
    return int.from_bytes(key_hash(key), "little")


class _Source:
    def __init__(self, path: Path):
        self.path = path
        self.problems: list[Problem] = []
        try:
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise PixArtError(f"{path} cannot be read: {error.strerror}.") from None
        hashes, offsets = array("Q"), array("Q")
        number = offset = 0
        while line := self.file.readline(MAX_LINE):
            number += 1
            row = self._row(line, number)
            if row is not None:
                hashes.append(_number(row[0]))
                offsets.append(offset)
            offset += len(line)
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes = np.frombuffer(hashes, np.uint64)[order]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]
        self._used = np.zeros(len(order), bool)

    def of(self, key: str) -> list[Caption]:
        """The captions of one picture, in the order of the lines, equal ones once."""
        value = np.uint64(_number(key))
        begin = int(np.searchsorted(self._hashes, value, "left"))
        captions: dict[str, Caption] = {}
        while begin < len(self._hashes) and self._hashes[begin] == value:
            self.file.seek(int(self._offsets[begin]))
            row = self._row(self.file.readline(MAX_LINE), None)
            if row is not None and row[0] == key:  # else another key with the same hash
                captions.setdefault(row[1].text, row[1])
                self._used[begin] = True
            begin += 1
        return list(captions.values())

    def strangers(self) -> int:
        return int((~self._used).sum())

    def _row(self, line: bytes, number: int | None) -> tuple[str, Caption] | None:
        """Key and caption of a line; None where there is none, with a problem unless `number` is None."""
        place = f"captions/{self.path.name}:{number}"
        try:
            row = json.loads(line) if line.strip() else {"caption": None}
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row.get("caption", "") is None:
            return None  # the captioner's own note of a refusal or a failure
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            self._problem(number, place, "caption-row", "The line is not a JSON object with key and caption.")
            return None
        caption = as_caption(row.get("caption"), row["key"], sys.intern(self.path.stem))
        if isinstance(caption, Problem):
            self._problem(number, place, caption.kind, f"{printable(row['key'])}: {caption.reason}")
            return None
        return row["key"], caption

    def _problem(self, number: int | None, place: str, kind: str, reason: str) -> None:
        if number is not None:
            self.problems.append(Problem(printable(place), kind, reason))
