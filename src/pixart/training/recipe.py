"""Recipes: a TOML file with the settings of a run and a table of its task's own.

task = "text_to_image"
output = "runs/mine"

[text_to_image]        # fields of tasks/text_to_image.py: TextToImage
init = "PixArt-alpha/PixArt-XL-2-512x512"

[[phases]]             # and loop, optimizer, ema, trainable, samples, tracking: fields of `Recipe`
steps = 1000
batch_size = 16
features = "runs/features-512"
"""

import dataclasses
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pixart.config import plain, read_toml, structure, unknown, with_flags
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object
from pixart.tracking.tracker import TrackingConfig
from pixart.training.batches import Phase
from pixart.training.ema import EmaConfig
from pixart.training.loop import MAY_CHANGE, LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.samples import SamplesConfig
from pixart.training.trainable import Trainable

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIG = "config.json"
ADAPTER = "adapter.safetensors"  # what a run of an adapter makes
# Where each task is.
TASKS = {
    "autoencoder": "Autoencoder",
    "class_dit": "ClassDiT",
    "text_to_image": "TextToImage",
    "distillation": "Distillation",
    "decoder": "DecoderTuning",
    "controlnet": "ControlNetTraining",
    "consistency": "Consistency",
}
WATCHED = ("samples", "tracking")  # tables that do not change what is trained


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run that do not depend on its task. `output` is the run folder."""

    output: Path
    phases: tuple[Phase, ...]
    loop: LoopConfig = field(default_factory=LoopConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    trainable: Trainable = field(default_factory=Trainable)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self):
        if not self.phases:
            raise UsageError("A recipe needs at least one [[phases]] table: how many steps on which images.")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


def task_class(name: str) -> type:
    """The class of a task by its name in a recipe. Raises UsageError for another name."""
    if name not in TASKS:
        raise UsageError(unknown("task", name, TASKS))
    return getattr(import_module(f"pixart.training.tasks.{name}"), TASKS[name])


def load(name: str, flags: list[str] | None = None) -> tuple[Any, Recipe]:
    """A task and its recipe, by a name in the package (`paper/stage1_pixels_256`) or the path of a TOML file.

    `flags` change it: `--loop.seed 3`, `--phases.0.steps 10`, `--text_to_image.caption-dropout 0.2`.

    Raises:
        UsageError: no such recipe, an unknown task or key, or a value of the wrong type. SystemExit: help was printed.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise UsageError(unknown("recipe or .toml file", name, names()))
    file = _from_table(read_toml(path), path.name)
    if flags:
        # tyro shows and reads nested settings by their type, so it sees the file as one dataclass.
        file = with_flags(file, flags, f"pixart train {name}")
    return _task_of(file), file


def names() -> list[str]:
    """The recipes that come with the package, as `pixart train` takes them."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.toml"))


def to_json(task: Any, recipe: Recipe) -> dict[str, Any]:
    """What `config.json` in a run folder holds; a task that is not the package's own is named by its class."""
    own = next((name for name, known in TASKS.items() if type(task).__name__ == known), None)
    name = own or type(task).__name__
    common = {each.name: plain(getattr(recipe, each.name)) for each in dataclasses.fields(Recipe)}
    return {"task": name, **common, name: plain(task) if dataclasses.is_dataclass(task) else {}}


def from_run(run: Path) -> tuple[Any, Recipe]:
    """The task and recipe that a run folder was made with.

    Raises:
        PixArtError: the folder has no readable config.json, or its task is not one of the package.
    """
    try:
        file = _from_table(read_json_object(run / CONFIG), str(run / CONFIG))
    except PixArtError as error:
        raise PixArtError(f"{run} is not the run folder of a recipe: {error}") from None
    return _task_of(file), dataclasses.replace(file, output=run)


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Keys in which two `to_json` differ so that they are other trainings, and changes that one may make on the way.

    Where things lie does not count, since folders are moved and mounted elsewhere; what is in them is compared by the
    fingerprint of the data and by the checksums of checkpoints.
    """
    changed = [
        f"loop.{key} {wanted['loop'].get(key)} instead of {there['loop'].get(key)}"
        for key in MAY_CHANGE
        if there.get("loop", {}).get(key) != wanted["loop"].get(key)
    ]
    skipped = ("output", *WATCHED)
    left, right = ({k: _without_places(v) for k, v in each.items() if k not in skipped} for each in (there, wanted))
    for each in (left, right):
        each["loop"] = {key: value for key, value in each.get("loop", {}).items() if key not in MAY_CHANGE}
    return [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)], changed


def _without_places(value: Any) -> Any:
    """Paths by their last name."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else value


def _from_table(table: dict[str, Any], where: str) -> Any:
    """The dataclass of a recipe file: `Recipe`, the task's name, and the task under it."""
    name = table.get("task")
    if not isinstance(name, str):
        raise UsageError(f'{where} names no task; begin it with task = "NAME", one of {", ".join(TASKS)}.')
    own = [("task", str), (name, task_class(name))]
    kind = dataclasses.make_dataclass("RecipeFile", own, bases=(Recipe,), frozen=True, kw_only=True)
    return structure({name: {}, **table}, kind, where)


def _task_of(file: Any) -> Any:
    return getattr(file, file.task)
