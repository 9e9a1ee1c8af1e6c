"""Reads one split of a captioned picture folder: metadata.jsonl with the picture files beside it."""

import json
from dataclasses import dataclass
from pathlib import Path

from pixart.errors import PixArtError

_TEXTS = ("file_name", "text", "concept", "base_concept", "group", "subgroup", "style", "source", "licence")


@dataclass(frozen=True)
class Record:
    """One picture with its captions. `captions[0]` is `text`, the short form; `skin_tone` is None where none shows."""

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


def read_split(folder: Path) -> list[Record]:
    """The records of `folder`/metadata.jsonl in file order; every picture file is checked to exist.

    Raises PixArtError naming the file, and the line where there is one, that is missing or wrong.
    """
    metadata = Path(folder) / "metadata.jsonl"
    try:
        # splitlines would also cut at marks that JSON allows inside a text, such as U+2028.
        lines = metadata.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise PixArtError(
            f"{folder} has no metadata.jsonl; give a split of a data set, such as DEST/train. pixart data emoji DEST "
            "builds the emoji data set, which the recipes emoji/... look for in runs/emoji."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PixArtError(f"{metadata} cannot be read: {error}.") from None
    records = [_record(line, metadata, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise PixArtError(f"{metadata} holds no records; build the data set again.")
    return records


def _record(line: str, metadata: Path, number: int) -> Record:
    where = f"{metadata}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PixArtError(f"{where} is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise PixArtError(f"{where} is not a JSON object with file_name, text and captions.")
    for key in _TEXTS:
        if not isinstance(row.get(key), str):
            raise PixArtError(f"{where} needs the key {key!r} with a text.")
    captions = row.get("captions")
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
        raise PixArtError(f"{where} needs the key 'captions' with a list of at least one text.")
    tone = row.get("skin_tone")
    if tone is not None and not isinstance(tone, str):
        raise PixArtError(f"{where}: 'skin_tone' is a text or null.")
    path = metadata.parent / row["file_name"]
    if not path.is_file():
        raise PixArtError(f"{where} names {row['file_name']}, which is not in {metadata.parent}.")
    return Record(path=path, captions=tuple(captions), skin_tone=tone, **{key: row[key] for key in _TEXTS})
