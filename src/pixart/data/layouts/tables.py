"""Manifests: Hugging Face's imagefolder and dataset folders, tables by themselves, and PixArt's own lists.

- imagefolder: metadata.jsonl, .csv, .tsv or .parquet beside the images, in one folder or one per split.
- huggingface: a repository with Parquet shards, or what `save_to_disk` wrote; read without that library, and a script
  in such a folder is never run.
- table: CSV, TSV, JSON Lines or Parquet, with paths of images or, in Parquet, the images themselves.
- sam: partition/*.txt with a name a line, images/NAME.jpg, captions/NAME.txt; interndata: partition/*.json, lists of
  {path, prompt, width, height, ratio}. Facts from the public repository PixArt-alpha/PixArt-alpha,
  `diffusion/data/datasets/SA.py` and `InternalData.py`. Features beside them do not say which encoder made them, and
  are not used.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pixart.data.layouts.layout import (
    Columns,
    Folder,
    Layout,
    Notes,
    ending,
    find_files,
    first_folders,
    is_image,
    missing_parts,
    read_caption_file,
)
from pixart.data.layouts.parquet import open_table
from pixart.data.layouts.rows import (
    Row,
    check_columns,
    count_lines,
    csv_header,
    csv_rows,
    json_lines,
    json_list,
    pairs_of_rows,
    roles,
    text_lines,
)
from pixart.data.pairs import Pair, Problem, key_hash
from pixart.errors import UsageError

JSON_LINES, CSV, BINARY = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".parquet", ".arrow")
ENDINGS = (*JSON_LINES, *CSV, *BINARY)
IMAGEFOLDER_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
SHARD = re.compile(r".*-\d{5}-of-\d{5}(-[0-9a-f]+)?\.(parquet|arrow)|\d+\.parquet|dataset\.arrow")
SAM_ENDINGS = (".jpg", "", ".png", ".jpeg", ".webp")  # a line is a name without its ending, as in PixArt's lists


def read(
    path: Path, files: tuple[str, ...], columns: Columns, whole: bool, images: Path | None, notes: Notes
) -> Iterator[Pair | Problem]:
    """The rows of each of `files` (relative to the folder `path`), in their order; splits stand in their names.

    Paths in them start from the manifest's folder and stay in `path`; `images` is another folder for both. Without
    `whole`, the files were chosen, and nothing is missing beside them.
    """
    seen: set[bytes] = set()
    for name in files:
        file, root, of_file = path / name, images or path, columns
        if ending(name) in BINARY:
            table = open_table(file)
            of_file = replace(columns, image=table.image_column(columns) or columns.image)
            rows = table.rows(name, columns, root)
        else:
            rows = _rows(file, name)
        yield from pairs_of_rows(rows, of_file, images or file.parent, root, seen)
    if whole:
        yield from missing_parts(files)
    if images is None and all(os.path.basename(name) in IMAGEFOLDER_NAMES for name in files):
        folders = tuple(f"{os.path.dirname(name)}/".lstrip("/") for name in files)
        for key in find_files(path, lambda folder, name: is_image(name)):
            if key.startswith(folders) and key_hash(key) not in seen:
                notes.count("images that no row names", key)


def _rows(path: Path, name: str) -> Iterator[Row]:
    match ending(name):
        case ".csv" | ".tsv":
            return csv_rows(path, name)
        case ".json":
            return json_list(path, name)
        case ".txt":
            return _sam_rows(path, name)
    return json_lines(path, name)


def _sam_rows(path: Path, name: str) -> Iterator[Row]:
    """Of a list of names, the images in ../images and the captions in ../captions."""
    folder = path.parent.parent
    for number, line in text_lines(path):
        if line:
            there = [end for end in SAM_ENDINGS if os.path.exists(folder / "images" / (line + end))]
            file = line + (there[0] if there else SAM_ENDINGS[0])
            text = folder / "captions" / (os.path.splitext(file)[0] + ".txt")
            caption = read_caption_file(str(text), f"images/{file}") if os.path.lexists(text) else None
            yield f"{name}:{number}", {"image": f"../images/{file}", "text": caption}


def _count(path: Path, files: tuple[str, ...]) -> int | None:
    """How many rows there are, roughly where captions have line ends."""
    total = 0
    for name in files:
        if ending(name) == ".json":
            return None
        total += sum(open_table(path / name).groups) if ending(name) in BINARY else count_lines(path / name)
        total -= ending(name) in CSV
    return total


def _layout(
    name: str, title: str, path: Path, files: list[str], columns: Columns, *, whole: bool = True,
    images: Path | None = None,
) -> Layout:  # fmt: skip
    found = tuple(files)
    return Layout(
        name, title, partial(read, path, found, columns, whole, images or columns.root), partial(_count, path, found)
    )


def find_imagefolder(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """An imagefolder at `path`. Raises UsageError where one folder has two manifests."""
    for folder in first:
        if len(there := [name for name in folder.files if name in IMAGEFOLDER_NAMES]) > 1:
            one, where = os.path.join(folder.path, there[0]), folder.path
            raise UsageError(f"{where} has {' and '.join(there)}; give the one to read, such as {one}.")
    if not any(name in IMAGEFOLDER_NAMES for folder in first for name in folder.files):
        return None
    files = list(find_files(path, lambda folder, name: name in IMAGEFOLDER_NAMES))
    for name in files:
        _check(path / name, columns)
    title = f"imagefolder with {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return _layout("imagefolder", title, path, files, columns)


def find_hub_folder(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """A dataset folder of Hugging Face at `path`: Parquet shards, or what `save_to_disk` wrote."""

    def is_shard(folder: Folder, name: str) -> bool:
        if not SHARD.fullmatch(name) or _beside_shard(name, folder.files):
            return False
        return folder.rel != "" or "-of-" in name or "state.json" in folder.files

    if not any(is_shard(folder, name) for folder in first for name in folder.files):
        return None
    files = list(find_files(path, is_shard))
    if not _has_images(path / files[0], columns):
        return None
    return _layout("huggingface", "Hugging Face dataset folder", path, files, columns)


def find_tables(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """Tables in the folder `path`. Tables without a column of images are something else and do not count."""
    top = first[0].files
    names = [name for name in top if ending(name) in ENDINGS and name not in IMAGEFOLDER_NAMES]
    files = [name for name in names if not _beside_shard(name, top) and _has_images(path / name, columns)]
    kinds = sorted({ending(name)[1:] for name in files})
    if len(kinds) > 1:
        raise UsageError(f"{path} has tables of several kinds ({', '.join(files)[:200]}); give the one to read.")
    return _layout("table", f"tables ({kinds[0]})", path, files, columns) if files else None


def find_pixart(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """PixArt's own layouts at `path`. Its code puts the images of InternData into InternImgs beside it."""
    for partition in sorted({"partition", "partition_filter"} & set(first[0].folders)):
        names = first_folders(path / partition)[0].files
        lists, texts = ([f"{partition}/{n}" for n in names if n.endswith(end)] for end in (".json", ".txt"))
        if lists:
            places = (path / "InternImgs", path.parent / "InternImgs", path / "images")
            images = columns.root or next((place for place in places if os.path.isdir(place)), path)
            title = f"PixArt's InternData layout, images in {images.name}"
            return _layout("interndata", title, path, lists, columns, images=images)
        if texts and "images" in first[0].folders:
            return _layout("sam", "PixArt's SAM layout", path, texts, replace(columns, root=None))
    return None


def one_file(path: Path, columns: Columns) -> Layout:
    """The table or JSON list in the file `path`. Raises UsageError if it has no column of images."""
    _check(path, columns)
    name = "interndata" if ending(path.name) == ".json" else "table"
    return _layout(name, f"{ending(path.name)[1:]} table", path.parent, [path.name], columns, whole=False)


def _beside_shard(name: str, files: Collection[str]) -> bool:
    """Whether a table is what img2dataset writes beside each tar shard."""
    return os.path.splitext(name)[0] + ".tar" in files


def _has_images(path: Path, columns: Columns) -> bool:
    """Whether a table has images in it, or a column of their paths."""
    if ending(path.name) in JSON_LINES:
        row = next((row for _, row in json_lines(path, path.name) if isinstance(row, dict)), {})
        return roles(tuple(row), Columns()).image is not None or columns.image in row
    try:
        _check(path, columns)
    except UsageError:
        return False
    return True


def _check(path: Path, columns: Columns) -> None:
    """Raises UsageError for a table without a column of images; of JSON each row is looked at by itself."""
    if ending(path.name) in CSV:
        check_columns(csv_header(path)[0], columns, str(path))
    elif ending(path.name) in BINARY:
        table = open_table(path)
        held = table.image_column(columns)
        check_columns(table.schema.names, replace(columns, image=held or columns.image), str(path))
