"""State dicts: read from pickles, written, and what is wrong with one in one sentence."""

import argparse
import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pixart.config import shortened
from pixart.errors import PixArtError, reason_of
from pixart.files import replacing

if TYPE_CHECKING:
    import numpy as np
    import torch

Shapes = Mapping[str, Sequence[int]]  # by the names of tensors
SHOWN = 10  # names in a list of complaints


def read_pickle(path: Path) -> dict:
    """What `torch.save` wrote, tensors and plain values only: no code of the file is run.

    Besides what torch allows by itself, the plain values that trainers keep beside their weights are read: an
    `argparse.Namespace`, numpy numbers and arrays (states of random number generators), paths, times.

    Raises:
        PixArtError: the file is damaged, or holds other objects than those.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_plain_types()):
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                loaded = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # a damaged archive can fail anywhere inside the library
        text = str(error).strip() or type(error).__name__
        if "weights" in text.splitlines()[0].lower():  # of the many sentences, the one on how to run the code in it
            named = re.search(r"GLOBAL ([\w.]+)", text)
            what = f"a {named[1]}" if named else "more than tensors and plain values"
            raise PixArtError(
                f"{path} holds {what}, and pixart runs no code from a file; where you trust it, open it with "
                "torch.load(..., weights_only=False) and save its state dict alone with torch.save."
            ) from None
        raise PixArtError(f"{path} is damaged ({text.splitlines()[0]}); copy or download it again.") from None
    if not isinstance(loaded, dict):
        raise PixArtError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    return loaded


def _plain_types() -> list:
    """Types of plain values, by the names that they have in pickles of numpy 1 and 2."""
    import numpy as np

    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name.endswith("DType")]
    by_name = [
        (build, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for build, name in ((_numpy_scalar, "scalar"), (_empty_array, "_reconstruct"))
    ]
    paths = [(PurePosixPath, "pathlib.PosixPath"), (PureWindowsPath, "pathlib.WindowsPath")]
    text = [(_latin1, "_codecs.encode")]
    plain = [argparse.Namespace, SimpleNamespace, datetime.datetime, datetime.timedelta, datetime.timezone]
    return [*plain, np.ndarray, np.dtype, *dtypes, *by_name, *paths, *text]


def _numpy_scalar(dtype: "np.dtype", data: bytes) -> object:
    import numpy as np

    return np.frombuffer(data, dtype, count=1)[0]


def _empty_array(kind: type, shape: tuple, code: object) -> "np.ndarray":
    """What an array is unpickled into; its real shape and bytes follow, so that none is made from a claim alone."""
    import numpy as np

    return np.ndarray((0,), "b")


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


def save_tensors(tensors: "dict[str, torch.Tensor]", path: Path, dtype: "torch.dtype | None") -> None:
    """Write a safetensors file, complete or not at all: floating-point tensors in `dtype` (None: as they are).

    Raises:
        PixArtError: the disk refuses, for example because it is full.
    """
    from safetensors.torch import save_file

    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    storages: set[int] = set()
    for name, tensor in stored.items():  # the format has no tensors that share their bytes
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages:
            stored[name] = tensor.clone()
        storages.add(storage.data_ptr())
    with writing(path) as part:
        save_file(stored, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors makes it private, and a service may run as another user


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`; a full disk, of which each library has an exception of its own, becomes a PixArtError."""
    from safetensors import SafetensorError

    try:
        with replacing(path) as part:
            yield part
    except (SafetensorError, OSError, RuntimeError) as error:
        raise PixArtError(
            f"{path} cannot be written ({reason_of(error)}); make room or choose another place."
        ) from None


def refuse_not_floats(state: "dict[str, torch.Tensor]", where: str) -> None:
    """PixArtError naming the tensors of `where` that are no dense floating-point numbers, such as quantised weights."""
    wrong = {name: kind for name, tensor in state.items() if (kind := _other_kind(tensor)) is not None}
    if wrong:
        raise PixArtError(
            f"{where} holds {len(wrong)} of {len(state)} tensors that are {', '.join(sorted(set(wrong.values())))} "
            f"({_some(list(wrong))}); pixart reads float8, float16, bfloat16 and float32, so give the checkpoint as it "
            "was trained."
        )


def _other_kind(tensor: "torch.Tensor") -> str | None:
    """What a tensor is that is no dense array of floating-point numbers; None if it is one."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        return "sparse" if tensor.layout != torch.strided else "without numbers"
    if not tensor.is_floating_point():
        return str(tensor.dtype).removeprefix("torch.")
    # A view in a pickle may repeat its few bytes to any size.
    return "larger than their bytes" if tensor.untyped_storage().nbytes() < tensor.nbytes else None


def refuse_not_finite(state: "dict[str, torch.Tensor]", where: str) -> None:
    """PixArtError naming the tensors of `where` that are no floating-point numbers, or hold NaN or infinity."""
    refuse_not_floats(state, where)
    wrong = [name for name, tensor in state.items() if not _floats(tensor).isfinite().all()]
    if wrong:
        raise PixArtError(
            f"{where} is not finite: NaN or infinity in {len(wrong)} of {len(state)} tensors ({_some(wrong)}); copy it "
            "again, or take an earlier checkpoint."
        )


def _floats(tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensor; float8, with which torch computes little, as bfloat16, which holds each of its values exactly."""
    import torch

    return tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 and tensor.is_floating_point() else tensor


def widened(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The same numbers, those in float8 as bfloat16: 8 bits are a form to store weights, not one to compute with."""
    return {name: _floats(tensor) for name, tensor in state.items()}


def check_tensors(found: Shapes, expected: Shapes, where: str) -> None:
    """PixArtError with a list of what is missing, unexpected or of another shape in `where`."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{shortened(name, 100)} is {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and list(found[name]) != list(shape)
    ]
    complaints = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", misshapen))
        if names
    ]
    if complaints:
        raise PixArtError(f"{where} does not hold the tensors that the config asks for ({'; '.join(complaints)}).")


def shapes(state: "dict[str, torch.Tensor]") -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _some(names: list[str]) -> str:
    return ", ".join(shortened(name, 100) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
