"""The folder of a comparison: its plan, and of each model a line per image and what sampled them.

comparison.json                     prompts, seeds, models with their settings
models/NAME/0007-3.png              prompt 7 (from 0), seed 3
models/NAME/images.jsonl            an `Image` a line, written after its file
models/NAME/sampled.json            a `Sampled`
index.html                          the page
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pixart.config import plain, structure
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import Model
from pixart.files import file_hash, parse_json, read_json_object, replacing, write_json

PLAN = "comparison.json"
IMAGES, SAMPLED = "images.jsonl", "sampled.json"
LOCK = ".lock"
FORMAT = 4
# Settings that change how a model is loaded and no pixel: where memory ran out, a comparison may go on with others.
LOADING = ("staged", "offload", "text_states")


@dataclass(frozen=True)
class Row:
    """A prompt, the set or file that it is from, and its category there."""

    text: str
    set: str
    category: str


@dataclass(frozen=True, order=True)
class Cell:
    """One image of a model: the number of its row, and its seed."""

    row: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.row:04d}-{self.seed}.png"


@dataclass(frozen=True)
class Plan:
    """Everything that decides the images. `id` names it: votes belong to one plan."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    models: tuple[Model, ...]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(row, seed) for row in range(len(self.rows)) for seed in self.seeds]

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides the pixels: not the kind of loading, nor how models are named."""
        models = []
        for model in self.models:
            settings = {k: v for k, v in model.settings.given().items() if k not in LOADING}
            models.append({"folder": model.folder, "source": model.source, "settings": settings})
        return {"prompts": [plain(row) for row in self.rows], "seeds": list(self.seeds), "models": models}


@dataclass(frozen=True)
class Image:
    """An image whose file is written. `warm`: not of the first batch of its process."""

    row: int
    seed: int
    width: int
    height: int
    sha256: str  # of the file
    seconds: float | None = None  # from prompt to pixels, of its share of a batch; None for images made elsewhere
    warm: bool = True

    @property
    def cell(self) -> Cell:
        return Cell(self.row, self.seed)


@dataclass(frozen=True)
class Sampled:
    """What the newest process that sampled for a model has come to, or the newest look at images made elsewhere.

    `peak_bytes` is the most memory that the process had, libraries included; `device_bytes` the most on a GPU.
    `settings` are those of the images, the model's own values filled in; `weights` names what made them.
    """

    ended: Literal["done", "stopped", "memory", "failed"] = "stopped"
    reason: str = ""
    load_seconds: float | None = None
    peak_bytes: int | None = None
    device_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """All that is known of one model of a comparison; `folder` has its images."""

    folder: Path
    images: dict[Cell, Image]
    sampled: Sampled

    def median_seconds(self, warm: bool) -> float | None:
        """Of an image: of those of the first batch of a process, or of all others."""
        known = [i.seconds for i in self.images.values() if i.warm == warm and i.seconds is not None]
        return median(known) if known else None

    @property
    def seconds(self) -> float | None:
        return self.median_seconds(True) or self.median_seconds(False)


def check_free(plan: Plan, folder: Path) -> None:
    """Whether `plan` can begin or go on in `folder`; writes nothing.

    Raises:
        UsageError: the folder holds another comparison (names what differs) or something else.
        PixArtError: its plan cannot be read.
    """
    if (folder / PLAN).is_file():
        there, wanted = read(folder).deciding, plan.deciding
        if differs := [name for name in wanted if there[name] != wanted[name]]:
            raise UsageError(f"{folder} holds another comparison, with other {differs[0]}; give another --output.")
    elif folder.is_file():
        raise UsageError(f"{folder} is a file; give a folder with --output.")
    elif folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise UsageError(f"{folder} is in use and holds no comparison; give a new folder with --output.")


def begin(plan: Plan, folder: Path) -> None:
    """Make `folder` the place of this plan, or go on with it; raises as `check_free`."""
    check_free(plan, folder)
    write_json(folder / PLAN, {"format": FORMAT, "id": plan.id, **plain(plan)})


def read(folder: Path) -> Plan:
    """The plan of a comparison's folder. Raises PixArtError where there is none or it is damaged."""
    path = folder / PLAN
    value = read_json_object(path)
    if value.pop("format", None) != FORMAT:
        raise PixArtError(f"{path} has another format than {FORMAT}, which this version reads; compare again.")
    value.pop("id", None)
    try:
        return structure(value, Plan, str(path))
    except UsageError as error:
        raise PixArtError(str(error)) from None


def outcome(folder: Path, name: str) -> Outcome:
    """What there is of the model with the folder name `name`.

    An image counts only if its line is complete and its file has the bytes that the line names; so a kill at any time
    costs the images that were being made, and one that somebody removed or changed is made again.
    """
    own = folder / "models" / name
    images: dict[Cell, Image] = {}
    lines = (own / IMAGES).read_bytes().splitlines() if (own / IMAGES).is_file() else []
    for line in lines:
        try:
            image = structure(parse_json(line, IMAGES), Image, IMAGES)
            if file_hash(own / image.cell.file) == image.sha256:
                images[image.cell] = image
        except (PixArtError, OSError):
            continue
    return Outcome(own, images, read_sampled(own))


def outcomes(plan: Plan, folder: Path) -> list[Outcome]:
    return [outcome(folder, model.folder) for model in plan.models]


def read_sampled(own: Path) -> Sampled:
    path = own / SAMPLED
    return structure(read_json_object(path), Sampled, str(path)) if path.is_file() else Sampled()


def save_sampled(own: Path, sampled: Sampled) -> None:
    write_json(own / SAMPLED, plain(sampled))


def add_image(own: Path, cell: Cell, image: Any, **about: Any) -> Image:
    """Write a PIL image and then its line."""
    with replacing(own / cell.file) as partial:
        image.save(partial, format="PNG")
    entry = Image(cell.row, cell.seed, image.width, image.height, file_hash(own / cell.file), **about)
    with (own / IMAGES).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that a kill cut short
                file.write(b"\n")
        file.write(json.dumps(plain(entry)).encode() + b"\n")
    return entry
