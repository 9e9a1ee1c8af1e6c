"""Parquet files and Arrow streams by pyarrow: their rows as dicts, and single cells with an image."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.data.layouts.layout import Columns
from pixart.data.layouts.places import Manifest, locate
from pixart.data.layouts.rows import IMAGE_COLUMNS
from pixart.data.pairs import MAX_IMAGE_BYTES, ImageProblem, InTable, Problem, printable, read_file
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

    @property
    def names(self) -> list[str]:
        return list(self.schema.names)

    @property
    def count(self) -> int:
        return sum(self.groups)

    def image_column(self, columns: Columns) -> str | None:
        """The column that holds images themselves (or Hugging Face's structs of bytes and path), not paths alone."""
        held = [field.name for field in self.schema if _holds_bytes(field.type)]
        if columns.image is not None:
            return columns.image if columns.image in held else None
        features = self._features()
        lower = {name.lower(): name for name in held}
        usual = [lower[name] for name in BYTES_COLUMNS if name in lower]
        return next(iter([*usual, *(name for name in held if features.get(name, {}).get("_type") == "Image")]), None)

    def classes(self, name: str | None) -> list[str]:
        """The names of a ClassLabel column, as Hugging Face writes them into the schema."""
        feature = self._features().get(name or "", {})
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        return [str(one) for one in names] if isinstance(names, list) else []

    def _features(self) -> dict[str, dict]:
        try:
            features = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        return {n: f for n, f in features.items() if isinstance(f, dict)} if isinstance(features, dict) else {}

    def rows(self, wanted: list[str]) -> Iterator[tuple[int, int, dict | Problem]]:
        """Group, row in it, and the columns `wanted`. A group that cannot be read is a problem for each of its rows."""
        import pyarrow as pa

        for group, size in enumerate(self.groups):
            row = 0
            try:
                for batch in self._batches(group, wanted) if wanted else ():
                    lists = [_python(batch.column(name)) for name in wanted]
                    for values in zip(*lists, strict=True):
                        yield group, row, dict(zip(wanted, values, strict=True))
                        row += 1
                reason = f"the group ends after {row} of {size} rows"
            except (pa.ArrowException, OSError) as error:
                reason = _short(error)
            for lost in range(row, size):
                problem = Problem("", "row", f"The row cannot be read: its group is damaged ({reason}).")
                yield group, lost, problem if wanted else {}

    def _batches(self, group: int, wanted: list[str]) -> "Iterator[pyarrow.RecordBatch]":
        import pyarrow.parquet as pq

        if _is_arrow(self.path):
            batch = _arrow(str(self.path))[group]
            yield from (batch.slice(begin, BATCH) for begin in range(0, batch.num_rows, BATCH))
            return
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            yield from file.iter_batches(BATCH, row_groups=[group], columns=wanted)


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
    try:
        about = os.stat(place.path)
    except OSError as error:
        raise ImageProblem("missing", f"{name}: {error.strerror}.") from None
    import pyarrow as pa

    try:
        value = _column(place.path, about.st_mtime_ns, place.group, place.column)[place.row].as_py()
    except (pa.ArrowException, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ImageProblem("unreadable", f"{name} cannot be read ({_short(error)}).") from None
    if isinstance(value, list) and value and all(isinstance(byte, int) for byte in value):
        value = bytes(byte & 0xFF for byte in value)
    if isinstance(value, list):
        if len(value) > 1:
            raise ImageProblem("several-images", f"{name} holds {len(value)} images, and one is needed.")
        value = value[0] if value else None
    if isinstance(value, dict):
        held = value.get("bytes")
        value = held if held is not None else value.get("path")
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
    found = locate(value, name, Manifest(name, folder, root))
    if isinstance(found, Problem) and root != folder:
        found = locate(value, name, Manifest(name, root, root))
    if isinstance(found, Problem):
        raise ImageProblem(found.kind, f"{name}: {found.reason}")
    return read_file(found[1])


@lru_cache(maxsize=1)
def _column(path: str, changed: int, group: int, column: str) -> "pyarrow.ChunkedArray":
    """The row group that was read last; `changed` is only there so that a new file is read anew."""
    import pyarrow.parquet as pq

    if _is_arrow(path):
        return _arrow(path)[group].column(column)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read_row_group(group, columns=[column]).column(column)


def _python(column: "pyarrow.Array") -> list:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text(one) for one in column]


def _text(value: "pyarrow.Scalar") -> object:
    """A value whose text may not be UTF-8: then with surrogates, which names and captions refuse."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return (
            value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
            if hasattr(value, "as_buffer")
            else "\udcff"
        )


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind):
        inner = kind.value_type
        return types.is_uint8(inner) or types.is_int8(inner) or _holds_bytes(inner)
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_bytes(kind.storage_type)
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


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
