"""Weights in safetensors files: their headers, the files that belong together, and tensors in the order of the file.

Tensors are mapped, not copied: the system's cache holds what fits, and the process takes memory only where a dtype or a
device asks for a copy.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.errors import PixArtError, reason_of
from pixart.files import open_regular, read_json_object

if TYPE_CHECKING:
    import torch

OnBytes = Callable[[int], None]  # how many more bytes of weights have been read
FLOATS = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
INTEGERS = {"I64": "int64", "I32": "int32"}  # indices, which text encoders keep
PIECE = 128 << 20  # bytes that are read ahead while the last ones are used
AT_ONCE = 4 << 20  # bytes of one read
_scratch = threading.local()


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: `dtype` as torch names it, `size` bytes from `start` of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def is_pickle(path: Path) -> bool:
    """Whether the file begins as a pickle does, or as the zip archive that torch puts one into."""
    if not path.is_file():  # a pipe would never end
        return False
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, which may be 128 and more, and then has a brace.
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{")


def header_bytes(path: Path) -> bytes:
    """The header of a safetensors file, as it is stored. OSError where there is none."""
    with open_regular(path) as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by its name; only the header is read.

    The library compares it with the length of the file, so a cut-short download fails here.

    Raises:
        PixArtError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, "np"):
            pass
        header = header_bytes(path)
    except FileNotFoundError:
        pickles = sorted(path.parent.glob("*.bin"))
        why = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"{path} is missing{why}; copy or download it.") from None
    except (OSError, SafetensorError, PixArtError) as error:
        why = "it is a pickle, which pixart does not open" if is_pickle(path) else str(error).rstrip(".")
        raise PixArtError(f"{path} is damaged: no complete safetensors file ({why}); download it again.") from None
    kinds, tensors = FLOATS | INTEGERS, {}
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            dtype = kinds.get(entry["dtype"], entry["dtype"])
            tensors[name] = Stored(path, dtype, tuple(entry["shape"]), 8 + len(header) + first, end - first)
    return tensors


def read_headers(paths: Iterable[Path]) -> dict[str, Stored]:
    return {name: stored for path in paths for name, stored in read_header(path).items()}


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors file `name` of one part, or the several that its index names, each checked to be complete.

    A text encoder may also be the one file that ComfyUI users have, such as t5xxl_fp16.safetensors: in the folder, or
    given in its place.

    Raises:
        PixArtError: one of them is missing, cut short, a pickle, or the index names others than those beside it.
    """
    index, paths = folder / f"{name}.index.json", [folder if folder.is_file() else folder / name]
    single = sorted(folder.glob("t5xxl*.safetensors"))
    if not paths[0].is_file() and index.is_file():
        places = read_json_object(index).get("weight_map")
        names = sorted({str(place) for place in places.values()}) if isinstance(places, dict) else []
        if not names or any(Path(place).name != place for place in names):
            raise PixArtError(f"{index} is damaged: its weight_map names no files beside it.")
        paths = [folder / place for place in names]
    elif not paths[0].is_file() and len(single) == 1:
        paths = single
    for path in paths:
        read_header(path)
    return paths


def refuse_quantised(paths: Iterable[Path]) -> None:
    """PixArtError naming the file with weights in another form than floating-point numbers, such as int8 or NF4.

    Loaded as numbers, quantised weights would generate noise.
    """
    readable = {*FLOATS.values(), *INTEGERS.values()}
    for path in paths:
        wrong = {name: stored.dtype for name, stored in read_header(path).items() if stored.dtype not in readable}
        if wrong:
            name, dtype = next(iter(wrong.items()))
            raise PixArtError(
                f"{path} holds {len(wrong)} tensors in another form than floating-point numbers ({name}: {dtype}); "
                "give the weights as they were before they were quantised."
            )


def stored_dtypes(paths: Iterable[Path]) -> tuple[str, ...]:
    """The names of the dtypes in safetensors files, as torch writes them, sorted."""
    return tuple(sorted({stored.dtype for stored in read_headers(paths).values()}))


def map_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a safetensors file as they are stored, mapped. PixArtError for a damaged one."""
    from safetensors.torch import load_file

    read_header(path)
    return load_file(path)


def for_product(weight: "torch.Tensor", x: "torch.Tensor") -> "torch.Tensor":
    """`weight` in the dtype and on the device of x, for one product.

    On a CPU in inference mode the copy is only good until the next one of its thread: half of the time of such a
    product went into fresh pages for it.
    """
    import torch

    if weight.device != x.device:
        return weight.to(x.device).to(x.dtype)  # moved as it is kept, in fewer bits mostly
    if weight.dtype == x.dtype or weight.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return weight.to(x.dtype)
    room = _scratch.__dict__.get(x.dtype)
    if room is None or room.numel() < weight.numel():
        room = _scratch.__dict__[x.dtype] = torch.empty(weight.numel(), dtype=x.dtype)
    return room[: weight.numel()].view(weight.shape).copy_(weight)


def stream(paths: Iterable[Path], on_bytes: OnBytes | None = None) -> "Iterator[tuple[str, torch.Tensor]]":
    """The tensors of safetensors files in the order of the files, mapped; the next ones are read meanwhile.

    Raises:
        PixArtError: a file is damaged or cannot be read.
    """
    for path in paths:
        tensors = map_tensors(path)
        pieces: list[list[Stored]] = [[]]
        names: list[list[str]] = [[]]
        for name, stored in sorted(read_header(path).items(), key=lambda item: item[1].start):
            if sum(each.size for each in pieces[-1]) >= PIECE:
                pieces.append([])
                names.append([])
            pieces[-1].append(stored)
            names[-1].append(name)
        with ReadAhead(pieces, on_bytes) as ahead:
            for number, group in enumerate(names):
                ahead.wait(number)
                for name in group:
                    yield name, tensors.pop(name)


class ReadAhead:
    """Brings pieces of files into the system's cache, the next one while the caller works on the last.

    A mapped file that nobody reads ahead is read in small portions, while whoever needs them waits.
    """

    def __init__(self, pieces: Sequence[Sequence[Stored]], on_bytes: OnBytes | None = None):
        self.pieces, self.on_bytes = pieces, on_bytes
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._reading: deque[Future[int]] = deque()
        self._submitted = 0

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def wait(self, number: int) -> None:
        """Until piece `number` is in the cache; pieces are waited for in their order.

        Raises:
            PixArtError: a file cannot be read.
        """
        while self._submitted < min(number + 2, len(self.pieces)):
            self._reading.append(self._pool.submit(_read, self.pieces[self._submitted]))
            self._submitted += 1
        size = self._reading.popleft().result()
        if self.on_bytes:
            self.on_bytes(size)


def _read(piece: Sequence[Stored]) -> int:
    buffer = memoryview(bytearray(AT_ONCE))
    for stored in piece:
        try:
            with stored.path.open("rb", buffering=0) as file:
                file.seek(stored.start)
                left = stored.size
                while left > 0 and (count := file.readinto(buffer[: min(left, AT_ONCE)])):
                    left -= count
        except OSError as error:
            raise PixArtError(f"{stored.path} cannot be read: {reason_of(error)}.") from None
    return sum(stored.size for stored in piece)
