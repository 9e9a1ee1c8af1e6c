"""Parquet files and Arrow streams by pyarrow: their rows as dicts, and single cells with an image."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.rows import IMAGE_COLUMNS, Row, locate, roles
from pixart.data.pairs import MAX_IMAGE_BYTES, ImageProblem, InTable, Problem, open_regular, printable, read_file
from pixart.data.storage import is_url
from pixart.errors import PixArtError

if TYPE_CHECKING:
    import pyarrow

BYTES_COLUMNS = (*IMAGE_COLUMNS, "image_bytes", "img_bytes", "image_data", "bytes", "content")
BATCH = 1024  # rows that are turned into Python objects at a time


@dataclass(frozen=True)
class Table:
    """A Parquet file or an Arrow stream: its schema and the number of rows of each row group (or record batch)."""

    path: Path
    schema: "pyarrow.Schema"
    groups: tuple[int, ...]

    def image_column(self, columns: Columns) -> str | None:
        """The column that holds images themselves (or Hugging Face's structs of bytes and path), not paths alone."""
        held = {field.name.lower(): field.name for field in self.schema if _holds_bytes(field.type)}
        if columns.image is not None:
            return columns.image if columns.image in held.values() else None
        images = [name.lower() for name, feature in self._features().items() if feature.get("_type") == "Image"]
        return next((held[name] for name in (*BYTES_COLUMNS, *images) if name in held), None)

    def _features(self) -> dict[str, dict]:
        """The columns as the library `datasets` describes them in the schema."""
        try:
            features = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
            return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def rows(self, name: str, columns: Columns, root: Path) -> Iterator[Row]:
        """All rows; the cell with an image is its place. A group that cannot be read is a problem for each row."""
        import pyarrow as pa

        held = self.image_column(columns)
        found = roles(tuple(self.schema.names), columns)
        lists = (found.image, found.dense, *found.captions)  # of others, such as embeddings, nothing is wanted
        names = [
            field.name
            for field in self.schema
            if not _holds_bytes(field.type) and (field.name in lists or not pa.types.is_nested(field.type))
        ]
        classes = {name: one["names"] for name, one in self._features().items() if isinstance(one.get("names"), list)}
        number = 0
        for group, size in enumerate(self.groups):
            at, reason = 0, f"it has fewer than {size} rows"
            try:
                for row in (row for batch in self._batches(group, names) for row in _python(batch)):
                    for column, labels in classes.items():
                        if isinstance(row.get(column), int) and 0 <= row[column] < len(labels):
                            row[column] = str(labels[row[column]])
                    if held is not None:
                        row[held] = InTable(str(self.path), group, at, held, str(root))
                    yield f"{name}:{number + at}", row
                    at += 1
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = _short(error)
            for lost in range(at, size):
                where = f"{name}:{number + lost}"
                yield where, Problem(where, "row", f"The row cannot be read: its group is damaged ({reason}).")
            number += size

    def _batches(self, group: int, names: list[str]) -> "Iterator[pyarrow.RecordBatch]":
        import pyarrow.parquet as pq

        if _is_arrow(self.path):
            batch = _arrow(str(self.path))[group]
            yield from (batch.select(names).slice(begin, BATCH) for begin in range(0, batch.num_rows, BATCH))
            return
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            yield from file.iter_batches(BATCH, row_groups=[group], columns=names)


def open_table(path: Path) -> Table:
    """What is in a table, from its footer or schema. Raises PixArtError for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if _is_arrow(path):
            with pa.memory_map(str(path)) as source:
                schema = pa.ipc.open_stream(source).schema
            return Table(path, schema, tuple(batch.num_rows for batch in _arrow(str(path))))
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = tuple(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))
            return Table(path, file.schema_arrow, groups)
    except (pa.ArrowException, OSError) as error:
        raise PixArtError(f"{path} cannot be read as a table: {_short(error)}.") from None


def read_cell(place: InTable) -> bytes:
    """The bytes of one image. Raises ImageProblem."""
    name = f"{printable(Path(place.path).name)}, row {place.row} of group {place.group}"
    import pyarrow as pa

    try:
        changed = 0 if is_url(place.path) else os.stat(place.path).st_mtime_ns
        value = _column(place.path, changed, place.group, place.column)[place.row].as_py()
    except ImageProblem:
        raise
    except FileNotFoundError:
        raise ImageProblem("missing", f"{name} is not there.") from None
    except (pa.ArrowException, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ImageProblem("unreadable", f"{name} cannot be read ({_short(error)}).") from None
    if isinstance(value, list) and value and all(isinstance(byte, int) for byte in value):
        value = bytes(byte & 0xFF for byte in value)
    if isinstance(value, list):
        if len(value) > 1:
            raise ImageProblem("several-images", f"{name} holds {len(value)} images, and one is needed.")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _at_path(value, name, place)
    if value is None:
        raise ImageProblem("missing", f"{name} holds no image.")
    if not value:
        raise ImageProblem("empty", f"{name}: the image has no bytes.")
    if len(value) > MAX_IMAGE_BYTES:
        raise ImageProblem("too-large", f"{name}: more than {MAX_IMAGE_BYTES:,} bytes for one image.")
    return value


def _at_path(value: str, name: str, place: InTable) -> bytes:
    """The file at a path in a cell, from the table's folder or from the data set's, never outside the latter."""
    folder = Path(place.path).parent
    root = Path(place.root) if place.root else folder
    try:
        try:
            return read_file(locate(value, folder, root)[1])
        except ImageProblem:
            return read_file(locate(value, root, root)[1])
    except ImageProblem as problem:
        raise ImageProblem(problem.kind, f"{name}: {problem.reason}") from None


@lru_cache(maxsize=1)
def _column(path: str, changed: int, group: int, column: str) -> "pyarrow.ChunkedArray":
    """The row group that was read last; `changed` is only there so that a new file is read anew."""
    import pyarrow.parquet as pq

    if _is_arrow(path):
        return _arrow(path)[group].column(column)
    source = open_regular(path)[0] if is_url(path) else path
    with pq.ParquetFile(source, page_checksum_verification=True) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _python(batch: "pyarrow.RecordBatch") -> list[dict]:
    """The rows of a batch; texts that are not UTF-8 with surrogates, which names and captions refuse."""
    import pyarrow as pa

    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        raw = [column.cast(pa.binary()) if pa.types.is_string(column.type) else column for column in batch.columns]
        rows = pa.RecordBatch.from_arrays(raw, batch.schema.names).to_pylist()
        return [{name: _text(value) for name, value in row.items()} for row in rows]


def _text(value: object) -> object:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    while inner := getattr(kind, "storage_type", None) or getattr(kind, "value_type", None):
        if pa.types.is_uint8(inner) or pa.types.is_int8(inner):
            return True
        kind = inner
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return "binary" in str(kind) and not pa.types.is_struct(kind)


@lru_cache(maxsize=1)
def _arrow_at(path: str, changed: int) -> list["pyarrow.RecordBatch"]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.memory_map(path)) as reader:
        return list(reader)


def _arrow(path: str) -> list["pyarrow.RecordBatch"]:
    """The record batches of an Arrow stream, mapped and not copied."""
    return _arrow_at(path, os.stat(path).st_mtime_ns)


def _is_arrow(path: str | Path) -> bool:
    return str(path).lower().endswith(".arrow")


def _short(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0][:200].rstrip("."))
