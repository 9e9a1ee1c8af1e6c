"""The layouts of PixArt's own training code: SAM (lists of names) and InternData (a JSON list).

Facts from the public repository PixArt-alpha/PixArt-alpha, `diffusion/data/datasets/SA.py`, `InternalData.py` and
`InternalData_ms.py`, and `tools/extract_features.py`. There, features live in folders of several spellings, one of them
`img_vae_fatures`; they are named in the notes and not used: they do not say which encoder made them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.lines import Row, json_list
from pixart.data.layouts.places import Manifest, locate
from pixart.data.layouts.rows import pairs_of_rows
from pixart.data.layouts.texts import gather, read_caption_file
from pixart.data.layouts.walk import Glance, glance
from pixart.data.pairs import InFile, Pair, Problem, key_hash, printable
from pixart.errors import PixArtError

LOOKED_FOR = "PixArt's partition folder: with .txt lists and images (sam), or with data_info.json (interndata)"
_PARTITIONS = ("partition", "partition_filter")
MAX_RATIO = 4  # PixArt's training code leaves wider ratios out; here they stay, and a note says how many


@dataclass(frozen=True)
class Sam:
    """partition/*.txt with a name a line, images/NAME.jpg, captions/NAME.txt."""

    path: Path
    lists: tuple[str, ...]
    name: str = "sam"
    title: str = "PixArt's SAM layout"

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """List by list, line by line."""
        _say_features(self.path, notes)
        seen: set[bytes] = set()
        manifest = Manifest("", self.path / "images", self.path / "images")
        for name in self.lists:
            for number, line in _text_lines(self.path / name):
                where = f"{name}:{number}"
                if isinstance(line, Problem):
                    yield Problem(where, line.kind, line.reason)
                    continue
                if not line:
                    continue
                place = _picture(line, where, manifest)
                if isinstance(place, Problem):
                    yield place
                    continue
                file, path = place
                key = f"images/{file}"
                if key_hash(key) in seen:
                    yield Problem(where, "duplicate-row", f"{printable(key)} stands in an earlier line, too.")
                    continue
                seen.add(key_hash(key))
                text = self.path / "captions" / f"{os.path.splitext(file)[0]}.txt"
                there = [read_caption_file(str(text), key)] if os.path.lexists(text) else []
                captions, problem = gather(there, key)
                if problem is not None and not there:
                    problem = Problem(problem.key, problem.kind, f"There is no {printable(text.name)} in captions.")
                yield Pair(key, captions, None, InFile(path), caption_problem=problem)

    def count_hint(self) -> int | None:
        from pixart.data.layouts.lines import count_lines

        return sum(count_lines(self.path / name) for name in self.lists)


@dataclass(frozen=True)
class InternData:
    """partition/*.json, lists of {path, prompt, width, height, ratio}; `images` is where the paths start."""

    path: Path
    lists: tuple[str, ...]
    images: Path
    columns: Columns
    name: str = "interndata"

    @property
    def title(self) -> str:
        return f"PixArt's InternData layout, pictures in {self.images.name}"

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,) if self.images.is_relative_to(self.path) else (self.path, self.images)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """List by list, entry by entry."""
        _say_features(self.path, notes)
        seen: set[bytes] = set()
        for name in self.lists:
            manifest = Manifest(name, self.images, self.images)
            rows = _count_wide(json_list(self.path / name, name), notes)
            columns = Columns(self.columns.image or "path", self.columns.caption)
            yield from pairs_of_rows(rows, manifest, columns, seen)

    def count_hint(self) -> int | None:
        return None


def find(top: Glance, columns: Columns) -> Sam | InternData | None:
    """PixArt's own layouts at `top`."""
    for partition in _PARTITIONS:
        if partition not in top.folders:
            continue
        files = top.below(partition).files
        lists = [f"{partition}/{name}" for name in files if name.endswith(".json")]
        texts = [f"{partition}/{name}" for name in files if name.endswith(".txt")]
        if lists:
            return InternData(top.path, tuple(lists), columns.root or _images(top), columns)
        if texts and "images" in top.folders:
            return Sam(top.path, tuple(texts))
    return None


def one_file(path: Path, columns: Columns) -> InternData:
    """A JSON list by itself; its paths start from its folder."""
    return InternData(path.parent, (path.name,), columns.root or path.parent, columns)


def _images(top: Glance) -> Path:
    """Where InternData's pictures are: its code puts InternImgs beside InternData."""
    for folder in (top.path / "InternImgs", top.path.parent / "InternImgs", top.path / "images"):
        if os.path.isdir(folder):  # unlike Path.is_dir, it never raises
            return folder
    return top.path


def _say_features(path: Path, notes: Notes) -> None:
    for name in glance(path).folders:
        if name.startswith(("img_vae_f", "caption_feature")):
            notes.say(f"{printable(name)} holds features that PixArt's code made; they are not used")


def _count_wide(rows: Iterator[Row], notes: Notes) -> Iterator[Row]:
    for where, row in rows:
        ratio = row.get("ratio") if isinstance(row, dict) else None
        if isinstance(ratio, int | float) and ratio > MAX_RATIO:
            notes.count(
                f"pictures with a ratio over {MAX_RATIO}, which PixArt's code leaves out and which stay here", where
            )
        yield where, row


def _picture(line: str, where: str, manifest: Manifest) -> tuple[str, str] | Problem:
    """A line is a name without its ending, as in PixArt's lists, or with it."""
    first: Problem | None = None
    for ending in (".jpg", "", ".png", ".jpeg", ".webp"):
        place = locate(line + ending, where, manifest)
        if not isinstance(place, Problem):
            return place
        first = first or place
    assert first is not None
    return first


def _text_lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(8192):
                number += 1
                try:
                    yield number, line.decode("utf-8-sig").strip()
                except UnicodeDecodeError:
                    yield number, Problem("", "row-encoding", f"Line {number} is not UTF-8.")
    except OSError as error:
        raise PixArtError(f"{path} cannot be read: {error.strerror}.") from None
