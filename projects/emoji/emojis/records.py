"""The data set on disk: each split is a folder with metadata.jsonl and its images, as Hugging Face's imagefolder."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixart.errors import PixArtError

SPLITS = ("train", "test_cells", "test_concepts")
HELD_OUT = SPLITS[1:]
_TEXTS = ("file_name", "text", "concept", "base_concept", "group", "subgroup", "style", "source", "licence")


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
    skin_tone: str | None
    source: str
    licence: str

    def open(self) -> Image.Image:
        """The image as RGB. Raises PixArtError where it cannot be read."""
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise PixArtError(f"The image {self.path} cannot be read: {error}.") from None


def read_split(folder: Path) -> list[Record]:
    """The records of `folder`/metadata.jsonl in file order.

    Raises PixArtError naming the file, and the line where there is one, that is missing or wrong.
    """
    metadata = folder / "metadata.jsonl"
    try:
        # splitlines would also cut at marks that JSON allows inside a text, such as U+2028.
        lines = metadata.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PixArtError(
            f"{metadata} cannot be read ({error}); build the data set: make.py data {folder.parent}"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts, captions, tone = {key: row[key] for key in _TEXTS}, row["captions"], row.get("skin_tone")
            if not captions or not all(isinstance(text, str) for text in (*texts.values(), *captions, tone or "")):
                raise ValueError("every value is a text, and captions a list of at least one")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise PixArtError(f"{metadata}, line {number} is no record of the data set: {reason}.") from None
        records.append(Record(path=folder / row["file_name"], captions=tuple(captions), skin_tone=tone, **texts))
    missing = next((record.path for record in records if not record.path.is_file()), None)
    if missing or not records:
        raise PixArtError(f"{metadata} names {missing}, which is not there." if missing else f"{metadata} is empty.")
    return records


def write_split(folder: Path, rows: list[dict]) -> None:
    """metadata.jsonl of the rows, which are records as JSON has them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
