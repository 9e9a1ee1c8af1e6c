"""The data set on disk: each split is a folder with metadata.jsonl and its images, as Hugging Face's imagefolder."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from PIL import Image

from pixart.config import structure
from pixart.errors import PixArtError
from pixart.files import parse_json, read_bytes

SPLITS = ("train", "test_cells", "test_concepts")
HELD_OUT = SPLITS[1:]
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One image with its captions. `captions[0]` is `text`, the short form; `skin_tone` is None where none shows."""

    path: Path
    file_name: str
    text: str
    captions: tuple[str, ...]
    concept: str
    base_concept: str
    group: str
    subgroup: str
    style: str
    source: str
    licence: str
    skin_tone: str | None = None

    def open(self) -> Image.Image:
        """The image as RGB. Raises PixArtError where it cannot be read."""
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise PixArtError(f"The image {self.path} cannot be read: {error}.") from None


FIELDS = tuple(field.name for field in fields(Record))


def read_split(folder: Path) -> list[Record]:
    """The records of `folder`/metadata.jsonl in file order.

    Raises PixArtError naming the file, and the line where there is one, that is missing or wrong.
    """
    metadata = folder / "metadata.jsonl"
    records = []
    # splitlines would also cut at marks that JSON allows inside a text, such as U+2028.
    for number, line in enumerate(read_bytes(metadata, MAX_BYTES).split(b"\n"), 1):
        if line.strip():
            where = f"{metadata}, line {number},"
            row = parse_json(line, where)
            values = {name: row[name] for name in FIELDS if name in row} if isinstance(row, dict) else {}
            values["path"] = str(folder / str(values.get("file_name")))
            records.append(structure(values, Record, where))
            if not records[-1].captions:
                raise PixArtError(f"{where} has no captions.")
    missing = next((record.path for record in records if not record.path.is_file()), None)
    if missing or not records:
        raise PixArtError(f"{metadata} names {missing}, which is not there." if missing else f"{metadata} is empty.")
    return records


def write_split(folder: Path, rows: list[dict]) -> None:
    """metadata.jsonl of the rows, which are records as JSON has them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
