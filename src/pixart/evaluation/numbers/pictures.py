"""A folder of pictures made by anyone, with the prompts they were drawn from where those are to be found."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.plan import PLAN, Plan
from pixart.evaluation.comparison.plan import read as read_plan
from pixart.evaluation.judge import on_white

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Folder:
    """Picture files in the order of their names, and a hash of their contents: what a figure was measured on."""

    path: Path
    files: tuple[Path, ...]
    sha256: str


def open_folder(path: Path, most: int | None = None) -> Folder:
    """All pictures in a folder and its subfolders, the first `most` by name. Raises UsageError where there are none."""
    if most is not None and most < 1:
        raise UsageError(f"--num is {most}; give 1 or more.")
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of pictures.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
    if not files:
        raise UsageError(f"{path} holds no pictures ({', '.join(ENDINGS)}).")
    if most is not None and most > len(files):
        raise UsageError(f"{path} holds {len(files):,} pictures, fewer than the {most:,} that are asked for.")
    files = files[:most]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return Folder(path, tuple(files), digest.hexdigest())


def read(file: Path, size: int | None = None) -> Image.Image:
    """RGB on white; with `size` the middle square, brought to `size` pixels a side by PIL's bicubic filter."""
    try:
        with Image.open(file) as image:
            rgb = on_white(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise PixArtError(f"The picture {file} cannot be read: {error}.") from None
    if size is None:
        return rgb
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


class Pictures(Sequence):
    """The pictures of a folder, read when they are asked for: all of them may not fit into memory."""

    def __init__(self, folder: Folder):
        self.files = folder.files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which):
        return [read(file) for file in self.files[which]] if isinstance(which, slice) else read(self.files[which])


def prompts_of(folder: Folder, given: Sequence[str] | None = None) -> list[str]:
    """One prompt for each picture.

    `given` in the order of the pictures' names; else what our own pictures or their comparison hold, or the layout of
    GenEval (metadata.jsonl beside samples/) or T2I-CompBench ("PROMPT_000000.png"). Raises UsageError where there is
    none.
    """
    if given is not None:
        if len(given) != len(folder.files):
            raise UsageError(
                f"There are {len(given):,} prompts for the {len(folder.files):,} pictures in {folder.path}; give one "
                "for each, in the order of the pictures' names."
            )
        return list(given)
    plan = comparison_of(folder.path)
    if plan is not None:
        return [plan.rows[int(file.stem.split("-")[0])].text for file in folder.files]
    return [_prompt(file) for file in folder.files]


def comparison_of(folder: Path) -> Plan | None:
    """The plan of the comparison whose model drew this folder, COMPARISON/models/NAME; None for other folders."""
    home = folder.resolve().parent
    return read_plan(home.parent) if home.name == "models" and (home.parent / PLAN).is_file() else None


def _prompt(file: Path) -> str:
    from pixart.pipeline.image_files import read_settings

    try:
        return str(read_settings(file)["resolved_prompt"])
    except (PixArtError, KeyError):
        pass
    beside = file.parent.parent / "metadata.jsonl"
    if file.parent.name == "samples" and beside.is_file():
        try:
            return str(json.loads(beside.read_text(encoding="utf-8").splitlines()[0])["prompt"])
        except (OSError, ValueError, KeyError, IndexError):
            raise UsageError(f"{beside} has no prompt; it should be a line of GenEval's evaluation_metadata.") from None
    words, _, number = file.stem.rpartition("_")
    if words and number.isdigit():
        return words
    raise UsageError(f"{file} holds no prompt, and its name is none either; give --prompts, a line for each picture.")
