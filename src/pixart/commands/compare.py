"""`pixart compare`: several models, the same prompts and seeds, one page. `pixart prompts`: the prompt sets."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart.config import shown
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison import record
from pixart.evaluation.comparison.models import SHIPPED, Model, Settings, read_models
from pixart.evaluation.comparison.record import Plan, Row, outcome, outcomes
from pixart.evaluation.comparison.run import DIFFUSERS_DTYPES, match, sample, split_settings, take
from pixart.files import locked
from pixart.progress import Progress

MAX_SEEDS = 100


@dataclass(frozen=True)
class Compare:
    """Generate the same prompts with the same seeds by several models, and show them on one page; prints its path.

    A model is: default (the shipped one), a model folder, an official file with parts=FOLDER, a hub id, a training
    run, any text-to-image pipeline of Diffusers, or a folder of images made elsewhere. Settings of one model stand
    behind its name: default,steps=8,dtype=int8. A .toml or .json file names several. The settings given as options
    hold for every model that knows them and does not say otherwise.

    Each image is kept as soon as it is made; the same command goes on where it was stopped.
    """

    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL ...", help_behavior_hint="(required)")]]
    """The models to compare."""
    prompts: Annotated[str, arg(metavar="SET|FILE", help_behavior_hint="(required)")] = ""
    """A prompt set (`pixart prompts` lists them), or a file: .txt, .jsonl, PartiPrompts, GenEval, ..."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (0,)
    """Each prompt is generated once with each of these."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("comparison")
    """Where the images and the page go."""
    limit: Annotated[int | None, shown("N", "all")] = None
    """Only N of the prompts, at even distances."""
    settings: Annotated[Settings, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True)
class Prompts:
    """List the prompt sets of the package, or the prompts of a set or file as JSON lines."""

    name: Positional[Annotated[str | None, arg(metavar="SET|FILE")]] = None
    """What to list; without it, the sets."""


def compare(options: Compare) -> int:
    """Run `pixart compare`. Returns 0 if every image is there; raises PixArtError in one sentence."""
    plan, output = _plan(options), options.output
    for model in plan.models:
        _check(plan, model, model.source)
    record.check_free(plan, output)
    with locked(output / record.LOCK, f"Another pixart compare works in {output}; give another --output."):
        record.begin(plan, output)
        from pixart.evaluation.comparison.page import write_page

        with Progress() as progress:
            try:
                for model in plan.models:
                    _complete(plan, model, output, progress)
            finally:
                page = write_page(plan, output)
            progress.result(str(page))
    _refuse_gaps(plan, output)
    return 0


def list_prompts(options: Prompts) -> int:
    """Run `pixart prompts`."""
    from pixart.evaluation.prompt_sets import SETS, read_prompts

    if options.name is None:
        for name, what in SETS.items():
            print(f"{name:<12} {what}")
        return 0
    for prompt in read_prompts(options.name):
        print(json.dumps({"prompt": prompt.text, "category": prompt.category, **prompt.about}, ensure_ascii=False))
    return 0


def _plan(options: Compare) -> Plan:
    """The plan of the command, whose errors are raised here, before anything is generated or written."""
    from pixart.evaluation.prompt_sets import read_prompts

    if not options.prompts:
        raise UsageError("pixart compare needs prompts: --prompts general, another set, or a file.")
    prompts = read_prompts(options.prompts)
    if options.limit is not None:
        if options.limit < 1:
            raise UsageError(f"--limit is {options.limit}; give 1 or more.")
        count = min(options.limit, len(prompts))
        prompts = [prompts[number * len(prompts) // count] for number in range(count)]
    seeds = options.seeds
    if not 1 <= len(seeds) <= MAX_SEEDS or len(set(seeds)) < len(seeds) or not all(0 <= s < 2**32 for s in seeds):
        raise UsageError(f"--seeds takes 1 to {MAX_SEEDS} different whole numbers from 0 to {2**32 - 1}.")
    rows = tuple(Row(prompt.text, prompt.set, prompt.category) for prompt in prompts)
    return Plan(rows, tuple(seeds), tuple(read_models(list(options.models), options.settings)))


def _check(plan: Plan, model: Model, source: str) -> None:
    """Whether the model can be loaded so and sample every prompt, as far as can be known without loading it."""
    given = model.settings.given()
    if model.kind == "diffusers":
        if given.get("dtype", "float32") not in DIFFUSERS_DTYPES:
            raise UsageError(f"A Diffusers pipeline is loaded in {', '.join(DIFFUSERS_DTYPES)}, not {given['dtype']}.")
        return
    if model.kind == "images" or (model.kind == "run" and source == model.source):
        return
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.pipeline.networks import choose_runtime
    from pixart.pipeline.request import check_text_states, make_request

    loading, call = split_settings(given)
    opened = open_model_folder(
        None if source == SHIPPED else source, parts=loading.pop("parts", None), fast=loading.pop("fast", False)
    )
    engine = choose_runtime(opened, **loading).engine
    request = make_request(opened, [row.text for row in plan.rows], seed=max(plan.seeds), **call)
    if loading["memory"].text_states is not None:
        check_text_states(opened, request, loading["memory"].text_states)
    if request.null_text != "encoded" and engine != "torch":
        raise UsageError(f"The engine {engine} takes no null caption; null_text={request.null_text} needs torch.")


def _complete(plan: Plan, model: Model, output: Path, progress: Progress) -> None:
    """Make what `model` still lacks; a run's model folder is there only meanwhile."""
    if model.kind == "images":
        found, notes = match(Path(model.source), plan)
        for note in notes:
            progress.say(f"{model.name}: {note}")
        take(found, model, output, notes)
        return
    known = outcome(output, model.folder)
    done = len(known.images)
    if done == len(plan.cells):
        return
    source, about, exported = model.source, {}, known.folder / "export"
    shutil.rmtree(exported, ignore_errors=True)  # of a process that was killed
    try:
        if model.kind == "run":
            from pixart.training.run import export, find_checkpoint

            run, settings = Path(source), model.settings
            step, average = find_checkpoint(run, step=settings.checkpoint, ema=settings.ema)
            progress.say(f"{model.name}: preparing step {step:,}, average {average}.")
            about = {"checkpoint": step, "ema": average}
            source = str(export(run, exported, step=step, average=average, only="text_to_image"))
            _check(plan, model, source)
        progress.start(model.name, len(plan.cells), unit="images", done=done)
        sample(plan, model, source, output, lambda made: progress.update(done + made), about)
    finally:
        shutil.rmtree(exported, ignore_errors=True)


def _refuse_gaps(plan: Plan, output: Path) -> None:
    """PixArtError if an image of a model that generates is missing, with the reason of each."""
    gaps, count = [], 0
    for model, known in zip(plan.models, outcomes(plan, output), strict=True):
        lacking = len(plan.cells) - len(known.images)
        if lacking and model.kind != "images":
            count += lacking
            why = {"memory": "memory ran out", "failed": "failed"}.get(known.sampled.ended, "stopped")
            reason = f" ({known.sampled.reason})" if known.sampled.reason else ""
            gaps.append(f"{model.name} {why} after {len(known.images):,}{reason}")
    if gaps:
        raise PixArtError(
            f"{count:,} of {len(plan.cells) * len(plan.models):,} images are missing: {'; '.join(gaps)}. The same "
            "command makes the rest; where memory ran out, with --staged it needs less (docs/memory.md)."
        )
