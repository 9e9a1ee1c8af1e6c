"""`read_prompts`: the one door, for the name of a set and for a file."""

import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pixart.errors import UsageError

# Our own words; the sizes of the first four are those of the article's tables (50, 33, 20, and 5 subjects in 5 styles).
SETS = {
    "general": "50 prompts of many kinds: animals, people, places, things",
    "more": "33 more: paragraphs, impossible things, light, single words",
    "alignment": "20 that can be seen to be met or not: colour, shape, texture, spatial, counting, complex",
    "styles": "5 subjects in 5 styles",
    "emoji": "83 for the shipped model: concepts, skin tones and colours that it knows, in its seven styles",
    "composition": "224 for the shipped model: what its data never shows together, such as a blue apple",
}


@dataclass(frozen=True)
class Prompt:
    """A text to draw, the set or file that it is from, and its category there ("" where it has none).

    `about` is what else its line says, by the names used there: GenEval's `include`, PartiPrompts' `Challenge`; in the
    set "composition" what must be seen: `object`, `colour`, `style`, `skin_tone`.
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
        UsageError: there is no such set or file, it is empty, or lines of it are malformed; names them by number.
    """
    from pixart.evaluation.prompt_sets import emoji
    from pixart.evaluation.prompt_sets.benchmark_files import read_path

    name = str(name_or_path)
    match name:
        case "emoji":
            return emoji.known()
        case "composition":
            return emoji.unseen()
        case _ if name in SETS:
            return _shipped(name)
    path = Path(name_or_path)
    if not re.search(r"[./\\]", name) and not path.exists():
        from pixart.config import unknown

        raise UsageError(unknown("prompt set or file", name, SETS))
    return read_path(path)


def _shipped(name: str) -> list[Prompt]:
    """A set of the package: prompts a line, under [category] headings."""
    prompts, category = [], ""
    for line in files("pixart.evaluation.prompt_sets").joinpath(f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            category = line.strip("[]")
        elif line and not line.startswith("#"):
            prompts.append(Prompt(line, name, category))
    return prompts
