"""Parquet files and Arrow streams, column by column: their rows as dicts, and single cells with a picture's bytes."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.lines import Row
from pixart.data.layouts.rows import IMAGE_COLUMNS, Roles, roles
from pixart.data.pairs import MAX_IMAGE_BYTES, ImageProblem, InTable, Problem, printable
from pixart.errors import PixArtError

if TYPE_CHECKING:
    import pyarrow

BYTES_COLUMNS = (*IMAGE_COLUMNS, "image_bytes", "img_bytes", "image_data", "bytes", "content")
BATCH = 1024  # rows that are turned into Python objects at a time


@dataclass(frozen=True)
class Table:
    """A Parquet file or an Arrow stream: `names` of its columns, `picture_bytes` the column that holds pictures.

    `classes` are the names of ClassLabel columns, as Hugging Face writes them into the schema.
    """

    path: Path
    names: list[str]
    picture_bytes: str | None
    classes: dict[str, list[str]]
    row_count: int


def open_table(path: Path, columns: Columns) -> Table:
    """What is in a table, from its footer or schema. Raises PixArtError for a damaged file."""
    schema, count = _schema(path)
    features = _features(schema)
    held = [field.name for field in schema if _holds_bytes(field.type)]
    marked = [name for name in held if features.get(name, {}).get("_type") == "Image"]
    lower = {name.lower(): name for name in held}
    usual = [lower[name] for name in BYTES_COLUMNS if name in lower]
    if columns.image is not None:
        picture = columns.image if columns.image in held else None
    else:
        picture = next(iter([*usual, *marked]), None)
    classes = {
        name: [str(one) for one in feature["names"]]
        for name, feature in features.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    return Table(path, list(schema.names), picture, classes, count)


def names(path: Path) -> list[str]:
    """The column names of a table."""
    return list(_schema(path)[0].names)


def count(path: Path) -> int:
    """The number of rows of a table."""
    return _schema(path)[1]


def rows(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """The rows of a table whose pictures are paths: the columns that matter, as dicts; the place is `name`:row."""
    schema = _schema(path)[0]
    for number, row in _dicts(path, _wanted(roles(list(schema.names), columns, str(path)))):
        where = f"{name}:{number}"
        yield where, Problem(where, row.kind, row.reason) if isinstance(row, Problem) else row


def cells(table: Table, name: str, columns: Columns) -> Iterator[tuple[str, InTable, dict | Problem]]:
    """Key, place of the picture and the other columns that matter, for each row of a table that holds pictures.

    The pictures themselves are not read.
    """
    others = Columns(caption=columns.caption)
    found = roles([n for n in table.names if n != table.picture_bytes], others, str(table.path))
    wanted = [n for n in _wanted(found) if n != found.image]
    starts = _group_starts(table.path)
    group = 0
    for number, row in _dicts(table.path, wanted):
        while group + 1 < len(starts) and number >= starts[group + 1]:
            group += 1
        key = f"{name}:{number}"
        place = InTable(str(table.path), group, number - starts[group], table.picture_bytes or "")
        yield key, place, Problem(key, row.kind, row.reason) if isinstance(row, Problem) else row


def read_cell(place: InTable) -> bytes:
    """The bytes of one picture. Raises ImageProblem."""
    name = f"{printable(Path(place.path).name)}, row {place.row} of group {place.group}"
    try:
        about = os.stat(place.path)
    except OSError as error:
        raise ImageProblem("missing", f"{name}: {error.strerror}.") from None
    import pyarrow as pa

    try:
        column = _column(place.path, about.st_mtime_ns, place.group, place.column)
        value = column[place.row]
        if pa.types.is_struct(value.type):
            value = value["bytes"]
        if value.is_valid and len(value.as_buffer()) > MAX_IMAGE_BYTES:
            raise ImageProblem("too-large", f"{name}: more than {MAX_IMAGE_BYTES:,} bytes for one picture.")
        data = value.as_py()
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        raise ImageProblem("unreadable", f"{name} cannot be read ({_short(error)}).") from None
    if data is None:
        raise ImageProblem("missing", f"{name} holds no picture.")
    if not data:
        raise ImageProblem("empty", f"{name}: the picture has no bytes.")
    return data


@lru_cache(maxsize=1)
def _column(path: str, changed: int, group: int, column: str) -> "pyarrow.ChunkedArray":
    """The row group that was read last; `changed` is only there so that a new file is read anew."""
    import pyarrow.parquet as pq

    if _is_arrow(path):
        return _arrow(path)[group].column(column)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _dicts(path: Path, wanted: list[str]) -> Iterator[tuple[int, dict | Problem]]:
    """Row numbers and rows. A group that cannot be read is a problem for each of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def of(batch: "pyarrow.RecordBatch") -> Iterator[dict]:
        lists = [_python(batch.column(n)) for n in wanted]
        for i in range(batch.num_rows):
            yield {n: values[i] for n, values in zip(wanted, lists, strict=True)}

    starts = _group_starts(path)
    if _is_arrow(path):
        number = 0
        for batch in _arrow(str(path)):
            for begin in range(0, batch.num_rows, BATCH):
                for row in of(batch.slice(begin, BATCH)):
                    yield number, row
                    number += 1
        return
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            number, size = starts[group], file.metadata.row_group(group).num_rows
            end = number + size
            try:
                if not wanted:
                    yield from ((n, {}) for n in range(number, end))
                    continue
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=wanted):
                    for row in of(batch):
                        yield number, row
                        number += 1
            except (pa.ArrowException, OSError) as error:
                for lost in range(number, end):
                    yield lost, Problem("", "row", f"The row cannot be read: its group is damaged ({_short(error)}).")


def _wanted(found: Roles) -> list[str]:
    return [n for n in dict.fromkeys((found.image, *found.captions, found.width, found.height, found.label)) if n]


def _python(column: "pyarrow.Array") -> list:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow as pa

        raw = column.cast(pa.large_binary()).to_pylist()
        return [one if one is None else one.decode("utf-8", "surrogateescape") for one in raw]


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _features(schema: "pyarrow.Schema") -> dict[str, dict]:
    """What Hugging Face's datasets library says of the columns."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {n: f for n, f in features.items() if isinstance(f, dict)} if isinstance(features, dict) else {}


def _schema(path: Path) -> tuple["pyarrow.Schema", int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if _is_arrow(path):
            batches = _arrow(str(path))
            if not batches:
                with pa.memory_map(str(path)) as source:
                    return pa.ipc.open_stream(source).schema, 0
            return batches[0].schema, sum(batch.num_rows for batch in batches)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise PixArtError(f"{path} cannot be read as a table: {_short(error)}.") from None


def _group_starts(path: Path) -> list[int]:
    import pyarrow.parquet as pq

    if _is_arrow(path):
        sizes = [batch.num_rows for batch in _arrow(str(path))]
    else:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts


def _arrow(path: str) -> list["pyarrow.RecordBatch"]:
    """The record batches of an Arrow stream, mapped and not copied."""
    import pyarrow as pa

    source = pa.memory_map(path)
    with pa.ipc.open_stream(source) as reader:
        return list(reader)


def _is_arrow(path: str | Path) -> bool:
    return str(path).lower().endswith(".arrow")


def _short(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0][:200].rstrip("."))
