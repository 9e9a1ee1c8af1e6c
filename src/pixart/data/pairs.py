"""An image and its captions, wherever they come from: what every reader gives and everything after it takes.

A data set is a stream of `Pair` and `Problem` (`pixart.data.dataset`). A pair does not hold the image, only where its
bytes are: `read_bytes(pair.image)` fetches them, `pixart.images.open_image` makes an image of them. Both raise
`ImageProblem` for one bad image, and nothing else for anything that a data set can contain.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pixart import files
from pixart.data.storage import Folder, is_url
from pixart.errors import PixArtError, reason_of
from pixart.images import ImageProblem, printable

ORIGINAL = "original"  # the source of captions that the data set came with
MAX_IMAGE_BYTES = 512 * 1024**2  # a larger file is not read: no decoder here takes one within its pixel limit


@dataclass(frozen=True, slots=True)
class Caption:
    """`text` is not empty, has no NUL and no outer spaces; `source` is ORIGINAL or a captioner's name."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class InFile:
    """The whole of a file."""

    path: str


@dataclass(frozen=True, slots=True)
class InTar:
    """`length` bytes from `offset` of an uncompressed tar shard: its member called `member`."""

    path: str
    offset: int
    length: int
    member: str


@dataclass(frozen=True, slots=True)
class InTable:
    """A cell of a Parquet file or an Arrow stream: `row` of row group (or record batch) `group`, both from 0.

    `column` holds the bytes themselves, or a struct with `bytes` or `path` as Hugging Face writes it, or a list of one
    of these. Such a path starts from the table's folder, or from `root`, and must stay inside `root`.
    """

    path: str
    group: int
    row: int
    column: str
    root: str = ""


Location = InFile | InTar | InTable


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not become a pair, or a caption that could not be used; nothing is skipped without one.

    `key` names the image, or the place in a file (`metadata.jsonl:17`); `kind` is a short fixed word for counting;
    `reason` is a sentence. Both are made printable, whatever file names and captions are in them.

    `lost` is how many images are lost by it: 1 for most, None where nobody can know (the rest of a damaged shard).
    Whoever counts what was dropped adds these up, and takes None for more than any share allows.
    """

    key: str
    kind: str
    reason: str
    lost: int | None = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", printable(self.key))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True, slots=True)
class Pair:
    """One image with its captions.

    `key` is unique and stable inside the data set: the file's path from the data set's folder with "/", or
    `shard.tar/sample`, or `table.parquet:row`. It is valid Unicode but may hold any character that a file name may:
    `printable(key)` before it goes to a terminal. `label` is the class for stage 1. `width` and `height` are what a
    manifest declares; nobody has checked them. `repeats` is how often kohya's folder name wants it trained on.
    `mask` is an image of the same shape, white where the loss counts.

    An image without a usable caption is a pair too, because a captioner can still write one: `captions` is then empty
    and `caption_problem` says why (kinds: caption-missing, caption-empty, caption-encoding, caption-nul,
    caption-long). Whoever needs captions drops such a pair and reports `caption_problem`; it may also be set beside
    captions of other sources. More kinds: caption-type, caption-unreadable, caption-shared.
    """

    key: str
    captions: tuple[Caption, ...]
    label: str | None
    image: Location
    width: int | None = None
    height: int | None = None
    repeats: int = 1
    caption_problem: Problem | None = None
    mask: Location | None = None
    extra: dict[str, str | int | float | None] = field(default_factory=dict)


def key_hash(key: str) -> bytes:
    """8 bytes that stand for a key in sets of what was seen. Two of a million agree by chance once in 37 million."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def read_bytes(location: Location) -> bytes:
    """The bytes of an image. Raises ImageProblem (missing, unreadable, not-a-file, too-large, empty, truncated).

    Reads of an `InTable` are quick in the order of the rows: the row group that was read last is kept in memory.
    """
    match location:
        case InFile(path):
            return read_file(path)
        case InTar(path, offset, length):
            return read_file(path, offset=offset, length=length)
        case InTable():
            from pixart.data.layouts.parquet import read_cell

            return read_cell(location)


def read_file(path: str, *, offset: int = 0, length: int | None = None, limit: int = MAX_IMAGE_BYTES) -> bytes:
    """`length` bytes of a file from `offset`, or all of it; never more than `limit`. Raises ImageProblem."""
    name = os.path.basename(path)
    file, size = open_regular(path)
    with file:
        length = size if length is None else length
        if length > limit:
            raise ImageProblem("too-large", f"{name} has {length:,} bytes; at most {limit:,} are read.")
        if length == 0:
            raise ImageProblem("empty", f"{name} is empty.")
        try:
            file.seek(offset)
            data = file.read(length)
        except (OSError, ValueError) as error:
            raise ImageProblem("unreadable", f"{name} cannot be read: {error}.") from None
    if len(data) < length:
        raise ImageProblem("truncated", f"{name} ends too early: {len(data):,} of {length:,} bytes are there.")
    return data


def open_regular(path: str) -> tuple[BinaryIO, int]:
    """A regular file, or one in the cloud, and its size. Raises ImageProblem (missing, unreadable, not-a-file)."""
    name = os.path.basename(path)
    try:
        if is_url(path):
            filesystem, place = Folder(path).filesystem()
            file = filesystem.open(place, "rb", cache_type="none")
            return file, file.size
        file = files.open_regular(Path(path))
        return file, os.fstat(file.fileno()).st_size
    except PixArtError:
        raise ImageProblem("not-a-file", f"{name} is a folder, pipe or device, not a file.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageProblem("missing", f"{name} is not there.") from None
    except (OSError, ValueError) as error:
        raise ImageProblem("unreadable", f"{name} cannot be opened: {reason_of(error)}.") from None
