"""`pixart ema RUN`: which length of the moving average is the best, and a model folder with the chosen one."""

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pixart.errors import PixArtError, UsageError


@dataclass(frozen=True)
class ChooseEma:
    """Compare the moving averages that a run has kept, or write the result of the run with another of them.

    Without --dest it prints the held-out figure of each, for a run with loop.ema_decays.
    """

    run: Path
    """The folder of the run."""
    decay: float | None = None
    """The average to write, by its decay."""
    dest: Path | None = None
    """A new folder: the model folder, or the autoencoder, with that average."""


def run(given: ChooseEma) -> int:
    """Print a line per average (decay, figures), or write `dest` and print its path. Returns the exit code.

    Raises:
        UsageError: a decay that the run has not kept; a destination without a decay; a folder that is there already.
        PixArtError: no run, or a damaged one.
    """
    from pixart.training import recipe as recipes

    recipe = recipes.from_run(given.run)
    decays = (recipe.loop.ema_decay, *recipe.loop.ema_decays)
    shown = ", ".join(f"{decay:g}" for decay in decays)
    if given.decay is not None and given.decay not in decays:
        raise UsageError(f"{given.run} has kept the averages {shown}, not {given.decay:g}. Give one of these.")
    if (given.dest is None) != (given.decay is None):
        raise UsageError("Give --decay and --dest together, or neither to compare the averages.")
    if given.dest is not None and given.dest.exists():
        raise UsageError(f"{given.dest} is there already. Give a new folder.")
    if given.dest is not None and isinstance(recipe, recipes.ClassRecipe):
        raise UsageError(
            f"{given.run} is a run of stage 1, which has no model folder. Choose in a run of a text stage."
        )
    if given.dest is None or given.decay is None:
        for decay, figures in compare(given.run).items():
            print(f"{decay:g}  " + "  ".join(f"{name} {value:.5f}" for name, value in figures.items()))
    else:
        print(write(given.run, given.decay, given.dest))
    return 0


def compare(run: Path) -> dict[float, dict[str, float]]:
    """The held-out figures of each average in the newest checkpoint of `run`, by decay.

    Raises:
        PixArtError: the run has no checkpoint, or it is damaged, or its data is gone.
    """
    from pixart.training.ema import file_of

    recipe, stage, saved = _open(run, run)
    figures = {}
    for decay in (recipe.loop.ema_decay, *recipe.loop.ema_decays):
        stage.model.load_state_dict(saved.read(file_of(decay, first=decay == recipe.loop.ema_decay)))
        figures[decay] = stage.evaluate(stage.model, saved.step)
    return figures


def write(run: Path, decay: float, dest: Path) -> Path:
    """Write what the run has made, with the average of `decay`, as the new folder `dest`; give its path.

    Raises:
        PixArtError: as in `compare`; or `dest` cannot be written.
    """
    from pixart.training.ema import file_of

    partial = dest.with_name(f".{dest.name}.partial")
    recipe, stage, saved = _open(run, partial)
    stage.model.load_state_dict(saved.read(file_of(decay, first=decay == recipe.loop.ema_decay)))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stage.finish(stage.model).rename(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dest


def _open(run: Path, result: Path):
    """Recipe and stage of a run, with results going to `result`, and its newest checkpoint."""
    from pixart.training import checkpoint
    from pixart.training.recipe import ClassRecipe, TextRecipe, from_run
    from pixart.training.stages import build

    recipe, saved = from_run(run), checkpoint.newest(run)
    if saved is None:
        raise PixArtError(f"{run} has no checkpoint yet. Train it first.")
    # The weights come from the checkpoint, so the run that this one has started from need not be there any more.
    without_start = {"init": None} if isinstance(recipe, ClassRecipe | TextRecipe) else {}
    recipe = dataclasses.replace(recipe, run=result, **without_start)
    stage = build(recipe, lambda line: print(line, file=sys.stderr))
    stage.model.eval().requires_grad_(False)
    return recipe, stage, saved
