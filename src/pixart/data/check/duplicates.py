"""Duplicates among any number of pictures: a table on disk, exact matches by hash, near ones by bands of a hash.

Two hashes of 64 bits that differ in at most 4 bits agree in at least one of five bands of 12 or 13 bits, so only
pictures that share a band are compared; then their 8 x 8 copies must look alike too.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from pixart.data.check.look import THUMB, Seen
from pixart.data.pairs import InFile, InTable, InTar, Location, Pair

# Of 700 pictures (icons, drawn scenes), each scaled to 70% and saved as JPEG with quality 70, 96% stayed within 4 bits;
# of different ones, none came so near.
MAX_BITS = 4
NEAR = 3.0  # mean CIELAB distance; the smallest that a person notices is 2.3
BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # (shift, bits), MAX_BITS + 1 of them
MAX_COMPARED = 4096  # pictures of one band that are compared with each other; more are cut into such parts
MAX_NEAR = 200_000  # pairs after which the search ends: the data set is one of near duplicates
_PLACES = {"InFile": InFile, "InTar": InTar, "InTable": InTable}
_ONES = np.array([bin(value).count("1") for value in range(2**16)], dtype=np.uint8)


@dataclass(frozen=True)
class Group:
    """Pictures that are the same, or nearly: their row numbers, the one to keep first, and how many there are."""

    rows: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Near:
    """`count` pictures nearly equal to an earlier one, as (row, the earlier row) in `pairs`; the largest `groups`.

    `partly` where not all could be compared.
    """

    count: int
    groups: list[Group]
    pairs: list[tuple[int, int]]
    partly: bool


class PictureTable:
    """What was seen of every picture, in a file: rows are numbered in the order in which they were added."""

    def __init__(self, file: Path):
        self.base = sqlite3.connect(file)
        # A scratch file: nobody needs it after a crash.
        for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", "cache_size = -32000"):
            self.base.execute(f"PRAGMA {setting}")
        self.base.execute(
            "CREATE TABLE picture "
            "(row INTEGER PRIMARY KEY, key TEXT, place TEXT, pixels BLOB, look INTEGER, thumb BLOB)"
        )
        self.waiting: list[tuple] = []

    def add(self, row: int, pair: Pair, seen: Seen) -> None:
        """Rows rise from call to call; they are the caller's own numbers."""
        place = json.dumps([type(pair.image).__name__, *astuple(pair.image)])
        self.waiting.append((row, pair.key, place, seen.pixels, seen.look, seen.thumb))
        if len(self.waiting) >= 1000:
            self.flush()

    def flush(self) -> None:
        self.base.executemany("INSERT INTO picture VALUES (?, ?, ?, ?, ?, ?)", self.waiting)
        self.waiting.clear()

    def close(self) -> None:
        self.base.close()

    def find(self, row: int) -> tuple[str, Location]:
        """The key of a picture, and where its bytes are."""
        key, place = self.base.execute("SELECT key, place FROM picture WHERE row = ?", (row,)).fetchone()
        kind, *fields = json.loads(place)
        return key, _PLACES[kind](*fields)

    def exact(self, examples: int) -> tuple[int, list[Group]]:
        """How many pictures have the same pixels as an earlier one, and the largest groups."""
        self._distinct()
        extra = self.base.execute("SELECT COALESCE(SUM(count - 1), 0) FROM distinct_picture").fetchone()[0]
        largest = self.base.execute(
            "SELECT pixels, count FROM distinct_picture WHERE count > 1 ORDER BY count DESC, row LIMIT ?", (examples,)
        ).fetchall()
        groups = []
        for pixels, count in largest:
            rows = self.base.execute("SELECT row FROM picture WHERE pixels = ? ORDER BY row LIMIT 8", (pixels,))
            groups.append(Group(tuple(row for (row,) in rows), count))
        return extra, groups

    def copies(self) -> Iterator[tuple[int, int]]:
        """(row, the earlier row with the same pixels) of every exact duplicate, in order."""
        self._distinct()
        yield from self.base.execute(
            "SELECT picture.row, first.row FROM picture JOIN distinct_picture AS first USING (pixels) "
            "WHERE picture.row > first.row ORDER BY picture.row"
        )

    def near(self, examples: int) -> Near:
        """Pictures that look like an earlier one without having its pixels: other sizes, saved again, retouched."""
        self._distinct()
        parent: dict[int, int] = {}
        partly = False
        for band in range(len(BANDS)):
            for rows, looks in self._bands(band):
                for start in range(0, len(rows), MAX_COMPARED):
                    part = slice(start, start + MAX_COMPARED)
                    partly = partly or len(rows) > MAX_COMPARED
                    for a, b in self._alike(rows[part], looks[part], band):
                        _join(parent, a, b)
                if len(parent) > MAX_NEAR:
                    return _near(parent, examples, partly=True)
        return _near(parent, examples, partly=partly)

    def _distinct(self) -> None:
        """One row per distinct picture, made once: the first of each, and how often it is there."""
        self.flush()
        if self.base.execute("SELECT 1 FROM sqlite_master WHERE name = 'distinct_picture'").fetchone():
            return
        self.base.execute("CREATE INDEX picture_pixels ON picture (pixels, row)")
        self.base.execute(
            "CREATE TABLE distinct_picture AS SELECT MIN(row) AS row, pixels, look, COUNT(*) AS count "
            "FROM picture GROUP BY pixels"
        )
        self.base.execute("CREATE UNIQUE INDEX distinct_pixels ON distinct_picture (pixels)")

    def _bands(self, band: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and hashes of the distinct pictures that have the same bits in a band, band value by band value."""
        shift, bits = BANDS[band]
        found = self.base.cursor().execute(
            f"SELECT row, look, (look >> {shift}) & {2**bits - 1} AS band "
            "FROM distinct_picture ORDER BY band, look, row"
        )
        for _, group in groupby(found, key=lambda line: line[2]):
            lines = list(group)
            if len(lines) > 1:
                table = np.array([line[:2] for line in lines], dtype=np.int64)
                yield table[:, 0], table[:, 1]

    def _alike(self, rows: np.ndarray, looks: np.ndarray, band: int) -> Iterator[tuple[int, int]]:
        """Pairs among some pictures that agree in a band: those near in bits, and then in colour."""
        block = max(1, 2**18 // len(rows))
        for start in range(0, len(rows), block):
            apart = looks[start : start + block, None] ^ looks[None]
            close = _ones(apart) <= MAX_BITS
            for shift, bits in BANDS[:band]:  # a pair that shares a lower band was looked at there
                close &= (apart >> shift) & (2**bits - 1) != 0
            pairs = np.argwhere(close)
            pairs[:, 0] += start
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if len(pairs):
                yield from self._confirmed(rows, pairs)

    def _confirmed(self, rows: np.ndarray, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
        wanted, places = np.unique(pairs, return_inverse=True)
        thumbs = np.stack([self._thumb(int(rows[i])) for i in wanted])
        colours = lab(thumbs)
        places = places.reshape(pairs.shape)
        for start in range(0, len(pairs), 1024):
            here = places[start : start + 1024]
            distance = np.linalg.norm(colours[here[:, 0]] - colours[here[:, 1]], axis=-1).mean(axis=(1, 2))
            for a, b in pairs[start : start + 1024][distance < NEAR]:
                yield int(rows[a]), int(rows[b])

    def _thumb(self, row: int) -> np.ndarray:
        data = self.base.execute("SELECT thumb FROM picture WHERE row = ?", (row,)).fetchone()[0]
        return np.frombuffer(data, dtype=np.uint8).reshape(THUMB, THUMB, 3)


def lab(thumbnails: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) uint8 sRGB -> (n, h, w, 3) float32 CIELAB, D65."""
    value = thumbnails.astype(np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], dtype=np.float32
    )
    xyz = xyz / np.array([0.9505, 1.0, 1.089], dtype=np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def _ones(values: np.ndarray) -> np.ndarray:
    """Number of set bits of each int64."""
    return _ONES[np.ascontiguousarray(values).view(np.uint16)].reshape(*values.shape, 4).sum(axis=-1, dtype=np.uint8)


def _root(parent: dict[int, int], row: int) -> int:
    while parent.get(row, row) != row:
        parent[row] = parent.get(parent[row], parent[row])
        row = parent[row]
    return row


def _join(parent: dict[int, int], a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    first, second = min(a, b), max(a, b)
    parent[first], parent[second] = first, first


def _near(parent: dict[int, int], examples: int, *, partly: bool) -> Near:
    groups: dict[int, list[int]] = {}
    for row in sorted(parent):
        groups.setdefault(_root(parent, row), []).append(row)
    largest = sorted(groups.values(), key=lambda rows: (-len(rows), rows[0]))
    pairs = sorted((row, rows[0]) for rows in largest for row in rows[1:])
    return Near(len(pairs), [Group(tuple(rows[:8]), len(rows)) for rows in largest[:examples]], pairs, partly)
