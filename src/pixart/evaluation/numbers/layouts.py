"""Pictures in the folders that two benchmarks' own scripts read: GenEval and T2I-CompBench."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError, UsageError

LAYOUTS = ("geneval", "t2i-compbench")
USUAL = {"geneval": 4, "t2i-compbench": 10}  # pictures for a prompt, as the two papers draw
LONGEST = 200  # bytes of a file name's prompt; most systems take 255 with number and ending


@dataclass(frozen=True)
class Place:
    """Where picture `image` of prompt `prompt` goes."""

    prompt: int
    image: int
    path: Path


def geneval_lines(path: Path) -> list[dict]:
    """The lines of GenEval's evaluation_metadata.jsonl. Raises UsageError, naming the line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["prompt"], str):
                raise TypeError("its prompt is no text")
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}, line {number} is no line of GenEval's metadata ({error}).") from None
        found.append(row)
    if not found:
        raise UsageError(f"{path} holds no prompts.")
    return found


def places(layout: str, dest: Path, prompts: Sequence[str], images: int) -> Iterator[Place]:
    """Where every picture goes. Raises UsageError for a layout that is none, or prompts that cannot be file names.

    geneval: DEST/00000/samples/0000.png (evaluation/evaluate_images.py of djghosh13/geneval). t2i-compbench:
    DEST/samples/PROMPT_000000.png, its number counting over all pictures (Karine-Huang/T2I-CompBench, README).
    """
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}; it is {' or '.join(LAYOUTS)}.")
    if layout == "t2i-compbench":
        wrong = next((p for p in prompts if "/" in p or "\0" in p or len(p.encode()) > LONGEST or not p.strip()), None)
        if wrong is not None:
            raise UsageError(f'The layout of T2I-CompBench has the prompt as file name, which "{wrong}" cannot be.')
    for number in range(len(prompts)):
        for image in range(images):
            if layout == "geneval":
                path = dest / f"{number:05}" / "samples" / f"{image:04}.png"
            else:
                path = dest / "samples" / f"{prompts[number]}_{number * images + image:06}.png"
            yield Place(number, image, path)


def refuse_other(path: Path, expected: dict[str, Any]) -> None:
    """UsageError where the picture at `path` was not drawn with the settings that are `expected`, by its own record."""
    from pixart.pipeline.image_files import read_settings

    try:
        told = read_settings(path)
    except PixArtError:
        raise UsageError(f"{path} is there already, and pixart did not draw it; give another folder.") from None
    for name, now in expected.items():
        if told.get(name) != now:
            said = "other weights" if name == "weights" else f"{name.replace('_', ' ')} {told.get(name)}, not {now}"
            raise UsageError(f"{path} was drawn with {said}; give another folder.")


def write_metadata(dest: Path, rows: Sequence[dict]) -> None:
    """GenEval's metadata.jsonl beside each prompt's pictures: its line of the prompt file."""
    for number, row in enumerate(rows):
        folder = dest / f"{number:05}"
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        except OSError as error:
            raise PixArtError(f"{folder} cannot be written: {error.strerror or error}.") from None
