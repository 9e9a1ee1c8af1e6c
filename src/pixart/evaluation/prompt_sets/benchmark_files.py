"""Prompt files of others: PartiPrompts, GenEval, T2I-CompBench, DrawBench, plain text and JSON lines."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixart.errors import UsageError
from pixart.evaluation.prompt_sets.prompts import Prompt
from pixart.pipeline.prompts import check_text

MAX_BYTES = 64 * 2**20
NAMED = 5  # malformed lines that a message names
TEXT_NAMES = ("prompt", "prompts", "text", "caption")  # of a column or key, in this order; capitals do not matter
CATEGORY_NAMES = ("category", "tag")  # PartiPrompts and DrawBench; GenEval

# (line number, prompt or what is wrong with the line)
Lines = Iterator[tuple[int, Prompt | str]]


def read_path(path: Path) -> list[Prompt]:
    """The prompts of a file, by its ending, or of a folder of T2I-CompBench; raises as `read_prompts`."""
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        if not texts:
            raise UsageError(f"{path} is a folder without .txt files; give a prompt file, or a T2I-CompBench folder.")
        return [prompt for text in texts for prompt in read_path(text)]
    readers: dict[str, Callable[[str, Path], Lines]] = {
        ".txt": _plain,
        "": _plain,
        ".jsonl": _json_lines,
        ".tsv": lambda text, path: _table(text, path, "\t"),
        ".csv": lambda text, path: _table(text, path, ","),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path} is no prompt file: .txt, .jsonl, .tsv and .csv are read, not {path.suffix}.")
    prompts, bad = [], []
    for number, found in reader(_read(path), path):
        if isinstance(found, Prompt):
            wrong = _wrong_text(found.text)
            prompts.append(found)
        else:
            wrong = found
        if wrong:
            bad.append(f"line {number} {wrong}")
    if bad:
        more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        raise UsageError(f"{path}: {'; '.join(bad[:NAMED])}{more}. Mend or remove them.")
    if not prompts:
        raise UsageError(f"{path} holds no prompts; it is empty.")
    return prompts


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(f"{path} has {size:,} bytes; prompt files of up to {MAX_BYTES:,} are read.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"There is no prompt file {path}.") from None
    except OSError as error:
        raise UsageError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}: line {line} is not UTF-8 text; save the file as UTF-8.") from None


def _wrong_text(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character in it"
    try:
        check_text(text, "prompt")
    except UsageError as error:
        return f"cannot be used: {str(error)[:1].lower()}{str(error)[1:].rstrip('.')}"
    return None


def _plain(text: str, path: Path) -> Lines:
    """A prompt a line; blank lines are skipped. T2I-CompBench names its files color_val.txt, shape_train.txt, ..."""
    category = match[1] if (match := re.fullmatch(r"(.+)_(?:train|val)", path.stem)) else ""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, Prompt(line.strip(), path.stem, category)


def _json_lines(text: str, path: Path) -> Lines:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON ({getattr(error, 'msg', 'nested too deep')})"
            continue
        if isinstance(value, dict):
            yield number, _from_row(value, path)
        else:
            yield number, "is not a JSON object"


def _table(text: str, path: Path, separator: str) -> Lines:
    # A TSV file knows no quotation marks: those of PartiPrompts.tsv are part of its prompts.
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quoting)
    try:
        names = next((row for row in rows if any(cell.strip() for cell in row)), None)
        if names is None:
            return
        if _one_of(dict.fromkeys(names), TEXT_NAMES) is None:
            shown = ", ".join(repr(name) for name in names[:8])
            yield rows.line_num, f"has no column of prompts (Prompt, Prompts, text or caption) but {shown[:200]}"
            return
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                yield rows.line_num, f"has {len(row)} cells where the head has {len(names)}"
            else:
                yield rows.line_num, _from_row(dict(zip(names, row, strict=True)), path)
    except csv.Error as error:
        yield rows.line_num, f"cannot be read ({error})"


def _from_row(row: dict[str, Any], path: Path) -> Prompt | str:
    key = _one_of(row, TEXT_NAMES)
    if key is None:
        return "has no prompt"
    text = row[key]
    if not isinstance(text, str) or not text.strip():
        return f"has no text as its {key}" if isinstance(text, str) else f"has {text!r} as its {key}, not a text"
    named = _one_of(row, CATEGORY_NAMES)
    category = row[named] if named is not None and isinstance(row[named], str) else ""
    about = {name: value for name, value in row.items() if name not in (key, named)}
    return Prompt(text.strip(), path.stem, category.strip(), about)


def _one_of(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The key of `row` that is the first of `names` which is there."""
    folded = {key.strip().casefold(): key for key in row}
    return next((folded[name] for name in names if name in folded), None)
