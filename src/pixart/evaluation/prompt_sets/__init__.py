"""Prompts to generate, and to compare and measure models by: sets of the package, files, those of benchmarks."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pixart.config import unknown
from pixart.errors import PixArtError, UsageError, shown
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
MAX_PROMPTS = 100_000
LINE_END = re.compile(r"\r?\n|\r")
SEPARATORS = {".tsv": "\t", ".csv": ","}
TEXT_NAMES = ("prompt", "prompts", "text", "caption")  # of a column or key, in this order; capitals do not matter
CATEGORY_NAMES = ("category", "tag")  # PartiPrompts and DrawBench; GenEval


@dataclass(frozen=True)
class Prompt:
    """A text, the set or file that it is from, and its category there ("" where it has none).

    `about` is what else its line says, by the names used there: settings, GenEval's `include`, PartiPrompts'
    `Challenge`. `line` is where it stands, from 1; in a folder, counted through all of its prompts.
    """

    text: str
    set: str
    category: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    line: int = field(default=0, compare=False)


def read_prompts(name_or_path: str | Path) -> list[Prompt]:
    """The prompts of a set in the package, by its name, of a file or folder, or of standard input, "-".

    Read are PartiPrompts (.tsv), GenEval's evaluation_metadata.jsonl and other JSON lines with a `prompt`, DrawBench
    and other .csv with a column of prompts, T2I-CompBench (a .txt for each category, or the folder of them) and plain
    text with a prompt a line, as of standard input. A name with a dot or a slash in it is always a path.

    Raises:
        UsageError: there is no such set or file, it is empty or too long, or a line is malformed; names the first by
            its number.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in SETS:
        return list(_shipped(name))
    if name == "-":
        content = sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b""  # None where it is closed
        return _prompts(content, Path("standard input"))
    if not re.search(r"[./\\]", name) and not path.exists():
        raise UsageError(unknown("prompt set or file", name, SETS))
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        if not texts:
            raise UsageError(f"{path} is a folder without .txt files; give a prompt file, or a T2I-CompBench folder.")
        every = [prompt for text in texts for prompt in read_prompts(text)]
        return [replace(prompt, line=line) for line, prompt in enumerate(every, 1)]
    if path.suffix.lower() not in (".txt", "", ".jsonl", *SEPARATORS):
        raise UsageError(f"{path} is no prompt file: .txt, .jsonl, .tsv and .csv are read, not {path.suffix}.")
    try:
        content = read_bytes(path, MAX_BYTES)
    except PixArtError as error:
        raise UsageError(str(error)) from None
    return _prompts(content, path)


def _prompts(content: bytes, path: Path) -> list[Prompt]:
    name, ending = shown(str(path), 200), path.suffix.lower()
    if len(content) > MAX_BYTES:
        raise UsageError(f"{name} has more than {MAX_BYTES:,} bytes.")
    try:
        text = content.decode("utf-8-sig")
        rows = _table(text, name, SEPARATORS[ending]) if ending in SEPARATORS else _lines(text, name, path)
        prompts = [_prompt(name, line, row, path.stem) for line, row in rows]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}, line {line}, is not UTF-8 text; save the file as UTF-8.") from None
    except PixArtError as error:
        raise UsageError(str(error)) from None
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise UsageError(f"{name} holds {len(prompts):,} prompts; from 1 to {MAX_PROMPTS:,} are read.")
    return prompts


def _shipped(name: str) -> Iterator[Prompt]:
    """A set of the package: prompts a line, under [category] headings."""
    category = ""
    text = files("pixart.evaluation.prompt_sets").joinpath(f"{name}.txt").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            category = line.strip("[]")
        elif line and not line.startswith("#"):
            yield Prompt(line, name, category, line=number)


def _lines(text: str, name: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(its line, the row) of JSON lines, or of a prompt a line; blank lines are skipped."""
    json_lines = path.suffix.lower() == ".jsonl"
    # T2I-CompBench names its files color_val.txt, shape_train.txt, ...
    category = match[1] if (match := re.fullmatch(r"(.+)_(?:train|val)", path.stem)) else ""
    for number, line in enumerate(LINE_END.split(text), 1):
        if line.strip():
            row = parse_json(line, f"{name}, line {number},") if json_lines else {"prompt": line, "category": category}
            yield number, row


def _table(text: str, name: str, separator: str) -> Iterator[tuple[int, Any]]:
    """(its last line, the row) of a table whose first line names its columns."""
    # A TSV file knows no quotation marks: those of PartiPrompts.tsv are part of its prompts.
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quoting)
    names: list[str] = []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if names and len(row) != len(names):
                cells = f"{len(row)} cells where the head has {len(names)}"
                raise UsageError(f"{name}, line {reader.line_num}, has {cells}.")
            if names:
                yield reader.line_num, dict(zip(names, row, strict=True))
            names = names or row
    except csv.Error as error:
        raise UsageError(f"{name}, line {reader.line_num}, cannot be read ({error}).") from None


def _prompt(name: str, line: int, row: Any, stem: str) -> Prompt:
    where = f"{name}, line {line},"
    key = _one_of(row, TEXT_NAMES) if isinstance(row, dict) else None
    if key is None or not isinstance(row[key], str) or not row[key].strip():
        raise UsageError(f"{where} has no prompt: no text that is called {', '.join(TEXT_NAMES)}.")
    if "\0" in row[key]:
        raise UsageError(f"{where} has a NUL character in it.")
    check_text(row[key], f"prompt of {where.rstrip(',')}")
    named = _one_of(row, CATEGORY_NAMES)
    category = row[named] if named is not None and isinstance(row[named], str) else ""
    about = {column: value for column, value in row.items() if column not in (key, named)}
    return Prompt(row[key].strip(), stem, category.strip(), about, line)


def _one_of(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The key of `row` that is the first of `names` which is there."""
    folded = {key.strip().casefold(): key for key in row}
    return next((folded[name] for name in names if name in folded), None)
