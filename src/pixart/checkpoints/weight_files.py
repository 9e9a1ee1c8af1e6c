"""The files of a model folder looked over without torch: JSON objects, and safetensors files, one or several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixart.checkpoints.tensors import is_pickle
from pixart.errors import PixArtError
from pixart.files import open_regular, read_json_object

DTYPE_NAMES = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip

READABLE = (*DTYPE_NAMES, "I64", "I32")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; PixArtError naming the file if there is none."""
    try:
        return read_json_object(path, nonfinite=True)
    except PixArtError as error:
        state = "damaged" if path.exists() else "not complete"
        raise PixArtError(f"The model folder is {state}: {error}") from None


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors file `name` of one part, or the several that its index names, each checked to be complete.

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
        stored_tensors(path)
    return paths


def stored_tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The "dtype" (by the name of the format) and "shape" of each tensor of a safetensors file, by its name.

    Only the header is read. The library compares it with the length of the file, so a cut-short download fails here.

    Raises:
        PixArtError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            return {name: {"dtype": one.get_dtype(), "shape": one.get_shape()} for name, one in slices.items()}
    except FileNotFoundError:
        pickles = sorted(path.parent.glob("*.bin"))
        why = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"The model folder is not complete: {path} is missing{why}.") from None
    except (OSError, SafetensorError, PixArtError) as error:
        why = "but a pickle, which pixart does not open" if is_pickle(path) else str(error).rstrip(".")
        raise PixArtError(
            f"The model folder is damaged: {path} is not a whole safetensors file ({why}); copy it again."
        ) from None


def refuse_quantised(paths: Iterable[Path]) -> None:
    """PixArtError naming the safetensors file with weights in another form than floating-point numbers.

    Loaded as numbers, quantised weights would sample noise. Indices, which text encoders keep, are integers.
    """
    for path in paths:
        wrong = {name: entry["dtype"] for name, entry in stored_tensors(path).items() if entry["dtype"] not in READABLE}
        if wrong:
            name, dtype = next(iter(wrong.items()))
            raise PixArtError(
                f"{path} holds {len(wrong)} tensors in another form than floating-point numbers ({name}: {dtype}); "
                "give the weights as they were before they were quantised."
            )


def stored_dtypes(paths: Iterable[Path]) -> tuple[str, ...]:
    """The names of the dtypes in safetensors files, as torch writes them, sorted."""
    found = {entry["dtype"] for path in paths for entry in stored_tensors(path).values()}
    return tuple(sorted(DTYPE_NAMES.get(name, name) for name in found))
