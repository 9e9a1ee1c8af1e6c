"""CSV, TSV, JSON Lines and Parquet, with paths of pictures or, in Parquet, the pictures themselves."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts import columns as table
from pixart.data.layouts.imagefolder import NAMES as IMAGEFOLDER_NAMES
from pixart.data.layouts.imagefolder import check_columns, manifest_count, manifest_rows
from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.places import Manifest
from pixart.data.layouts.rows import captions_of, pairs_of_rows, roles, size
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.walk import Glance, ending
from pixart.data.pairs import Pair, Problem
from pixart.errors import UsageError

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".arrow")
LOOKED_FOR = "CSV, TSV, JSON Lines or Parquet files with a column of pictures (table)"


@dataclass(frozen=True)
class Tables:
    """`files` are relative to `path`, a folder, in the order in which they are read."""

    path: Path
    files: tuple[str, ...]
    columns: Columns
    title: str
    name: str = "table"
    single: bool = False

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path / self.files[0],) if self.single else (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """The rows of each file in its order."""
        seen = Seen()
        for name in self.files:
            yield from read_table(self.path / name, name, self.path, self.columns, seen)

    def count_hint(self) -> int | None:
        return sum(manifest_count(self.path / name) for name in self.files)


def read_table(path: Path, name: str, root: Path, columns: Columns, seen: Seen) -> Iterator[Pair | Problem]:
    """The pairs of one table called `name`; paths in it start from its folder and must stay in `root`."""
    if path.suffix.lower() in (".parquet", ".arrow"):
        found = table.open_table(path, columns)
        if found.picture_bytes is not None:
            yield from _read_cells(found, name, columns)
            return
    rows = manifest_rows(path, name, columns)
    yield from pairs_of_rows(rows, Manifest(name, columns.root or path.parent, columns.root or root), columns, seen)


def _read_cells(found: table.Table, name: str, columns: Columns) -> Iterator[Pair | Problem]:
    others = [n for n in found.names if n != found.picture_bytes]
    what = roles(others, Columns(caption=columns.caption), name)
    classes = found.classes.get(what.label or "", [])
    for key, place, row in table.cells(found, name, columns):
        if isinstance(row, Problem):
            yield row
        else:
            captions, problem = captions_of(row, what.captions, key)
            yield Pair(
                key=key, captions=captions, label=_label(row.get(what.label), classes), image=place,
                width=size(row.get(what.width)), height=size(row.get(what.height)), caption_problem=problem,
            )  # fmt: skip


def _label(value: object, classes: list[str]) -> str | None:
    if isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return None if value is None or value == "" else str(value)


def find(top: Glance, columns: Columns) -> Tables | None:
    """Tables in the folder `top`. Tables without a column of pictures are something else and do not count."""
    names = [name for name in top.files if ending(name) in ENDINGS and name not in IMAGEFOLDER_NAMES]
    fitting = [name for name in names if not beside_shard(name, top.files) and fits(top.path / name, columns)]
    kinds = sorted({ending(name) for name in fitting})
    if not fitting:
        return None
    if len(kinds) > 1:
        raise UsageError(f"{top.path} has tables of several kinds ({', '.join(fitting)[:200]}); give the one to read.")
    return Tables(top.path, tuple(fitting), columns, f"{_kind(kinds[0])} table" + ("s" if len(fitting) > 1 else ""))


def beside_shard(name: str, files: Collection[str]) -> bool:
    """Whether a table is what img2dataset writes beside each tar shard."""
    return os.path.splitext(name)[0] + ".tar" in files


def one_file(path: Path, columns: Columns) -> Tables:
    """The table in the file `path`. Raises UsageError if it has no column of pictures."""
    if path.suffix.lower() in (".parquet", ".arrow") and table.open_table(path, columns).picture_bytes is not None:
        title = f"{_kind(path.suffix.lower())} table with pictures in it"
    else:
        check_columns(path, columns)
        title = f"{_kind(path.suffix.lower())} table with paths of pictures"
    return Tables(path.parent, (path.name,), columns, title, single=True)


def fits(path: Path, columns: Columns) -> bool:
    """Whether a table has pictures in it, or a column of their paths."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        first = next((row for _, row in manifest_rows(path, path.name, columns) if isinstance(row, dict)), {})
        return roles(list(first), Columns(), str(path)).image is not None or columns.image in first
    try:
        one_file(path, columns)
    except UsageError:
        return False
    return True


def _kind(ending_: str) -> str:
    kinds = {".parquet": "Parquet", ".arrow": "Arrow", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines"}
    return kinds.get(ending_, ending_[1:].upper())
