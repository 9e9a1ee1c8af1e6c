"""Hugging Face's imagefolder: metadata.jsonl, .csv or .parquet beside the pictures, in one folder or one per split."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts import columns as table
from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.lines import Row, count_lines, csv_header, csv_rows, json_lines
from pixart.data.layouts.places import Manifest
from pixart.data.layouts.rows import pairs_of_rows, roles
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.walk import Folder, Glance, find_all, is_picture, look_around, walk
from pixart.data.pairs import Pair, Problem
from pixart.errors import UsageError

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
LOOKED_FOR = "metadata.jsonl, metadata.csv or metadata.parquet beside pictures (imagefolder)"


@dataclass(frozen=True)
class ImageFolder:
    """`manifests` are relative to `path`; splits are its subfolders, and stand in the keys."""

    path: Path
    manifests: tuple[str, ...]
    columns: Columns
    name: str = "imagefolder"

    @property
    def title(self) -> str:
        first, more = self.manifests[0], len(self.manifests) - 1
        return f"imagefolder with {first}" + (f" and {more} more" if more else "")

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """The rows of each manifest in its order; then pictures that none of them names are counted in `notes`."""
        seen = Seen()
        for name in self.manifests:
            root = self.columns.root or self.path
            folder = self.columns.root or (self.path / name).parent
            rows = manifest_rows(self.path / name, name, self.columns)
            yield from pairs_of_rows(rows, Manifest(name, folder, root), self.columns, seen)
        if self.columns.root is None:
            folders = [Path(name).parent.as_posix() for name in self.manifests]
            for found in walk(self.path, Notes()):
                if isinstance(found, Folder) and any(
                    f == "." or (found.rel + "/").startswith(f + "/") for f in folders
                ):
                    for file in found.files:
                        if is_picture(file) and found.key(file) not in seen:
                            notes.count("pictures that no row names", found.key(file))

    def count_hint(self) -> int | None:
        return sum(manifest_count(self.path / name) for name in self.manifests)


def find(top: Glance, columns: Columns) -> ImageFolder | None:
    """An imagefolder at `top`. Raises UsageError where one folder has two manifests."""
    if not any(here.has(name) for _, here in look_around(top) for name in NAMES):
        return None
    manifests = find_all(top.path, lambda folder, name: name in NAMES)
    for one, other in itertools.pairwise(manifests):
        if os.path.dirname(one) == os.path.dirname(other):
            both = f"{os.path.basename(one)} and {os.path.basename(other)}"
            where = (top.path / one).parent
            raise UsageError(f"{where} has {both}; give the one to read, such as {top.path / one}.")
    for name in manifests:
        check_columns(top.path / name, columns)
    return ImageFolder(top.path, tuple(manifests), columns)


def manifest_rows(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Rows of a manifest by its ending."""
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return csv_rows(path, name)
        case ".parquet":
            return table.rows(path, name, columns)
        case _:
            return json_lines(path, name)


def manifest_count(path: Path) -> int:
    """How many rows a manifest has, roughly where captions have line ends."""
    match path.suffix.lower():
        case ".parquet":
            return table.count(path)
        case ".csv" | ".tsv":
            return max(0, count_lines(path) - 1)
        case _:
            return count_lines(path)


def check_columns(path: Path, columns: Columns) -> None:
    """Refuse a table without a column of pictures at once, not once a row. Raises UsageError."""
    match path.suffix.lower():
        case ".csv" | ".tsv":
            names = csv_header(path)[0]
        case ".parquet":
            names = table.names(path)
        case _:
            return
    found = roles(names, columns, str(path))
    if found.image is None:
        if any(name.lower() in ("url", "image_url") for name in names):
            raise UsageError(f"{path} has only web addresses; fetch the pictures first, for instance with img2dataset.")
        raise UsageError(
            f"{path} has no column of pictures among {', '.join(names)[:200] or 'none'}; name it with --image-column."
        )
