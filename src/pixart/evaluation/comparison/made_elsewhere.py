"""A folder of pictures made elsewhere: which of them belongs to which prompt, by file name or number."""

import re
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from pixart.data.images import EXTENSIONS, open_image
from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.plan import Cell, Plan
from pixart.evaluation.comparison.results import Session, add, describe, next_session, save_session
from pixart.pipeline.image_files import slug

NAMED = 4  # mismatches that a message names


def match(source: Path, plan: Plan) -> tuple[dict[Cell, Path], list[str]]:
    """The picture of each cell that has one, and a sentence for each kind of mismatch.

    A picture is named after its prompt (as `pixart generate` names it, or the prompt itself, as T2I-CompBench does) or
    by the prompt's number, from 0, or from 1 where no picture has the number 0 and one has that of the last prompt
    from 1; then, where there are several seeds, by its seed: 7-0.png, a-red-fox-0.png. GenEval's folders
    (00007/samples/0000.png) are read too; there the second number counts the seeds.

    Raises:
        UsageError: two pictures for one place, or none for any.
    """
    pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    pictures = [path for path in pictures if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    texts: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(plan.rows):
        for name in {row.text.casefold(), slug(row.text)}:
            texts[name].append(number)
    places = {path: _place(path, source, texts) for path in pictures}
    from_one, note = _counts_from_one([row for row, _, by_number in places.values() if by_number], len(plan.rows))
    found: dict[Cell, Path] = {}
    strangers: list[Path] = []
    for path, (row, seed, by_number) in places.items():
        cell = _cell(row - from_one if by_number else row, seed, plan, counted="samples" in path.parts)
        if cell is None:
            strangers.append(path)
        elif cell in found:
            raise UsageError(
                f"{source}: both {found[cell].relative_to(source)} and {path.relative_to(source)} are pictures of "
                f"prompt {cell.row} with seed {cell.seed}; keep one of them."
            )
        else:
            found[cell] = path
    if not found:
        raise UsageError(
            f"{source}: none of its {len(pictures):,} pictures is named after a prompt or its number, such as "
            f"0000-0.png or {slug(plan.rows[0].text)}-{plan.seeds[0]}.png."
        )
    notes = [note] if note else []
    if strangers:
        names = [str(path.relative_to(source)) for path in strangers]
        notes.append(f"{_count(names, 'picture')} of {source} belong to no prompt or seed: {_some(names)}.")
    missing = [f"{cell.row} ({plan.rows[cell.row].text[:40]})" for cell in plan.cells if cell not in found]
    if missing:
        notes.append(f"{source} has no picture for {_count(missing, 'prompt')}: {_some(missing)}.")
    return found, notes


def take(found: dict[Cell, Path], own: Path, *, have: set[Cell], notes: list[str]) -> None:
    """Copy the pictures that `own`, the model's folder, does not have yet, as RGB in PNG on white.

    What `notes` say goes into the record of this look. Raises PixArtError for a picture that cannot be opened; those
    before it are kept.
    """
    own.mkdir(parents=True, exist_ok=True)
    fresh = len(found.keys() - have)
    for cell, path in found.items():
        if cell in have:
            continue
        try:
            image = open_image(path.read_bytes()).image
            partial = own / f".{cell.file}.partial"
            image.save(partial, format="PNG")
            partial.replace(own / cell.file)
            add(own, describe(own, cell, seconds=None, warm=True))
        except ImageProblem as problem:
            raise PixArtError(f"{path} cannot be used: {problem}") from None
        except OSError as error:
            raise PixArtError(f"{path} cannot be copied to {own}: {error.strerror or error}.") from None
    began = datetime.now(UTC).isoformat(timespec="seconds")
    if fresh:
        save_session(next_session(own), Session(began, "done", " ".join(notes), fresh))


def _place(path: Path, source: Path, texts: dict[str, list[int]]) -> tuple[int, int | None, bool]:
    """(row or -1, seed or None, whether by number) as the name says it."""
    parts = path.relative_to(source).parts
    if len(parts) == 3 and parts[1] == "samples" and parts[0].isdecimal() and path.stem.isdecimal():
        return int(parts[0]), int(path.stem), False
    stem = path.stem.casefold()
    if stem in texts:
        return texts[stem][0], None, False
    # The last number is the seed; a prompt may end in one too, so the whole name goes first.
    named = re.fullmatch(r"(.+)[-_](\d{1,10})", stem)
    if named and named[1] in texts:
        return texts[named[1]][0], int(named[2]), False
    numbers = re.fullmatch(r"(\d{1,9})(?:[-_](\d{1,10}))?", stem)
    if numbers:
        return int(numbers[1]), int(numbers[2]) if numbers[2] else None, True
    return -1, None, False


def _counts_from_one(numbers: list[int], count: int) -> tuple[int, str | None]:
    if numbers and 0 not in numbers and max(numbers) == count:
        return 1, f"The pictures are numbered from 1 to {count}, so picture 1 is that of the first prompt."
    return 0, None


def _cell(row: int, seed: int | None, plan: Plan, *, counted: bool) -> Cell | None:
    """The place, if the plan has it. A name without a seed means the first; GenEval's numbers count the seeds."""
    if not 0 <= row < len(plan.rows):
        return None
    if seed is None:
        return Cell(row, plan.seeds[0]) if len(plan.seeds) == 1 else None
    if counted:
        return Cell(row, plan.seeds[seed]) if seed < len(plan.seeds) else None
    return Cell(row, seed) if seed in plan.seeds else None


def _count(items: list[str], noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (" ..." if len(items) > NAMED else "")
