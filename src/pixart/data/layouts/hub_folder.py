"""Folders of Hugging Face's datasets library: a repository with Parquet shards, or what `save_to_disk` wrote.

Both are read without that library. A script in such a folder is never run.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts import columns as table
from pixart.data.layouts.layout import Columns, Notes
from pixart.data.layouts.seen import Seen
from pixart.data.layouts.tables import beside_shard, fits, read_table
from pixart.data.layouts.walk import Glance, find_all, glance, look_around
from pixart.data.pairs import Pair, Problem, printable
from pixart.errors import PixArtError, UsageError

SHARD = re.compile(r".*-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet|\d+\.parquet")
LOOKED_FOR = "a Hugging Face dataset folder: Parquet shards, or dataset_info.json with .arrow files (huggingface)"


@dataclass(frozen=True)
class HubFolder:
    """`files` are relative to `path`, split by split."""

    path: Path
    files: tuple[str, ...]
    columns: Columns
    title: str
    name: str = "huggingface"

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """Shard after shard; the shard's name, with its split, stands in the keys."""
        for script in glance(self.path).files:
            if script.endswith(".py"):
                notes.say(f"{printable(script)} is a script; it is not run")
        seen = Seen()
        for name in self.files:
            yield from read_table(self.path / name, name, self.path, self.columns, seen)

    def count_hint(self) -> int | None:
        return sum(table.count(self.path / name) for name in self.files)


def find(top: Glance, columns: Columns) -> HubFolder | None:
    """A dataset folder at `top`, or None."""
    if top.has("dataset_dict.json"):
        splits = _json(top.path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) and split in top.folders for split in splits):
            raise PixArtError(f"{top.path / 'dataset_dict.json'} names splits that are not there.")
        files = [f"{split}/{name}" for split in splits for name in _saved(top.below(split))]
    elif top.has("dataset_info.json") and top.has("state.json"):
        files = _saved(top)
    else:
        return _parquet(top, columns)
    if not files:
        raise PixArtError(f"{top.path} was written by save_to_disk but has no .arrow files.")
    _check(top.path / files[0], columns)
    return HubFolder(top.path, tuple(files), columns, "Hugging Face dataset folder (save_to_disk)")


def _saved(here: Glance) -> list[str]:
    """The .arrow files in the order of state.json."""
    files = _json(here.path / "state.json").get("_data_files", [])
    names = [one.get("filename") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    for name in names:
        if name not in here.files:  # also what lies outside the folder
            raise PixArtError(f"{here.path / 'state.json'} names {printable(str(name))}, which is not there.")
    return names


def _parquet(top: Glance, columns: Columns) -> HubFolder | None:
    def is_shard(rel: str, name: str) -> bool:
        return SHARD.fullmatch(name) is not None and (rel != "" or "-of-" in name)

    if not any(is_shard(rel, name) for rel, here in look_around(top) for name in here.files):
        return None
    files = find_all(
        top.path,
        lambda folder, name: is_shard(folder.rel, name) and not beside_shard(name, folder.files),
    )
    if not files or not fits(top.path / files[0], columns):
        return None
    return HubFolder(top.path, tuple(files), columns, "Hugging Face dataset folder (Parquet shards)")


def _check(path: Path, columns: Columns) -> None:
    if not fits(path, columns):
        there = ", ".join(table.names(path))[:200]
        raise UsageError(f"{path} has no column of pictures among {there}; name it with --image-column.")


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PixArtError(f"{path} cannot be read: {error}.") from None
    return value if isinstance(value, dict) else {}
