"""The texts inside an image file, read as hostile input: one budget for the file, and no look at the pixels.

PNG keeps texts in tEXt, zTXt and iTXt chunks (PNG specification, third edition, 11.3.3); JPEG and WebP in EXIF (TIFF
6.0, section 2; EXIF 2.32, 4.6.5), JPEG also in comments. Only what image tools write settings into is looked at.
Pillow would do, but it reads every EXIF entry before one can say no, and many may point at the same megabytes.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pixart.errors import PixArtError, UsageError, reason_of, shown
from pixart.files import open_regular

MAX_TEXT = 2 * 2**20  # bytes of one text, unpacked; Pillow refuses packed ones over half of it
MAX_TEXTS = 4 * 2**20  # bytes of all texts of a file, also of those that turn out to be damaged or of no use
MAX_PARTS = 20_000  # chunks, segments and EXIF entries of a file together
MAX_KEPT = 100  # texts, and notices
EXIF_HEAD = b"Exif\0\0"
EXIF_FOLDER = 0x8769
# EXIF tag -> the keyword that its text is found under. A1111 and Fooocus take the UserComment for `parameters`;
# Fooocus' MakerNote names its scheme.
TAGS = {
    0x9286: "parameters", 0x927C: "fooocus_scheme", 0x010E: "description", 0x9C9C: "comment", 0x010F: "make",
    0x0110: "model",
}  # fmt: skip
# ComfyUI's WebP files, and our own of other formats than PNG: texts such as "prompt:{...}" in tags that are meant for
# other things.
LABELS = (b"prompt:", b"workflow:", b"pixart:")


class _Spent(Exception):
    """The budget of a file is used up."""


@dataclass
class ImageTexts:
    """`format` is PNG, JPEG or WebP; `texts` by keyword; `notices` says what could not be read, a sentence each."""

    format: str
    texts: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    size: int = 0  # bytes that were charged so far
    parts: int = 0

    def add(self, keyword: str, text: str) -> None:
        """Of two texts with one name, the first counts."""
        if len(self.texts) < MAX_KEPT:
            self.texts.setdefault(keyword[:100], text)

    def notice(self, sentence: str) -> None:
        if len(self.notices) < MAX_KEPT:
            self.notices.append(sentence)

    def count_part(self) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise _Spent(f"The file has more than {MAX_PARTS:,} parts; the rest was not read.")

    def charge(self, size: int) -> bool:
        """Pay for `size` bytes before they are copied or unpacked; False if no text may be so long."""
        if size > MAX_TEXT:
            self.notice(f"A text of {size:,} bytes was not read; at most {MAX_TEXT:,} are.")
            return False
        self.size += size
        if self.size > MAX_TEXTS:
            raise _Spent(f"The texts in the file are longer than {MAX_TEXTS:,} bytes; the rest was not read.")
        return True


def read_texts(path: str | Path) -> ImageTexts:
    """All texts of a PNG, JPEG or WebP file.

    Raises:
        UsageError: there is no such file, or it is no image of these kinds. A damaged text is a notice.
    """
    name = shown(Path(path).name or str(path))
    try:
        with open_regular(Path(path)) as file:
            start = file.read(12)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                found, parts = ImageTexts("PNG"), _png_parts
            elif start.startswith(b"\xff\xd8\xff"):
                found, parts = ImageTexts("JPEG"), _jpeg_parts
            elif start.startswith(b"RIFF") and start[8:] == b"WEBP":
                found, parts = ImageTexts("WebP"), _webp_parts
            else:
                raise UsageError(f"{name} is not a PNG, JPEG or WebP file, which are those that can hold settings.")
            try:
                _read(file, parts(file), found)
            except _Spent as spent:
                found.notices.append(str(spent))
            return found
    except FileNotFoundError:
        raise UsageError(f"There is no file {name}; give an image file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UsageError(f"{name} cannot be read: {shown(reason_of(error))}.") from None
    except UsageError:
        raise
    except PixArtError:
        raise UsageError(f"{name} is no file with an image in it; give an image file.") from None


def _read(file: BinaryIO, parts: Iterator[tuple[bytes, int, int]], found: ImageTexts) -> None:
    """Take the texts out of the parts of a file: (kind, length, bytes between it and the next)."""
    for kind, length, after in parts:
        found.count_part()
        end = file.tell() + length + after
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"EXIF", b"\xe1", b"\xfe") and found.charge(length):
            data = file.read(length)
            if len(data) < length or (
                found.format == "PNG" and zlib.crc32(kind + data) != int.from_bytes(file.read(4), "big")
            ):
                found.notice("A text in the file is damaged and was not read.")
            elif kind == b"\xfe":
                found.add("comment", data.decode("utf-8", "replace").rstrip("\0"))
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                _read_chunk(kind, data, found)
            elif kind != b"\xe1" or data.startswith(EXIF_HEAD):
                _read_exif(data.removeprefix(EXIF_HEAD), found)
        file.seek(end)


def _png_parts(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        yield head[4:], int.from_bytes(head[:4], "big"), 4


def _jpeg_parts(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Segments up to the start of the scan, after which only pixels follow."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        if head[1] == 0xFF:  # a fill byte
            file.seek(-3, 1)
            yield b"", 0, 0
        else:
            yield head[1:2], max(int.from_bytes(head[2:], "big") - 2, 0), 0


def _webp_parts(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], "little")
        yield head[:4], length, length % 2


def _read_chunk(kind: bytes, data: bytes, found: ImageTexts) -> None:
    keyword, _, data = data.partition(b"\0")
    name, packed = keyword[:80].decode("latin-1"), kind == b"zTXt"
    if kind == b"zTXt":
        data = data[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        packed = data[:1] == b"\1"
        data = data[2:].partition(b"\0")[2].partition(b"\0")[2]  # past the language and the translated keyword
    if packed:
        try:
            data = zlib.decompressobj().decompress(data, MAX_TEXT + 1)
        except zlib.error:
            found.notice(f'The text "{shown(name)}" is damaged and was not read.')
            return
        finally:
            found.charge(min(len(data), MAX_TEXT))
        if len(data) > MAX_TEXT:
            found.notice(f'The text "{shown(name)}" unpacks to more than {MAX_TEXT:,} bytes and was not read.')
            return
    found.add(name, data.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace"))


def _read_exif(data: bytes, found: ImageTexts) -> None:
    """The texts of the first TIFF folder and of the EXIF folder. Entries that share their bytes pay for them each."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4], "<")
    try:
        folders, seen = [struct.unpack_from(order + "I", data, 4)[0]], set()
        for at in folders:
            (count,) = struct.unpack_from(order + "H", data, at)
            for number in range(count):
                found.count_part()
                tag, kind, length, value = struct.unpack_from(order + "HHI4s", data, at + 2 + 12 * number)
                start = struct.unpack(order + "I", value)[0]
                if tag == EXIF_FOLDER and len(folders) == 1:
                    folders.append(start)
                if kind not in (1, 2, 7) or tag in seen:  # bytes, ASCII, undefined: all of them one byte each
                    continue
                label = next((one for one in LABELS if data[start : start + len(one)].lower() == one), None)
                if (tag in TAGS or label) and found.charge(min(length, len(data))):
                    seen.add(tag)
                    _add_tag(tag, value[:length] if length <= 4 else data[start : start + length], found)
    except struct.error:
        found.notice("The EXIF data in the file is damaged and was not read.")


def _add_tag(tag: int, raw: bytes, found: ImageTexts) -> None:
    plain = "utf-16-le" if tag == 0x9C9C else "utf-8"  # Windows' XPComment
    text = _user_comment(raw) if tag == 0x9286 else raw.decode(plain, "replace")
    if text.startswith("pixart:"):
        found.add("pixart", text.removeprefix("pixart:").rstrip("\0"))
    else:
        found.add(TAGS.get(tag, f"exif {tag}"), text.rstrip("\0"))


def _user_comment(raw: bytes) -> str:
    """EXIF's UserComment: eight bytes name the encoding."""
    head, text = raw[:8], raw[8:]
    if head == b"UNICODE\0":
        # Nothing says the byte order, and both are found. In most scripts, the zero bytes are the high ones.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    return (text if head in (b"ASCII\0\0\0", bytes(8)) else raw).decode("utf-8", "replace")
