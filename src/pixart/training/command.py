"""`pixart train RECIPE`: read the recipe, apply the overrides, build the parts, run the loop, write the result."""

import contextlib
import json
import sys
from pathlib import Path

from pixart.errors import PixArtError, UsageError
from pixart.training.files import write_whole
from pixart.training.lock import NAME as LOCK
from pixart.training.lock import held

TRACK, TRACK_KEY = "--track", "--tracking.to"  # the short way and the key of the recipe
LOOKED_AT = ("tracking", "samples")  # tables of a recipe that do not change what is trained


def run(arguments: list[str]) -> int:
    """Everything after `pixart train`. Returns the exit code.

    `RECIPE [--dotted.override VALUE ...] [--dry-run] [--resume PATH|auto]`. The same command continues an unfinished
    run of the same recipe and reports a finished one; it refuses a run folder made with another recipe. For a chain,
    it does so with every recipe in turn.
    """
    from pixart.training import recipe as recipes
    from pixart.training.chain import resolve

    dry_run = "--dry-run" in arguments
    arguments = [TRACK_KEY + a.removeprefix(TRACK) if a.split("=")[0] == TRACK else a for a in arguments]
    resume, arguments = _take_resume([a for a in arguments if a != "--dry-run"])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: pixart train RECIPE [--dotted.override VALUE ...] [--dry-run] [--resume PATH|auto]\n"
            "                    [--track wandb|trackio|tensorboard]\n\n"
            "`pixart train RECIPE --help` lists what a recipe sets. The recipes:\n  "
            + "\n  ".join(recipes.names())
            + "\nand chains of them, which run one after the other:\n  "
            + "\n  ".join(recipes.chains())
        )
        return 0 if arguments else 2
    name, *overrides = arguments
    if {"-h", "--help"} & set(overrides):
        return _help(name)
    if resume:
        if recipes.chain(name) is not None:
            raise UsageError(f"{name} is a chain and continues by itself; leave --resume out.")
        overrides += ["--run", resume]
    stages = resolve(name, overrides)
    if resume:
        _check_resume(Path(resume), dry_run)
    if dry_run:
        return _dry_run(name, stages)
    return train_recipe(stages[0].recipe) if stages[0].name == name else train_chain(stages)


def _dry_run(name: str, stages: list) -> int:
    """The resolved recipe on stdout as JSON; parts, network and phases on stderr."""
    from pixart.training.recipe import to_json
    from pixart.training.summary import summary

    for stage in stages:
        for line in summary(stage):
            _to_stderr(line)
    tables = [{"name": stage.name, **to_json(stage.recipe)} for stage in stages]
    shown = to_json(stages[0].recipe) if stages[0].name == name else {"kind": "chain", "name": name, "stages": tables}
    print(json.dumps(shown, indent=2))
    return 0


def _help(name: str) -> int:
    import tyro

    from pixart.training import recipe as recipes

    listed = recipes.chain(name)
    if listed is None:
        base = recipes.load(name)
        with contextlib.suppress(SystemExit):
            tyro.cli(type(base), default=base, args=["--help"], prog=f"pixart train {name}")
        return 0
    print(
        f"usage: pixart train {name} [--run FOLDER] [--dotted.override VALUE ...] [--dry-run]\n\n"
        "Runs these recipes one after the other, skips what is finished and continues what is not:\n  "
        + "\n  ".join(listed)
        + "\n\nAn override applies to every recipe that has the key; --STAGE.dotted.override to one. With --run, all\n"
        "runs go into FOLDER. `pixart train RECIPE --help` lists what a recipe sets."
    )
    return 0


def _check_resume(run: Path, dry_run: bool) -> None:
    if not (run / "config.json").is_file():
        raise UsageError(f"--resume {run}: there is no run in that folder to continue.")
    if not dry_run and not any(run.glob("checkpoint-*/state.json")):
        raise UsageError(
            f"--resume {run}: that run has no checkpoint yet. Give the command without --resume to begin it."
        )


def train_chain(stages: list) -> int:
    """Train the recipes of a chain in turn; what is finished is skipped. Returns 0 or raises as `train_recipe` does."""
    from pixart.training.distributed import joined

    parallel = {stage.recipe.loop.parallel for stage in stages}
    devices = {stage.recipe.loop.device for stage in stages}
    if len(devices) > 1:
        raise UsageError(f"The stages of a chain share a device, and these ask for {', '.join(sorted(devices))}.")
    # Once for all: processes cannot leave each other and meet again at the same address.
    with joined("none" if "none" in parallel else "auto", devices.pop()) as world:
        for number, stage in enumerate(stages, 1):
            if world.main:
                _to_stderr(f"{stage.name}, {number} of {len(stages)}")
            train_recipe(stage.recipe, world=world)
    return 0


def train_recipe(recipe, report=None, *, world=None) -> int:
    """Train a resolved recipe in its run folder. Returns 0; raises PixArtError with one sentence.

    Where torchrun has started several processes, each calls this, and they train as one; `world` is theirs if they
    have joined already.
    """
    from pixart.training.distributed import joined
    from pixart.training.progress import TrainingProgress

    together = contextlib.nullcontext(world) if world else joined(recipe.loop.parallel, recipe.loop.device)
    with together as world, contextlib.ExitStack() as locks:
        if not world.main:
            return _train(recipe, _to_nobody, world, locks)
        if report:
            return _train(recipe, report, world, locks)
        progress = TrainingProgress()
        locks.callback(progress.close)
        return _train(recipe, progress.report, world, locks)


def _train(recipe, report, world, locks: contextlib.ExitStack) -> int:
    from pixart.training.batches import total_steps
    from pixart.training.loop import train
    from pixart.training.stages import build

    finished = recipe.run / "finished.json"
    world.main_first(lambda: world.main and _enter(recipe, locks))
    if finished.is_file():
        if world.main:
            report(f"{recipe.run} is finished. Give another --run to train again.")
            print(json.loads(finished.read_text(encoding="utf-8"))["result"])
        return 0
    for phase in recipe.phases:
        world.shares(recipe.loop.accumulate)[0].rows(phase.batch_size)  # refuses what cannot be shared out
    # Before the folder is claimed: a wrong path in the recipe leaves nothing behind.
    stage = world.main_first(lambda: build(recipe, report))
    world.main_first(lambda: world.main and _claim(recipe, locks, report))
    count = sum(p.numel() for p in stage.model.parameters())
    steps = total_steps(recipe.phases)
    together = f", {world.size} processes" if world.size > 1 else ""
    report(f"{recipe.run}: {type(stage.model).__name__} with {count / 1e6:.1f} M parameters, {steps:,} steps{together}")
    with contextlib.ExitStack() as watching:
        watch = watching.enter_context(_watch(recipe, stage, world, report)) if world.main else None
        ema = train(
            stage.model,
            stage.loss,
            stage.batches,
            steps,
            recipe.run,
            loop=recipe.loop,
            optimizer=recipe.optimizer,
            evaluate=watch.evaluate if watch else stage.evaluate,
            report=report,
            record=watch.record if watch else None,
            receipt=watch.receipt if watch else None,
            data=stage.batches.fingerprint(),
            world=world,
        )
        if watch:
            result = stage.finish(ema)
            watch.finish(result)
    if world.main:
        write_whole(finished, json.dumps({"steps": steps, "result": str(result)}, indent=1))
        print(result)
    world.wait()
    return 0


def _watch(recipe, stage, world, report):
    from pixart.training.recipe import to_json
    from pixart.training.watch import Watch

    return Watch(
        recipe,
        stage.evaluate,
        settings=to_json(recipe),
        pictures=stage.batches.data_size(),
        sampler=stage.sampler,
        processes=world.size,
        report=report,
    )


def _enter(recipe, locks: contextlib.ExitStack) -> None:
    """Refuse a folder that is not this recipe's, and hold one that exists."""
    _check_claim(recipe)
    if recipe.run.is_dir():
        locks.enter_context(held(recipe.run))


def _check_claim(recipe) -> list[str]:
    """What the recipe asks to be done in another way than so far. Refuses a folder that is not this recipe's."""
    from pixart.training.loop import MAY_CHANGE
    from pixart.training.recipe import from_run, to_json

    if (recipe.run / "config.json").is_file():
        there, wanted = to_json(from_run(recipe.run)), to_json(recipe)
        changed = {key: (there["loop"].pop(key), wanted["loop"].pop(key)) for key in MAY_CHANGE}
        for table in LOOKED_AT:
            there.pop(table, None)
            wanted.pop(table, None)
        if there != wanted:
            differ = ", ".join(key for key in wanted if there.get(key) != wanted[key])
            raise UsageError(f"{recipe.run} was made with another recipe (different: {differ}). Give another --run.")
        return [f"loop.{key} {new} instead of {old}" for key, (old, new) in changed.items() if old != new]
    if recipe.run.exists() and (not recipe.run.is_dir() or {path.name for path in recipe.run.iterdir()} - {LOCK}):
        raise UsageError(f"{recipe.run} is not empty and not a run folder. Give another --run.")
    return []


def _claim(recipe, locks: contextlib.ExitStack, report) -> None:
    """Make the run folder, if need be, and write the recipe into its config.json."""
    from pixart.training.recipe import to_json

    if not recipe.run.is_dir():
        try:
            recipe.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PixArtError(f"The run folder {recipe.run} cannot be made: {error.strerror}.") from None
        locks.enter_context(held(recipe.run))
    changed = _check_claim(recipe)
    if changed:
        report(f"continuing with {', '.join(changed)}")
    if changed or not (recipe.run / "config.json").is_file():
        write_whole(recipe.run / "config.json", json.dumps(to_json(recipe), indent=1))


def _take_resume(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The folder to continue in, if one is named, and the other arguments. "auto" is what happens anyway."""
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--resume=") else [a])]
    if "--resume" not in arguments:
        return None, arguments
    at = arguments.index("--resume")
    if at + 1 >= len(arguments):
        raise UsageError("--resume needs a run folder, or auto.")
    given = arguments[at + 1]
    return None if given == "auto" else given, arguments[:at] + arguments[at + 2 :]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _to_nobody(line: str) -> None:
    pass
