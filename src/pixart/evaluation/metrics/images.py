"""A folder of images made by anyone, with the prompts and settings that they were made from where those are known."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pixart.config import shortened
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison import record
from pixart.pipeline.image_files import read_settings

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
# Of our own images' settings, what decides their metrics and does not name the model.
SAMPLING = (
    *("steps", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_channels", "null_text", "sampler"),
    *("width", "height", "seed"),
)
LAYOUTS = {"geneval": 4, "t2i-compbench": 10}  # of benchmarks: images for a prompt, as in the two papers
LONGEST = 200  # bytes of a file name's prompt; most systems take 255 with number and ending


@dataclass(frozen=True)
class Folder(Sequence):
    """Image files in the order of their names, each read when it is indexed, and a hash of their contents."""

    path: Path
    files: tuple[Path, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which):
        return [read(file) for file in self.files[which]] if isinstance(which, slice) else read(self.files[which])


def open_folder(path: Path, most: int | None = None) -> Folder:
    """All images in a folder and its subfolders, the first `most` by name. Raises UsageError where there are none."""
    if most is not None and most < 1:
        raise UsageError(f"--num is {most}; give 1 or more.")
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of images.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
    if not files or len(files) < (most or 0):
        raise UsageError(
            f"{path} holds {len(files):,} images ({', '.join(ENDINGS)}); at least {most or 1:,} are needed."
        )
    files = files[:most]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return Folder(path, tuple(files), digest.hexdigest())


def read(file: Path, size: int | None = None) -> Image.Image:
    """RGB on white; with `size` the middle square, brought to `size` pixels a side by Pillow's bicubic filter."""
    try:
        rgb = open_image(file.read_bytes()).image
    except (OSError, ImageProblem) as error:
        raise PixArtError(f"The image {file} cannot be read: {error}.") from None
    if size is None:
        return rgb
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def prompts_of(folder: Folder, given: Sequence[str] | None = None) -> list[str]:
    """One prompt for each image.

    `given` in the order of the images' names; else what our own images or their comparison hold, or the layout of
    GenEval (metadata.jsonl beside samples/) or T2I-CompBench ("PROMPT_000000.png"). Raises UsageError where there is
    none.
    """
    if given is not None:
        if len(given) != len(folder):
            raise UsageError(
                f"There are {len(given):,} prompts for the {len(folder):,} images in {folder.path}; give one for each, "
                "in the order of the images' names."
            )
        return list(given)
    if plan := _comparison_of(folder.path):
        return [plan.rows[int(file.stem.split("-")[0])].text for file in folder.files]
    return [_prompt(file) for file in folder.files]


def sampling_settings(folder: Folder) -> dict[str, Any]:
    """Steps, guidance, sampler, size and seeds of our own images, as the files or their comparison have them.

    A value that differs between images is a list; None stands for what is not known.
    """
    if plan := _comparison_of(folder.path):
        place = folder.path.resolve()
        used = record.outcome(place.parents[1], place.name).used.settings
        settings = [used | {"seed": seed} for seed in plan.seeds] if used else [{}]
    else:
        try:
            settings = [read_settings(file) for file in folder.files]
        except PixArtError:
            settings = [{}]
    found: dict[str, Any] = {}
    for name in SAMPLING:
        values = [json.loads(value) for value in sorted({json.dumps(one.get(name)) for one in settings})]
        found[name] = values if len(values) > 1 else values[0]
    if seeds := {one["seed"] for one in settings if isinstance(one.get("seed"), int)}:
        found["seed"] = f"{min(seeds)} to {max(seeds)}, {len(seeds)} of them"
    return found


def _comparison_of(folder: Path) -> record.Plan | None:
    """The plan of the comparison that made this folder, COMPARISON/models/NAME; None for other folders."""
    models = folder.resolve().parent
    there = models.name == "models" and (models.parent / record.PLAN).is_file()
    return record.read(models.parent) if there else None


def _prompt(file: Path) -> str:
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
    raise UsageError(f"{file} holds no prompt, and its name is none either; give --prompts, a line for each image.")


def places(layout: str, dest: Path, prompts: Sequence[str], images: int) -> Iterator[tuple[int, int, Path]]:
    """(prompt, image of it, file) for every image. Raises UsageError for prompts that cannot be file names.

    geneval: DEST/00000/samples/0000.png (evaluation/evaluate_images.py of djghosh13/geneval). t2i-compbench:
    DEST/samples/PROMPT_000000.png, its number counting over all images (Karine-Huang/T2I-CompBench, README).
    """
    if layout == "t2i-compbench":
        wrong = next((p for p in prompts if "/" in p or "\0" in p or len(p.encode()) > LONGEST or not p.strip()), None)
        if wrong is not None:
            raise UsageError(f'T2I-CompBench has the prompt as file name, which "{shortened(wrong)}" cannot be.')
    for number, prompt in enumerate(prompts):
        for image in range(images):
            if layout == "geneval":
                yield number, image, dest / f"{number:05}" / "samples" / f"{image:04}.png"
            else:
                yield number, image, dest / "samples" / f"{prompt}_{number * images + image:06}.png"
