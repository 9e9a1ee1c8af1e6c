"""Safetensors files looked over without torch: whole or cut short, one or several, finite or not."""

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pixart.checkpoints.tensors import is_pickle, refuse_names
from pixart.errors import PixArtError

MAX_HEADER = 100_000_000  # bytes of JSON at the head of a safetensors file, the format's own limit
DTYPE_NAMES = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
PIECE = 8 << 20  # bytes read at once; a multiple of every number's size
# Of a floating-point type: its width as an integer, and the bits of infinity; NaNs lie above, for either sign.
# E4M3 has no infinity and one NaN.
INFINITY = {
    "F8_E4M3": ("1", 0x7F), "F8_E5M2": ("1", 0x7C), "F16": ("2", 0x7C00), "BF16": ("2", 0x7F80),
    "F32": ("4", 0x7F800000), "F64": ("8", 0x7FF0000000000000),
}  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; PixArtError naming the file if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PixArtError(f"The model folder is not complete: {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise PixArtError(f"The model folder is damaged: {path} cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise PixArtError(f"The model folder is damaged: {path} does not hold a JSON object.")
    return value


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
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
    except FileNotFoundError:
        pickles = sorted(path.parent.glob("*.bin"))
        why = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"The model folder is not complete: {path} is missing{why}.") from None
    except (OSError, ValueError):
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


def hash_finite(path: Path) -> str:
    """SHA-256 of a safetensors file, all of whose numbers are looked at on the way.

    Raises:
        PixArtError: names the tensors with NaN or infinity in them.
    """
    tensors = check_whole(path)
    wrong = []
    with path.open("rb") as file:
        start = file.read(8)
        digest = hashlib.sha256(start)
        digest.update(file.read(struct.unpack("<Q", start)[0]))
        for name, entry in tensors.items():
            begin, end = entry["data_offsets"]
            finite = True
            for at in range(begin, end, PIECE):
                piece = file.read(min(PIECE, end - at))
                digest.update(piece)
                finite = finite and _is_finite(piece, str(entry.get("dtype")))
            if not finite:
                wrong.append(name)
    refuse_names(wrong, len(tensors), str(path))
    return digest.hexdigest()


def _is_finite(piece: bytes, dtype: str) -> bool:
    """By two maxima over the bits, at the speed of the memory: NaN and infinity are the largest of each sign."""
    width, infinity = INFINITY.get(dtype, ("1", None))
    if infinity is None or len(piece) % int(width) or not piece:
        return True
    positive = np.frombuffer(piece, f"<i{width}").max()
    negative = np.frombuffer(piece, f"<u{width}").max()
    return bool(positive < infinity and negative < infinity + (1 << (8 * int(width) - 1)))
