"""Prompts to compare and measure models by: the sets of the package, and the files of known benchmarks."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pixart.config import unknown
from pixart.errors import PixArtError, UsageError
from pixart.files import parse_json, read_bytes
from pixart.pipeline.prompts import check_text

# Our own words; the sizes are those of the article's tables (50, 33, 20, and 5 subjects in 5 styles).
SETS = {
    "general": "50 prompts of many kinds: animals, people, places, things",
    "more": "33 more: paragraphs, impossible things, light, single words",
    "alignment": "20 that can be seen to be met or not: colour, shape, texture, spatial, counting, complex",
    "styles": "5 subjects in 5 styles",
}
MAX_BYTES = 64 * 2**20
SEPARATORS = {".tsv": "\t", ".csv": ","}
TEXT_NAMES = ("prompt", "prompts", "text", "caption")  # of a column or key, in this order; capitals do not matter
CATEGORY_NAMES = ("category", "tag")  # PartiPrompts and DrawBench; GenEval


@dataclass(frozen=True)
class Prompt:
    """A text, the set or file that it is from, and its category there ("" where it has none).

    `about` is what else its line says, by the names used there: GenEval's `include`, PartiPrompts' `Challenge`.
    """

    text: str
    set: str
    category: str = ""
    about: dict[str, Any] = field(default_factory=dict)


def read_prompts(name_or_path: str | Path) -> list[Prompt]:
    """The prompts of a set in the package, by its name, or of a file or folder.

    Read are PartiPrompts (.tsv), GenEval's evaluation_metadata.jsonl and other JSON lines with a `prompt`, DrawBench
    and other .csv with a column of prompts, T2I-CompBench (a .txt for each category, or the folder of them) and plain
    text with a prompt a line. A name with a dot or a slash in it is always a path.

    Raises:
        UsageError: there is no such set or file, it is empty, or a line is malformed; names the first by its number.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in SETS:
        return list(_shipped(name))
    if not re.search(r"[./\\]", name) and not path.exists():
        raise UsageError(unknown("prompt set or file", name, SETS))
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        if not texts:
            raise UsageError(f"{path} is a folder without .txt files; give a prompt file, or a T2I-CompBench folder.")
        return [prompt for text in texts for prompt in read_prompts(text)]
    ending = path.suffix.lower()
    if ending not in (".txt", "", ".jsonl", *SEPARATORS):
        raise UsageError(f"{path} is no prompt file: .txt, .jsonl, .tsv and .csv are read, not {path.suffix}.")
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        rows = _table(text, path, SEPARATORS[ending]) if ending in SEPARATORS else _lines(text, path, ending)
        prompts = [_prompt(where, row, path) for where, row in rows]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}, is not UTF-8 text; save the file as UTF-8.") from None
    except PixArtError as error:
        raise UsageError(str(error)) from None
    if not prompts:
        raise UsageError(f"{path} holds no prompts; it is empty.")
    return prompts


def _shipped(name: str) -> Iterator[Prompt]:
    """A set of the package: prompts a line, under [category] headings."""
    category = ""
    for line in files("pixart.evaluation.prompt_sets").joinpath(f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            category = line.strip("[]")
        elif line and not line.startswith("#"):
            yield Prompt(line, name, category)


def _lines(text: str, path: Path, ending: str) -> Iterator[tuple[str, Any]]:
    """(where it is, the row) of JSON lines, or of a prompt a line; blank lines are skipped."""
    # T2I-CompBench names its files color_val.txt, shape_train.txt, ...
    category = match[1] if (match := re.fullmatch(r"(.+)_(?:train|val)", path.stem)) else ""
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, line {number},"
        if line.strip():
            yield where, parse_json(line, where) if ending == ".jsonl" else {"prompt": line, "category": category}


def _table(text: str, path: Path, separator: str) -> Iterator[tuple[str, Any]]:
    """(where it is, the row) of a table whose first line names its columns."""
    # A TSV file knows no quotation marks: those of PartiPrompts.tsv are part of its prompts.
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quoting)
    names: list[str] = []
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num},"
            if not any(cell.strip() for cell in row):
                continue
            if names and len(row) != len(names):
                raise UsageError(f"{where} has {len(row)} cells where the head has {len(names)}.")
            if names:
                yield where, dict(zip(names, row, strict=True))
            names = names or row
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}, cannot be read ({error}).") from None


def _prompt(where: str, row: Any, path: Path) -> Prompt:
    key = _one_of(row, TEXT_NAMES) if isinstance(row, dict) else None
    if key is None or not isinstance(row[key], str) or not row[key].strip():
        raise UsageError(f"{where} has no prompt: no text that is called {', '.join(TEXT_NAMES)}.")
    if "\0" in row[key]:
        raise UsageError(f"{where} has a NUL character in it.")
    check_text(row[key], f"prompt of {where.rstrip(',')}")
    named = _one_of(row, CATEGORY_NAMES)
    category = row[named] if named is not None and isinstance(row[named], str) else ""
    about = {name: value for name, value in row.items() if name not in (key, named)}
    return Prompt(row[key].strip(), path.stem, category.strip(), about)


def _one_of(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The key of `row` that is the first of `names` which is there."""
    folded = {key.strip().casefold(): key for key in row}
    return next((folded[name] for name in names if name in folded), None)
