"""Tables of images and captions: Hugging Face's imagefolder and dataset folders, and tables by themselves.

- imagefolder: metadata.jsonl, .csv, .tsv or .parquet beside the images, in one folder or one per split.
- huggingface: a repository with Parquet shards, or what `save_to_disk` wrote; read without that library, and a script
  in such a folder is never run.
- table: CSV, TSV, JSON Lines or Parquet, with paths of images or, in Parquet, the images themselves.
"""

import itertools
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts.columns import open_table
from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.lines import Row, count_lines, csv_header, csv_rows, json_lines
from pixart.data.layouts.places import Manifest
from pixart.data.layouts.rows import captions_of, check_named, label_of, pairs_of_rows, roles, size
from pixart.data.layouts.walk import (
    Folder,
    Glance,
    ending,
    find_all,
    glance,
    is_picture,
    look_around,
    missing_parts,
    walk,
)
from pixart.data.pairs import InTable, Pair, Problem, key_hash, printable
from pixart.errors import PixArtError, UsageError

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".arrow")
BINARY = (".parquet", ".arrow")
IMAGEFOLDER_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
SHARD = re.compile(r".*-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet|\d+\.parquet")
LOOKED_FOR = (
    "metadata.jsonl, metadata.csv or metadata.parquet beside images (imagefolder); a Hugging Face dataset folder: "
    "Parquet shards, or dataset_info.json with .arrow files (huggingface); CSV, TSV, JSON Lines or Parquet files with "
    "a column of images (table)"
)


@dataclass(frozen=True)
class Tables:
    """`files` are relative to `path`, a folder, in the order in which they are read; splits stand in their names."""

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
        """The rows of each file in its order; then images that no row of an imagefolder names are counted."""
        if self.name == "huggingface":
            for script in glance(self.path).files:
                if script.endswith(".py"):
                    notes.say(f"{printable(script)} is a script; it is not run")
        seen: set[bytes] = set()
        for name in self.files:
            yield from self._read(self.path / name, name, seen)
        if not self.single:
            yield from missing_parts(self.files)
        if self.name == "imagefolder" and self.columns.root is None:
            folders = {os.path.dirname(name) for name in self.files}
            for folder in walk(self.path, Notes()):
                if isinstance(folder, Folder) and any(
                    f in ("", folder.rel) or folder.rel.startswith(f + "/") for f in folders
                ):
                    for file in folder.files:
                        if is_picture(file) and key_hash(folder.key(file)) not in seen:
                            notes.count("images that no row names", folder.key(file))

    def _read(self, path: Path, name: str, seen: set[bytes]) -> Iterator[Pair | Problem]:
        """The pairs of one table; paths in it start from its folder and must stay in the data set."""
        root = self.columns.root or self.path
        manifest = Manifest(name, self.columns.root or path.parent, root)
        if ending(name) not in BINARY:
            yield from pairs_of_rows(_rows(path, name), manifest, self.columns, seen)
            return
        table = open_table(path)
        held = table.image_column(self.columns)
        found = roles(tuple(one for one in table.names if one != held), self.columns)
        wanted = [one for one in found.used() if held is None or one != found.image]
        numbered = enumerate(table.rows(wanted))
        if held is None:
            rows = ((f"{name}:{n}", _placed(row, f"{name}:{n}")) for n, (_, _, row) in numbered)
            yield from pairs_of_rows(rows, manifest, self.columns, seen)
            return
        classes = table.classes(found.label)
        for number, (group, at, row) in numbered:
            key = f"{name}:{number}"
            if isinstance(row, Problem):
                yield _placed(row, key)
                continue
            captions, problem = captions_of(row, found, key)
            yield Pair(
                key=key, captions=captions, label=label_of(row, found, classes),
                image=InTable(str(path), group, at, held, str(root)), width=size(row.get(found.width)),
                height=size(row.get(found.height)), caption_problem=problem,
            )  # fmt: skip

    def count_hint(self) -> int | None:
        """How many rows there are, roughly where captions have line ends."""
        return sum(_count(self.path / name) for name in self.files)


def _placed(row: dict | Problem, where: str) -> dict | Problem:
    return Problem(where, row.kind, row.reason) if isinstance(row, Problem) else row


def _rows(path: Path, name: str) -> Iterator[Row]:
    return csv_rows(path, name) if ending(name) in (".csv", ".tsv") else json_lines(path, name)


def _count(path: Path) -> int:
    match path.suffix.lower():
        case ".parquet" | ".arrow":
            return open_table(path).count
        case ".csv" | ".tsv":
            return max(0, count_lines(path) - 1)
        case _:
            return count_lines(path)


def find_imagefolder(top: Glance, columns: Columns) -> Tables | None:
    """An imagefolder at `top`. Raises UsageError where one folder has two manifests."""
    if not any(here.has(name) for _, here in look_around(top) for name in IMAGEFOLDER_NAMES):
        return None
    files = find_all(top.path, lambda folder, name: name in IMAGEFOLDER_NAMES)
    for one, other in itertools.pairwise(files):
        if os.path.dirname(one) == os.path.dirname(other):
            both = f"{os.path.basename(one)} and {os.path.basename(other)}"
            where = (top.path / one).parent
            raise UsageError(f"{where} has {both}; give the one to read, such as {top.path / one}.")
    for name in files:
        _check_columns(top.path / name, columns)
    title = f"imagefolder with {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return Tables(top.path, tuple(files), columns, title, "imagefolder")


def find_hub_folder(top: Glance, columns: Columns) -> Tables | None:
    """A dataset folder of Hugging Face at `top`, or None."""
    if top.has("dataset_dict.json"):
        splits = _json(top.path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) and split in top.folders for split in splits):
            raise PixArtError(f"{top.path / 'dataset_dict.json'} names splits that are not there.")
        files = [f"{split}/{name}" for split in splits for name in _saved(top.below(split))]
    elif top.has("dataset_info.json") and top.has("state.json"):
        files = _saved(top)
    else:
        return _find_parquet(top, columns)
    if not files:
        raise PixArtError(f"{top.path} was written by save_to_disk but has no .arrow files.")
    _check_columns(top.path / files[0], columns)
    return Tables(top.path, tuple(files), columns, "Hugging Face dataset folder (save_to_disk)", "huggingface")


def _saved(here: Glance) -> list[str]:
    """The .arrow files in the order of state.json."""
    files = _json(here.path / "state.json").get("_data_files", [])
    names = [one.get("filename") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    for name in names:
        if name not in here.files:  # also what lies outside the folder
            raise PixArtError(f"{here.path / 'state.json'} names {printable(str(name))}, which is not there.")
    return names


def _find_parquet(top: Glance, columns: Columns) -> Tables | None:
    def is_shard(rel: str, name: str) -> bool:
        return SHARD.fullmatch(name) is not None and (rel != "" or "-of-" in name)

    if not any(is_shard(rel, name) for rel, here in look_around(top) for name in here.files):
        return None
    files = find_all(
        top.path, lambda folder, name: is_shard(folder.rel, name) and not _beside_shard(name, folder.files)
    )
    if not files or not _fits(top.path / files[0], columns):
        return None
    return Tables(top.path, tuple(files), columns, "Hugging Face dataset folder (Parquet shards)", "huggingface")


def find_tables(top: Glance, columns: Columns) -> Tables | None:
    """Tables in the folder `top`. Tables without a column of images are something else and do not count."""
    names = [name for name in top.files if ending(name) in ENDINGS and name not in IMAGEFOLDER_NAMES]
    fitting = [name for name in names if not _beside_shard(name, top.files) and _fits(top.path / name, columns)]
    kinds = sorted({ending(name) for name in fitting})
    if not fitting:
        return None
    if len(kinds) > 1:
        raise UsageError(f"{top.path} has tables of several kinds ({', '.join(fitting)[:200]}); give the one to read.")
    return Tables(top.path, tuple(fitting), columns, f"{_kind(kinds[0])} table" + ("s" if len(fitting) > 1 else ""))


def one_file(path: Path, columns: Columns) -> Tables:
    """The table in the file `path`. Raises UsageError if it has no column of images."""
    _check_columns(path, columns)
    held = ending(path.name) in BINARY and open_table(path).image_column(columns) is not None
    title = f"{_kind(ending(path.name))} table with {'images in it' if held else 'paths of images'}"
    return Tables(path.parent, (path.name,), columns, title, single=True)


def _beside_shard(name: str, files: Collection[str]) -> bool:
    """Whether a table is what img2dataset writes beside each tar shard."""
    return os.path.splitext(name)[0] + ".tar" in files


def _fits(path: Path, columns: Columns) -> bool:
    """Whether a table has images in it, or a column of their paths."""
    if ending(path.name) in (".jsonl", ".ndjson"):
        first = next((row for _, row in json_lines(path, path.name) if isinstance(row, dict)), {})
        return roles(tuple(first), Columns()).image is not None or columns.image in first
    try:
        _check_columns(path, columns)
    except UsageError:
        return False
    return True


def _check_columns(path: Path, columns: Columns) -> None:
    """Refuse a table without a column of images at once, not once a row. Raises UsageError."""
    if ending(path.name) in BINARY:
        table = open_table(path)
        names, held = table.names, table.image_column(columns)
    elif ending(path.name) in (".csv", ".tsv"):
        names, held = csv_header(path)[0], None
    else:
        return
    check_named(names, columns, str(path))
    if held is not None or roles(tuple(names), columns).image is not None:
        return
    if any(name.lower() in ("url", "image_url") for name in names):
        raise UsageError(f"{path} has only web addresses; fetch the images first, for instance with img2dataset.")
    there = ", ".join(names)[:200] or "none"
    raise UsageError(f"{path} has no column of images among {there}; name it with --image-column.")


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PixArtError(f"{path} cannot be read: {error}.") from None
    return value if isinstance(value, dict) else {}


def _kind(ending_: str) -> str:
    kinds = {".parquet": "Parquet", ".arrow": "Arrow", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines"}
    return kinds.get(ending_, ending_[1:].upper())
