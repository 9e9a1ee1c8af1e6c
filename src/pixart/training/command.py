"""`pixart train RECIPE ...` and `pixart export RUN DEST`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.config import run_command, shown
from pixart.errors import PixArtError, UsageError

TRACK, TRACK_KEY = "--track", "--tracking.to"  # the short way and the key of the recipe
USAGE = """usage: pixart train RECIPE ... [--dotted.key VALUE ...] [--dry-run] [--track wandb|trackio|tensorboard]

Train by a recipe, a TOML file or one that comes with the package; several run one after the other. Stopped or killed,
the same command goes on where it was. `pixart train RECIPE --help` lists what a recipe sets; --dry-run shows it
resolved, with an estimate. On several GPUs: torchrun --nproc-per-node 8 -m pixart train RECIPE.

The recipes:
  """


def run(arguments: list[str]) -> int:
    """Everything after `pixart train`. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        from pixart.training.recipe import names

        print(USAGE + "\n  ".join(names()), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    recipes, flags = arguments[:count], arguments[count:]
    if not recipes:
        raise UsageError("Name the recipe before the flags: pixart train RECIPE --dotted.key VALUE.")
    dry_run = "--dry-run" in flags
    flags = [word for word in flags if word != "--dry-run"]
    flags = [TRACK_KEY + word.removeprefix(TRACK) if word.split("=")[0] == TRACK else word for word in flags]
    from pixart.training.recipe import load

    if len(recipes) > 1 and any(word.split("=")[0] == "--output" for word in flags):
        raise UsageError("--output is the folder of one run, and there are several recipes; leave it out.")
    try:
        loaded = [load(name, flags) for name in recipes]
    except SystemExit as stop:  # tyro has printed help, or what is wrong with a flag
        return int(stop.code or 0)
    if dry_run:
        return _dry_run(recipes, loaded)
    return train_all(loaded)


def train_all(loaded: list) -> int:
    """Train tasks with their recipes one after the other; what is finished is passed over."""
    from pixart.training.distribution import joined
    from pixart.training.run import train

    loops = [recipe.loop for _, recipe in loaded]
    if len({(loop.parallel, loop.device) for loop in loops}) > 1:
        raise UsageError("Recipes that run one after the other need the same loop.parallel and loop.device.")
    # Once for all: processes cannot leave each other and meet again at the same address.
    with joined(loops[0].parallel, loops[0].device) as world:
        for task, recipe in loaded:
            result = train(task, recipe, world=world)
            if world.main:
                print(result, flush=True)
    return 0


def _dry_run(names: list[str], loaded: list) -> int:
    """The resolved recipes on stdout as JSON; an estimate, or what is missing for one, on stderr."""
    import torch

    from pixart.training.cost import estimate
    from pixart.training.distribution import alone
    from pixart.training.recipe import to_json

    for name, (task, recipe) in zip(names, loaded, strict=True):
        print(json.dumps(to_json(task, recipe), indent=2))
        try:
            lines = estimate(task.build(recipe, torch.device("cpu")), recipe, alone("cpu"))
        except PixArtError as error:
            lines = [f"{name} cannot be trained yet: {error}"]
        print("\n".join(lines), file=sys.stderr)
    return 0


@dataclass
class Export:
    """Write the result of a training run from any of its checkpoints and averages."""

    run: Annotated[Path, arg(metavar="RUN")]
    """Run folder."""
    dest: Annotated[Path, arg(metavar="DEST")]
    """New folder to write into."""
    step: Annotated[int | None, shown("N", "the newest")] = None
    """Which checkpoint."""
    average: Annotated[str, arg(metavar="NAME")] = "ema"
    """Which average: ema is the first of the recipe, the others are called as their files in the checkpoint."""


def run_export(arguments: list[str]) -> int:
    """Everything after `pixart export`. Returns the exit code."""

    def act(options: Export) -> int:
        from pixart.training.run import export

        print(export(options.run, options.dest, step=options.step, average=options.average))
        return 0

    return run_command(Export, arguments, "pixart export", act)
