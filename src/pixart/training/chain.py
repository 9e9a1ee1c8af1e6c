"""Chains: a TOML file that lists recipes in order, each of which starts from what an earlier one made."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pixart.errors import UsageError
from pixart.training import overrides
from pixart.training import recipe as recipes
from pixart.training.recipe import Recipe

LINKS = ("init", "autoencoder", "teacher")  # the keys of a recipe that may point into an earlier run


@dataclass(frozen=True)
class Stage:
    """One recipe of a chain, or the only one: `name` as `pixart train` takes it."""

    name: str
    recipe: Recipe

    @property
    def short(self) -> str:
        """What its own overrides begin with: --stage2.loop.seed 1."""
        return Path(self.name).stem


def resolve(name: str, arguments: list[str]) -> list[Stage]:
    """The recipe of that name, or those of the chain, in order, with the overrides.

    An override applies to every stage that has such a key; one that begins with the name of a stage, to that stage.
    `--run FOLDER` puts the runs of a chain into FOLDER, one folder a stage, and links them there.

    Raises:
        UsageError: no such recipe or key, or a value that cannot be.
    """
    given = overrides.parse(arguments)
    listed = recipes.chain(name)
    if listed is None:
        recipe = recipes.load(name)
        changed, used = overrides.apply(recipe, given, name)
        overrides.refuse_unknown(given, used, overrides.flags(recipe), name)
        return [Stage(name, changed)]
    root = [o for o in given if o.path == ("run",)]
    given = [o for o in given if o.path != ("run",)]
    if any(len(o.values) != 1 for o in root):
        raise UsageError("--run takes one folder, for the runs of the whole chain.")
    if any(o.path == ("init",) for o in given):
        first = Path(listed[0]).stem.replace("_", "-")
        raise UsageError(f"In a chain every stage starts from another run; say which stage: --{first}.init FOLDER.")
    stages, used, known = [Stage(each, recipes.load(each)) for each in listed], set(), ["--run"]
    if root:
        stages = _moved(stages, Path(root[-1].values[0]))
    changed = []
    for stage in stages:
        recipe, applied = overrides.apply(stage.recipe, _for_stage(given, stage.short), stage.name)
        used |= applied
        own = overrides.flags(stage.recipe)
        known += own + [f"--{stage.short.replace('_', '-')}.{flag[2:]}" for flag in own]
        changed.append(Stage(stage.name, recipe))
    overrides.refuse_unknown(given, used, known, name)
    return changed


def _for_stage(given: list[overrides.Override], stage: str) -> list[overrides.Override]:
    """The overrides as one stage sees them; those that begin with its name count more."""
    mine = [o for o in given if len(o.path) > 1 and o.path[0].replace("-", "_") == stage]
    return [o for o in given if o not in mine] + [dataclasses.replace(o, path=o.path[1:]) for o in mine]


def _moved(stages: list[Stage], root: Path) -> list[Stage]:
    """The same chain with its runs in `root`, and with everything that pointed into the old runs pointing there."""
    places = {stage.recipe.run: root / stage.short for stage in stages}
    moved = []
    for stage in stages:
        changes: dict[str, Path] = {"run": places[stage.recipe.run]}
        for link in LINKS:
            path = getattr(stage.recipe, link, None)
            if not isinstance(path, Path):
                continue
            for old, new in places.items():
                if path.is_relative_to(old):
                    changes[link] = new / path.relative_to(old)
        moved.append(Stage(stage.name, dataclasses.replace(stage.recipe, **changes)))
    return moved
