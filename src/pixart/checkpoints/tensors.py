"""Tensors in files: read and written whole, and what is wrong with a file in one sentence."""

from pathlib import Path
from typing import TYPE_CHECKING

from pixart.errors import PixArtError

if TYPE_CHECKING:
    import torch

SHOWN = 10  # names in a list of complaints


def is_pickle(path: Path) -> bool:
    """Whether the file begins as a pickle does, or as the zip archive that torch puts one into."""
    if not path.is_file():  # a pipe would never end
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def read_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a safetensors file as they are stored; PixArtError if it is damaged or another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        if path.is_file() and is_pickle(path):
            raise PixArtError(
                f"{path} is damaged: it is a pickle with the name of a safetensors file, which pixart does not open; "
                "copy or download the safetensors file again."
            ) from None
        raise PixArtError(f"{path} is damaged ({error}); copy or download it again.") from error


def read_pickle(path: Path) -> dict:
    """What `torch.save` wrote, tensors and plain values only: no code of the file is run.

    Raises:
        PixArtError: the file is damaged, or holds other objects than those.
    """
    import torch

    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            loaded = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # a damaged archive can fail anywhere inside the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "weights" in reason.lower():  # of the many sentences, the one that says how to run the code in it
            raise PixArtError(
                f"{path} holds more than tensors and plain values, and pixart runs no code from a file; save its "
                "state_dict alone where you trust it."
            ) from None
        raise PixArtError(f"{path} is damaged ({reason}); copy or download it again.") from None
    if not isinstance(loaded, dict):
        raise PixArtError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    return loaded


def save_tensors(tensors: "dict[str, torch.Tensor]", path: Path, dtype: "torch.dtype | None") -> None:
    """Write a safetensors file whole or not at all: floating-point tensors in `dtype` (None: as they are).

    Raises:
        PixArtError: the disk refuses, for example because it is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(stored, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors makes it private, and a service may run as another user
        part.replace(path)
    except (SafetensorError, OSError) as error:  # a full disk is the first of the two
        part.unlink(missing_ok=True)
        raise PixArtError(f"{path} cannot be written ({error}); make room or choose another place.") from error


def refuse_not_finite(state: "dict[str, torch.Tensor]", where: str) -> None:
    """PixArtError naming the tensors of `where` that hold NaN or infinity."""
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    refuse_names(wrong, len(state), where)


def refuse_names(wrong: list[str], count: int, where: str) -> None:
    """PixArtError if any of the `count` tensors of `where` are in `wrong`, those that hold NaN or infinity."""
    if wrong:
        raise PixArtError(
            f"{where} is not finite: NaN or infinity in {len(wrong)} of {count} tensors ({_some(wrong)}); copy it "
            "again, or take an earlier checkpoint."
        )


def check_tensors(found: dict[str, list[int]], expected: dict[str, list[int]], where: str) -> None:
    """PixArtError with a list of what is missing, unexpected or of another shape in `where`."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
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
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
