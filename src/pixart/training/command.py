"""`pixart train RECIPE`: read the recipe, apply the overrides, build the parts, run the loop, write the result."""

import json
import sys
from pathlib import Path

from pixart.errors import PixArtError, UsageError


def run(arguments: list[str]) -> int:
    """Everything after `pixart train`. Returns the exit code.

    `RECIPE [--dotted.override VALUE ...] [--dry-run] [--resume PATH|auto]`. The same command continues an unfinished
    run of the same recipe and reports a finished one; it refuses a run folder made with another recipe.
    """
    import tyro

    from pixart.training import recipe as recipes

    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    resume, arguments = _take_resume(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: pixart train RECIPE [--dotted.override VALUE ...] [--dry-run] [--resume PATH|auto]\n\n"
            "`pixart train RECIPE --help` lists what a recipe sets. The recipes:\n  " + "\n  ".join(recipes.names())
        )
        return 0 if arguments else 2
    base = recipes.load(arguments[0])
    recipe = tyro.cli(type(base), default=base, args=arguments[1:], prog=f"pixart train {arguments[0]}")
    if resume and resume != "auto":
        recipe = _with_run(recipe, Path(resume))
        if not (recipe.run / "config.json").is_file():
            raise UsageError(f"--resume {resume}: there is no run in that folder to continue.")
    if dry_run:
        print(json.dumps(recipes.to_json(recipe), indent=2))
        return 0
    return train_recipe(recipe)


def train_recipe(recipe, report=None) -> int:
    """Train a resolved recipe in its run folder. Returns 0; raises PixArtError with one sentence."""
    report = report or _to_stderr
    finished = recipe.run / "finished.json"
    claimed = _check_claim(recipe)
    if finished.is_file():
        result = json.loads(finished.read_text(encoding="utf-8"))["result"]
        report(f"{recipe.run} is finished. Give another --run to train again.")
        print(result)
        return 0

    from pixart.training.batches import total_steps
    from pixart.training.loop import train
    from pixart.training.stages import build

    stage = build(recipe, report)  # before the folder is claimed: a wrong path in the recipe leaves nothing behind
    if not claimed:
        _claim(recipe)
    count = sum(p.numel() for p in stage.model.parameters())
    steps = total_steps(recipe.phases)
    report(f"{recipe.run}: {type(stage.model).__name__} with {count / 1e6:.1f} M parameters, {steps:,} steps")
    ema = train(
        stage.model,
        stage.loss,
        stage.batches,
        steps,
        recipe.run,
        loop=recipe.loop,
        optimizer=recipe.optimizer,
        evaluate=stage.evaluate,
        report=report,
    )
    result = stage.finish(ema)
    _write(finished, {"steps": steps, "result": str(result)})
    print(result)
    return 0


def _check_claim(recipe) -> bool:
    """Whether the run folder is this recipe's already; False where there is none. Refuses any other folder."""
    from pixart.training.recipe import to_json

    wanted, file = to_json(recipe), recipe.run / "config.json"
    if file.is_file():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise PixArtError(f"{file} is damaged. Remove it, or give another --run.") from None
        if there != wanted:
            differ = ", ".join(key for key in wanted if there.get(key) != wanted[key])
            raise UsageError(f"{recipe.run} was made with another recipe (different: {differ}). Give another --run.")
        return True
    if recipe.run.exists() and (not recipe.run.is_dir() or any(recipe.run.iterdir())):
        raise UsageError(f"{recipe.run} is not empty and not a run folder. Give another --run.")
    return False


def _claim(recipe) -> None:
    """Make the run folder, with the recipe in its config.json."""
    from pixart.training.recipe import to_json

    try:
        recipe.run.mkdir(parents=True, exist_ok=True)
        _write(recipe.run / "config.json", to_json(recipe))
    except OSError as error:
        raise PixArtError(f"The run folder {recipe.run} cannot be made: {error.strerror}.") from None


def _take_resume(arguments: list[str]) -> tuple[str | None, list[str]]:
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--resume=") else [a])]
    if "--resume" not in arguments:
        return None, arguments
    at = arguments.index("--resume")
    if at + 1 >= len(arguments):
        raise UsageError("--resume needs a run folder, or auto.")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def _with_run(recipe, run: Path):
    import dataclasses

    return dataclasses.replace(recipe, run=run)


def _write(path: Path, value: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.rename(path)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
