"""The texts inside a picture file, read as hostile input: limits for everything, and no look at the pixels.

PNG keeps texts in tEXt, zTXt and iTXt chunks; JPEG and WebP in EXIF, where image tools use the UserComment. Written
after the PNG specification (third edition, 11.3.3), TIFF 6.0 (section 2) and EXIF 2.32 (4.6.5).
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pixart.errors import UsageError

MAX_TEXT = 2 * 2**20  # bytes of one text, unpacked; Pillow refuses packed ones over half of it
MAX_TEXTS = 8 * 2**20  # bytes of all texts of a file
MAX_CHUNKS = 200_000
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
EXIF_HEAD = b"Exif\0\0"
EXIF_FOLDER, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C


@dataclass
class PictureTexts:
    """`format` is PNG, JPEG or WebP; `texts` by keyword; `notices` says what could not be read, a sentence each."""

    format: str
    texts: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    size: int = 0  # bytes of all texts so far

    def add(self, keyword: str, text: str, size: int) -> None:
        """Of two texts with one name, the first counts."""
        self.size += size
        if self.size > MAX_TEXTS:
            self.notices.append(f"The texts in the file are longer than {MAX_TEXTS:,} bytes; the rest was not read.")
        elif keyword not in self.texts:
            self.texts[keyword] = text

    @property
    def full(self) -> bool:
        return self.size > MAX_TEXTS


def read_texts(path: str | Path) -> PictureTexts:
    """All texts of a PNG, JPEG or WebP file.

    Raises:
        UsageError: there is no such file, or it is no picture of these kinds. A damaged text is a notice.
    """
    name = shown(Path(path).name or str(path))
    try:
        if not Path(path).is_file():  # a FIFO would wait forever
            raise UsageError(f"There is no file {name}; give a picture file.")
        with open(path, "rb") as file:
            start = file.read(12)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                file.seek(8)
                return _read_png(file)
            if start.startswith(b"\xff\xd8\xff"):
                file.seek(2)
                return _with_exif("JPEG", _find_in_jpeg(file))
            if start.startswith(b"RIFF") and start[8:] == b"WEBP":
                return _with_exif("WebP", _find_in_webp(file))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{name} cannot be read: {shown(str(reason))}.") from None
    raise UsageError(f"{name} is not a PNG, JPEG or WebP file, which are those that can hold settings.")


def parse_json(text: str) -> Any:
    """A JSON value; NaN and Infinity, which some tools write, become None. Raises ValueError, also for deep nesting."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(text: Any, length: int = 80) -> str:
    """What a file says, as part of a sentence: one short line without control characters."""
    # What is nested may be too deep to be printed.
    text = str(text)[: length + 1] if isinstance(text, str | int | float) else f"({type(text).__name__})"
    line = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)
    return line if len(line) <= length else line[:length] + " ..."


def _read_png(file: BinaryIO) -> PictureTexts:
    found = PictureTexts("PNG")
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND" or found.full:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind not in TEXT_CHUNKS:
            file.seek(length + 4, 1)
        elif length > MAX_TEXT:
            found.notices.append(f"A text of {length:,} bytes was not read; at most {MAX_TEXT:,} are.")
            file.seek(length + 4, 1)
        else:
            data, sum_read = file.read(length), file.read(4)
            if len(data) < length or zlib.crc32(kind + data) != int.from_bytes(sum_read, "big"):
                found.notices.append("A text in the file is damaged and was not read.")
            elif kind == b"eXIf":
                _add_exif(found, data)
            else:
                _add_chunk(found, kind, data)
    return found


def _add_chunk(found: PictureTexts, kind: bytes, data: bytes) -> None:
    keyword, _, data = data.partition(b"\0")
    packed, encoding = kind == b"zTXt", "latin-1"
    if kind == b"zTXt":
        data = data[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        packed, encoding = data[:1] == b"\1", "utf-8"
        data = data[2:].partition(b"\0")[2].partition(b"\0")[2]  # past the language and the translated keyword
    if packed:
        try:
            data = zlib.decompressobj().decompress(data, MAX_TEXT + 1)
        except zlib.error:
            found.notices.append(f'The text "{shown(keyword.decode("latin-1"))}" is damaged and was not read.')
            return
    if len(data) > MAX_TEXT:
        found.notices.append(
            f'The text "{shown(keyword.decode("latin-1"))}" unpacks to more than {MAX_TEXT:,} bytes and was not read.'
        )
        return
    found.add(keyword.decode("latin-1"), data.decode(encoding, "replace"), len(data))


def _with_exif(kind: str, exif: bytes) -> PictureTexts:
    found = PictureTexts(kind)
    if exif:
        _add_exif(found, exif)
    return found


def _find_in_jpeg(file: BinaryIO) -> bytes:
    """The EXIF data of a JPEG file, which is in an APP1 segment before the picture itself."""
    for _ in range(MAX_CHUNKS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # start of scan: only pixels follow
            break
        length = max(struct.unpack(">H", head[2:])[0] - 2, 0)
        if head[1] != 0xE1:
            file.seek(length, 1)
        elif (data := file.read(length)).startswith(EXIF_HEAD):
            return data
    return b""


def _find_in_webp(file: BinaryIO) -> bytes:
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF" and length <= MAX_TEXTS:
            return file.read(length)
        file.seek(length + length % 2, 1)
    return b""


def _add_exif(found: PictureTexts, data: bytes) -> None:
    """What image tools keep in EXIF, under the keywords that they use in PNG.

    A1111 and Fooocus: the UserComment is `parameters`, and Fooocus' MakerNote names its scheme. ComfyUI's WebP files:
    texts such as "prompt:{...}" in tags that are meant for other things.
    """
    try:
        tags = _read_tags(data.removeprefix(EXIF_HEAD))
    except (struct.error, ValueError):
        found.notices.append("The EXIF data in the file is damaged and was not read.")
        return
    for tag, raw in tags.items():
        if len(raw) > MAX_TEXT:
            found.notices.append(f"A text of {len(raw):,} bytes was not read; at most {MAX_TEXT:,} are.")
            continue
        if tag == USER_COMMENT:
            found.add("parameters", _user_comment(raw), len(raw))
            continue
        text = raw.decode("utf-8", "replace").rstrip("\0")
        if tag == MAKER_NOTE:
            found.add("fooocus_scheme", text[:80], len(raw))
        elif text.lower().startswith(("prompt:", "workflow:", "pixart:")):
            keyword, _, value = text.partition(":")
            found.add(keyword.lower(), value, len(raw))


def _read_tags(data: bytes) -> dict[int, bytes]:
    """Tag -> bytes, for the tags of the first TIFF folder and of the EXIF folder that hold texts."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise ValueError
    tags: dict[int, bytes] = {}
    for at in _folders(data, order):
        for tag, kind, count, value in _entries(data, order, at):
            if kind not in (1, 2, 7):  # bytes, ASCII, undefined: all of them one byte each
                continue
            start = struct.unpack(order + "I", value)[0]
            tags.setdefault(tag, value[:count] if count <= 4 else data[start : start + count])
    return tags


def _folders(data: bytes, order: str) -> Iterator[int]:
    first = struct.unpack_from(order + "I", data, 4)[0]
    yield first
    for tag, _, _, value in _entries(data, order, first):
        if tag == EXIF_FOLDER:
            yield struct.unpack(order + "I", value)[0]
            return


def _entries(data: bytes, order: str, at: int) -> Iterator[tuple[int, int, int, bytes]]:
    (count,) = struct.unpack_from(order + "H", data, at)
    for number in range(count):
        yield struct.unpack_from(order + "HHI4s", data, at + 2 + 12 * number)


def _user_comment(raw: bytes) -> str:
    """EXIF's UserComment: eight bytes name the encoding."""
    head, text = raw[:8], raw[8:]
    if head == b"UNICODE\0":
        # Nothing says the byte order, and both are found. In most scripts, the zero bytes are the high ones.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    if head in (b"ASCII\0\0\0", bytes(8)):
        return text.decode("utf-8", "replace").rstrip("\0")
    return raw.decode("utf-8", "replace").rstrip("\0")
