"""A training in its run folder: claim it, build the task, run the loop, write the result.

config.json             the task and the recipe
checkpoint-N/           the newest two checkpoints
metrics.jsonl           a line for each report
samples/                images sampled while training
model/, dit/, vae/ ...  what the task exports in the end
finished.json           what that is, and what it took"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pixart.checkpoints.adapters import Adapter, write_adapter
from pixart.config import plain
from pixart.encoders.tokenizer import SIGMA_TOKENS
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.files import locked, read_json_object, remove_partial, write_json, write_whole
from pixart.model.adapters import adapted, merge
from pixart.model.pixart import PixArt
from pixart.progress import Progress
from pixart.runtime.device import choose_device, choose_precision, find_cpu, find_devices
from pixart.tracking.tracker import Images, Tracker
from pixart.training import checkpoints, trainable
from pixart.training.batches import Batches
from pixart.training.cost import estimate
from pixart.training.distribution import World, joined
from pixart.training.ema import load_kept
from pixart.training.loop import AGAIN, Preempted, StopOnSignal, train_loop
from pixart.training.recipe import ADAPTER, CONFIG, TASKS, Recipe, differences, from_run, to_json
from pixart.training.task import Loss, Task

FINISHED = "finished.json"
LOCK = ".lock"
RATES = {"fresh": 1e-3, "init": 2e-5, "adapter": 1e-4}  # the second is that of the published models, the third PEFT's
TRACKED = {"loss": "train_loss"}  # what trackers have called it since the official trainer


def train(task: Task, recipe: Recipe, loss: Loss | None = None, *, world: World | None = None) -> Path:
    """Train `task` in the run folder `recipe.output`, or go on with a run that was stopped there.

    Args:
        task: a dataclass of `pixart.training.tasks`, or one of your own with the methods of `Task`.
        recipe: phases, loop, optimizer and the rest.
        loss: instead of the task's own, `loss(model, batch) -> (B,)`.
        world: the processes that train together; those of torchrun, or this one alone, if left out.

    Returns:
        What the run has made, a path in its folder.

    Raises:
        UsageError: the recipe cannot be trained, or the folder is in use for something else.
        PixArtError: something is missing or damaged; a loss is not finite; the disk is full.
        Preempted: SIGINT or SIGTERM came; a checkpoint is on the disk.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopOnSignal())
        world = world or stack.enter_context(joined(recipe.loop.parallel, recipe.loop.device))
        progress = stack.enter_context(Progress()) if world.main else None
        say = progress.say if progress else lambda line: None
        made = world.main_first(lambda: _look(task, recipe))
        if made is not None:
            say(f"{recipe.output} is finished. Give another --output to train again.")
            return recipe.output / made
        world.main_first(lambda: world.main and stack.enter_context(_held(recipe.output)))
        return _train(task, recipe, loss or task.loss, world, stop, progress, say)


def _train(
    task: Task,
    recipe: Recipe,
    loss: Loss,
    world: World,
    stop: StopOnSignal,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Path:
    run = recipe.output
    config = to_json(task, recipe)  # as it was given; building decides what it leaves open
    recipe, changed = world.main_first(lambda: _decided(config, recipe, task, world))
    for phase in recipe.phases:
        world.slices(recipe.loop.accumulate)[0].rows(phase.batch_size)  # refuses what cannot be shared out

    def build() -> tuple[torch.nn.Module, Batches]:
        if progress:
            progress.start("opening data and networks")
        model = task.build(recipe, world.device)
        trainable.apply(model, recipe.trainable)
        return model, Batches(recipe.phases, [task.source(phase) for phase in recipe.phases], recipe.loop.seed)

    model, batches = world.main_first(build)
    if world.main:
        for line in [*estimate(model, recipe, world), *([f"continuing with {', '.join(changed)}"] if changed else [])]:
            say(line)
        write_json(run / CONFIG, config | {"loop": plain(recipe.loop), "optimizer": plain(recipe.optimizer)})
        progress.start("training", recipe.steps, unit="steps")
    with _Watch(task, recipe, config, world, say, progress) as watch:
        averaged = train_loop(
            model,
            loss,
            batches,
            recipe.steps,
            run,
            loop=recipe.loop,
            optimizer=recipe.optimizer,
            ema=recipe.ema,
            world=world,
            stop=stop,
            validate=watch.validate,
            record=watch.record,
            say=say,
            data=" ".join(source.fingerprint for source in batches.sources),
        )
    result = None
    if world.main:
        for name in ("model", "fast", "vae", "dit", "controlnet"):
            remove_partial(run / name)
        result = _export(task, averaged, recipe, run)
        saved = checkpoints.verified(checkpoints.found(run)[-1]).state
        if (result / "model_index.json").is_file():
            device = choose_device(find_devices(), world.device.type).name
            write_card(result, config["task"], recipe, watch.metrics, saved.hours, device)
        made = result.relative_to(run).as_posix()
        write_json(
            run / FINISHED, {"steps": recipe.steps, "result": made, "hours": saved.hours, "images": saved.images}
        )
        say(f"{run}: {recipe.steps:,} steps, {saved.images:,} images in {saved.hours:.2f} hours")
    result = world.from_all(result)[0]
    _, stopping = world.agree(torch.zeros((), device=world.device), stop.requested)
    if stopping:  # in the last step, or while the result was written: what comes after must not begin
        raise world.once(Preempted(f"Stopped by a signal; {run} is finished, so {AGAIN} see its result."))
    return result


class _Watch:
    """Stands between the loop and those who look on: trackers and samples. Nothing here changes what is trained."""

    def __init__(self, task: Task, recipe: Recipe, config: dict, world: World, say, progress: Progress | None):
        self.task, self.recipe, self.say, self.progress = task, recipe, say, progress
        self.metrics: dict[str, float] = {}
        self.validations = 0
        self.tracker = Tracker(recipe.tracking, recipe.output, settings=config, say=say) if world.main else None

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *error: object) -> None:
        if self.tracker:
            self.tracker.close()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        self.tracker.log(step, {TRACKED.get(name, name): value for name, value in metrics.items()})
        if "loss" in metrics:
            self.progress.update(step, f"loss {metrics['loss']:.4f}")

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        self.metrics = self.task.validate(model)
        sampler, number = getattr(self.task, "sampler", None), -(-step // self.recipe.loop.validate_every)
        if sampler and (number % self.recipe.samples.every == 0 or step == self.recipe.steps):
            try:
                files = sampler.sample(model, step, self.recipe.samples.size or self._base_size(step))
            except Exception as error:  # samples are for looking at; training does not depend on them
                self.say(f"step {step:,}: no samples could be made: {reason_of(error)}")
            else:
                self.say(f"step {step:,}: {len(files)} samples in {files[0][0].parent}")
                self.tracker.log(step, {"validation": Images(files)})
        return self.metrics

    def _base_size(self, step: int) -> int:
        phase = self.recipe.phase_at(step - 1)
        return phase.size or read_json_object(phase.features / "features.json")["origin"]["settings"]["base_size"]


def export(run: Path, dest: Path, *, step: int | None = None, average: str = "ema", only: str | None = None) -> Path:
    """Write what a run is for, from any of its checkpoints and averages, into the folder `dest`; returns its path.

    Raises:
        UsageError: there is no such step or average, or the run is not one of the task `only`.
        PixArtError: what the run was built from, or the checkpoint, is missing or damaged.
    """
    task, recipe = from_run(run)
    if only is not None and type(task).__name__ != TASKS[only]:
        raise UsageError(f"{run} is not a run of {only}.")
    if average not in recipe.ema.names():
        raise UsageError(f"{run} has kept the averages {', '.join(recipe.ema.names())}, not {average}.")
    step, _ = find_checkpoint(run, step=step)
    saved = checkpoints.verified(run / f"checkpoint-{step}")
    model = task.build(replace(recipe, output=dest), torch.device("cpu"))
    trainable.apply(model, recipe.trainable)
    load_kept(model, saved.read(average))
    dest.mkdir(parents=True, exist_ok=True)
    return _export(task, model.eval().requires_grad_(False), recipe, dest)


def _export(task: Task, model: torch.nn.Module, recipe: Recipe, folder: Path) -> Path:
    """What the task makes of the model; or, of a PixArt with an adapter, the adapter's file."""
    if not (isinstance(model, PixArt) and adapted(model)):
        merge(model)
        return task.export(model, folder)
    architecture = "pixart-sigma" if getattr(task, "max_tokens", 0) == SIGMA_TOKENS else "pixart-alpha"
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/PixArt-alpha/PixArt-alpha",
        "modelspec.title": recipe.output.name,
        "pixart.base": str(getattr(task, "init", None) or getattr(task, "teacher", None) or ""),
    }
    layers = {name: tuple(change.delta() for change in layer.adapters) for name, layer in adapted(model).items()}
    write_adapter(Adapter(layers, {}), folder / ADAPTER, header=header)
    return folder / ADAPTER


def find_checkpoint(run: Path, *, step: int | None = None, ema: float | None = None) -> tuple[int, str]:
    """The step, by default the newest, and the name of the average with a decay, by default the first one.

    Raises:
        UsageError: the run has no such step or average. PixArtError: it has no checkpoint, or is no run folder.
    """
    _, recipe = from_run(run)
    steps = [int(folder.name.removeprefix("checkpoint-")) for folder in checkpoints.found(run)]
    if not steps:
        raise PixArtError(f"{run} has no checkpoint yet. Train it first.")
    if step is not None and step not in steps:
        raise UsageError(f"{run} has the checkpoints {', '.join(map(str, steps))}, not {step}.")
    if ema is not None and ema not in recipe.ema.decays:
        raise UsageError(f"{run} has kept the averages {', '.join(recipe.ema.names())}, not of the decay {ema:g}.")
    average = "ema" if ema is None else recipe.ema.names()[recipe.ema.decays.index(ema)]
    return steps[-1] if step is None else step, average


def _look(task: Task, recipe: Recipe) -> str | None:
    """The result of a finished run, or None. Refuses a folder that is not this recipe's, without writing to it."""
    run = recipe.output
    if not (run / CONFIG).is_file():
        if run.exists() and (not run.is_dir() or {path.name for path in run.iterdir()} - {LOCK}):
            raise UsageError(f"{run} is not empty and not a run folder. Give another --output.")
        return None
    _changes(_config(run), to_json(task, recipe), run)
    if not (run / FINISHED).is_file():
        return None
    result = read_json_object(run / FINISHED).get("result")
    if not isinstance(result, str) or not (run / result).exists():
        raise PixArtError(f"{run / FINISHED} names no result that is there; remove it to write the result again.")
    return result


def _config(run: Path) -> dict:
    """What config.json holds. PixArtError where it is no recipe's."""
    config = read_json_object(run / CONFIG)
    tables = all(isinstance(config.get(name), dict) for name in ("loop", "optimizer"))
    if not isinstance(config.get("task"), str) or not tables:
        raise PixArtError(f"{run / CONFIG} is damaged: it holds no recipe. Give another --output.")
    return config


def _changes(there: dict, wanted: dict, run: Path) -> list[str]:
    """What may differ and does. UsageError where the run was made with another recipe."""
    wanted = _with_decided(there, wanted)
    differ, changed = differences(there, wanted)
    if differ:
        raise UsageError(f"{run} was made with another recipe (different: {', '.join(differ)}). Give another --output.")
    return changed


def _with_decided(there: dict, wanted: dict) -> dict:
    """`wanted` with what was left open and has been decided when the run began."""
    loop, optimizer = dict(wanted["loop"]), dict(wanted["optimizer"])
    if loop["precision"] == "auto":
        loop["precision"] = there.get("loop", {}).get("precision", "auto")
    if optimizer["learning_rate"] is None:
        optimizer["learning_rate"] = there.get("optimizer", {}).get("learning_rate")
    return wanted | {"loop": loop, "optimizer": optimizer}


def _decided(config: dict, recipe: Recipe, task: Task, world: World) -> tuple[Recipe, list[str]]:
    """The recipe with what it left open decided, as when the run began; and what is done in another way than then."""
    changed: list[str] = []
    if (recipe.output / CONFIG).is_file():
        there = _config(recipe.output)
        changed = _changes(there, config, recipe.output)
        precision, rate = there["loop"]["precision"], there["optimizer"].get("learning_rate")
    else:
        precision, rate = recipe.loop.precision, recipe.optimizer.learning_rate
        if precision == "auto":
            device = find_cpu() if world.device.type == "cpu" else choose_device(find_devices(), world.device.type)
            precision = choose_precision(device).arithmetic
        if rate is None:
            kind = "init" if getattr(task, "init", None) else "fresh"
            rate = RATES[kind if recipe.trainable.method == "full" else "adapter"]
    loop, optimizer = replace(recipe.loop, precision=precision), replace(recipe.optimizer, learning_rate=rate)
    return replace(recipe, loop=loop, optimizer=optimizer), changed


@contextlib.contextmanager
def _held(run: Path) -> Iterator[None]:
    """Hold the run folder, made if need be, before anything is built."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PixArtError(f"The run folder {run} cannot be made: {error.strerror}.") from None
    with locked(run / LOCK, f"Another pixart train works in {run}; wait for it, or stop it."):
        try:
            yield
        finally:  # while it is held, so that nobody can come in between
            with contextlib.suppress(OSError):
                (run / LOCK).unlink()
                if not (run / CONFIG).is_file():
                    run.rmdir()  # a recipe that cannot be built leaves nothing behind


HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [pixart]
---
# {name}

A PixArt model, trained with pixart. Generate with it:

```sh
pixart generate "a prompt" --model {folder}
```

```python
from diffusers import PixArtAlphaPipeline

PixArtAlphaPipeline.from_pretrained("{folder}")("a prompt")
```

## Training

"""


def write_card(folder: Path, task: str, recipe: Recipe, metrics: dict[str, float], hours: float, device: str) -> None:
    """Write README.md into a finished run's model folder. `metrics` are the last ones on images not trained on."""
    rows = "".join(f"| {p.steps:,} | {p.batch_size:,} | {p.features or p.size} |\n" for p in recipe.phases)
    found = "".join(f"- {name.replace('_', ' ')}: {value:.4g}\n" for name, value in metrics.items())
    text = (
        HEAD.format(name=recipe.output.name, folder=folder.name)
        + f"Task: {task}. It took {hours:.2f} hours on {device}.\n\n"
        + f"| Steps | Batch | Data |\n| --- | --- | --- |\n{rows}"
        + (f"\nOn images that were not trained on:\n\n{found}" if found else "")
    )
    write_whole(folder / "README.md", text)
