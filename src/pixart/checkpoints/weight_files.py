"""The files of a model folder looked over without torch: JSON objects, and safetensors files, one or several."""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixart.checkpoints.tensors import is_pickle
from pixart.errors import PixArtError
from pixart.files import open_regular, parse_json, read_json_object

MAX_HEADER = 100_000_000  # bytes of JSON at the head of a safetensors file, the format's own limit
DTYPE_NAMES = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; PixArtError naming the file if there is none."""
    try:
        return read_json_object(path, nonfinite=True)
    except PixArtError as error:
        state = "damaged" if path.exists() else "not complete"
        raise PixArtError(f"The model folder is {state}: {error}") from None


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors file `name` of one part, or the several that its index names, each checked for being whole.

    Raises:
        PixArtError: one of them is missing, cut short, a pickle, or the index names others than those beside it.
    """
    index = folder / f"{name}.index.json"
    paths = [folder / name]
    if not paths[0].is_file() and index.is_file():
        places = read_object(index).get("weight_map")
        names = sorted({str(place) for place in places.values()}) if isinstance(places, dict) else []
        if not names or any(Path(place).name != place for place in names):
            raise PixArtError(f"The model folder is damaged: the weight_map of {index} names no files beside it.")
        paths = [folder / place for place in names]
    for path in paths:
        check_whole(path)
    return paths


def check_whole(path: Path) -> dict[str, Any]:
    """Compare the file's length with what its header promises; a cut-short download fails here and says so.

    Returns the header, tensors in the order in which they lie in the file.

    Raises:
        PixArtError: the file is missing or damaged.
    """
    try:
        with open_regular(path) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            header = parse_json(file.read(length), str(path)) if length <= MAX_HEADER else None
    except FileNotFoundError:
        pickles = sorted(path.parent.glob("*.bin"))
        why = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"The model folder is not complete: {path} is missing{why}.") from None
    except (OSError, PixArtError):
        header = None
    try:
        tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
        tensors = dict(sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]))
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (AttributeError, KeyError, TypeError, IndexError):
        why = " but a pickle, which pixart does not open" if is_pickle(path) else ""
        raise PixArtError(f"The model folder is damaged: {path} is not a whole safetensors file{why}.") from None
    found = path.stat().st_size
    if found != expected:
        raise PixArtError(
            f"The model folder is damaged: {path} should be {expected:,} bytes long and is {found:,}; copy it again."
        )
    return tensors


def stored_dtypes(paths: Iterable[Path]) -> tuple[str, ...]:
    """The names of the dtypes in safetensors files, as torch writes them, sorted."""
    found = {str(entry["dtype"]) for path in paths for entry in check_whole(path).values() if "dtype" in entry}
    return tuple(sorted(DTYPE_NAMES.get(name, name) for name in found))
