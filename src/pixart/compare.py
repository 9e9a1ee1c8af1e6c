"""`pixart compare`: several models, the same prompts and seeds, one page to look at and vote on."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart.config import unknown
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.drawers import check_diffusers, joined, loading
from pixart.evaluation.comparison.drawing import Job, draw, missing
from pixart.evaluation.comparison.models import SHIPPED, Model, Settings, read_models
from pixart.evaluation.comparison.plan import PLAN, Plan, begin, check_free, make_rows, read
from pixart.evaluation.comparison.results import model_folder, outcome
from pixart.options import either, shown
from pixart.runtime.memory import PLAIN, Memory
from pixart.training.lock import held

MAX_SEEDS = 100
DEVICES = ("cpu", "cuda")
GUIDANCE = ("guidance_interval", "guidance_rescale", "guidance_channels", "null_text")
# Settings of one drawing, by the names of `make_request`.
ASKED = ("steps", "guidance_scale", "width", "height", "sampler", "binning", *GUIDANCE)


@dataclass(frozen=True)
class Compare:
    """Draw the same prompts with the same seeds by several models, and show them on one page; prints its path.

    A model is: default (the shipped one), a model folder, an official file with parts=FOLDER, a hub id, a training run
    or one of its checkpoints, any text-to-image pipeline of Diffusers, or a folder of pictures made elsewhere. Settings
    of one model stand behind its name: default,steps=8,dtype=int8. A .toml or .json file names several. The options
    from --steps on hold for every model that knows them and does not say otherwise.

    Each picture is kept as soon as it is drawn; the same command goes on where it was stopped.
    """

    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL ...", help_behavior_hint="(required)")]]
    """The models to compare."""
    prompts: Annotated[str, arg(metavar="SET|FILE", help_behavior_hint="(required)")] = ""
    """general, more, alignment, styles, emoji, composition; or a file: .txt, .jsonl, PartiPrompts, GenEval, ..."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (0,)
    """Each prompt is drawn once with each of these."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("comparison")
    """Where the pictures and the page go."""
    limit: Annotated[int | None, shown("N", "all")] = None
    """Only N of the prompts, spread evenly over all of them."""
    styles: bool = False
    """Draw each prompt in all the styles of the first model that has styles."""
    steps: Annotated[int | None, shown("N", "each model's own")] = None
    """How many times the network looks at each picture."""
    guidance_scale: Annotated[float | None, shown("X", "each model's own")] = None
    """How strongly to follow the prompt."""
    guidance_interval: Annotated[tuple[int, int] | None, shown("FROM TO", "0 1000")] = None
    """Timesteps at which guidance acts; for one model FROM-TO."""
    guidance_rescale: Annotated[float | None, shown("X", "0")] = None
    """From 0 to 1: takes back the oversaturation of strong guidance."""
    guidance_channels: Annotated[int | None, shown("N", "all")] = None
    """Guide the first channels of the latent only."""
    null_text: Annotated[str | None, shown("NAME", "encoded")] = None
    """What guidance leads away from, as in pixart generate: encoded, caption, caption-all."""
    negative_prompt: Annotated[str | None, shown("TEXT", "none")] = None
    """What to steer away from."""
    width: Annotated[int | None, shown("PIXELS", "each model's own")] = None
    """Width of the pictures."""
    height: Annotated[int | None, shown("PIXELS", "each model's own")] = None
    """Height of the pictures."""
    sampler: Annotated[str | None, shown("NAME", "each model's own")] = None
    """As in pixart generate."""
    binning: bool = False
    """Draw the official size of the nearest shape and fit it, as in pixart generate."""
    no_binning: bool = False
    """Draw width and height exactly."""
    engine: Annotated[str | None, shown("NAME", "auto")] = None
    """onnx, torch, or auto."""
    dtype: Annotated[str | None, shown("NAME", "auto")] = None
    """float32; int8 with onnx; bfloat16 with torch; for pipelines of Diffusers float32, float16, bfloat16."""
    device: Annotated[str | None, shown("NAME", "auto")] = None
    """cpu, with torch cuda or mps, or auto."""
    memory: Annotated[Memory, arg(name="")] = PLAIN
    track: Annotated[str | None, shown("NAME", "none")] = None
    """wandb or trackio: show the comparison there too, as a table."""


def compare(options: Compare) -> int:
    """Run `pixart compare`. Returns 0 if every picture is there; raises PixArtError in one sentence."""
    if not options.prompts:
        raise UsageError("pixart compare needs prompts: --prompts emoji, another set, or a file.")
    if options.track not in (None, "wandb", "trackio"):
        raise UsageError(f"--track is {options.track!r}; it must be wandb or trackio.")
    plan = _plan(options)
    jobs = {model.name: _job(plan, model) for model in plan.models if model.kind not in ("run", "pictures")}
    check_free(plan, options.output)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PixArtError(f"{options.output} cannot be written: {error.strerror or error}.") from None
    with held(options.output, "draws a comparison", "--output"):
        begin(plan, options.output)
        page = _draw_all(plan, jobs, options.output)
        print(page, flush=True)
        if options.track:
            from pixart.evaluation.comparison.track import track

            track(options.track, plan, options.output, _say)
    _refuse_gaps(plan, options.output, page)
    return 0


def _draw_all(plan: Plan, jobs: dict[str, Job], output: Path) -> Path:
    """Draw what is missing, and write the page in any case; its path."""
    from pixart.evaluation.comparison.page import write_page

    for model in plan.models:
        if model.kind == "pictures":
            _take_pictures(plan, model, output)
    try:
        for model in plan.models:
            if model.kind != "pictures":
                _draw(plan, model, jobs.get(model.name), output)
    finally:
        page = write_page(plan, output)
    return page


@dataclass(frozen=True)
class Prompts:
    """List the prompt sets of the package, or the prompts of a set or file as JSON lines."""

    name: Positional[Annotated[str | None, arg(metavar="SET|FILE")]] = None
    """What to list; without it, the sets."""


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
    """Everything that can be wrong with the command is said here, before anything is drawn or written."""
    from pixart.evaluation.prompt_sets import read_prompts

    prompts = read_prompts(options.prompts)
    if options.limit is not None:
        if options.limit < 1:
            raise UsageError(f"--limit is {options.limit}; give 1 or more.")
        count = min(options.limit, len(prompts))
        prompts = [prompts[number * len(prompts) // count] for number in range(count)]
    seeds = options.seeds
    if not 1 <= len(seeds) <= MAX_SEEDS or len(set(seeds)) < len(seeds) or not all(0 <= s < 2**32 for s in seeds):
        raise UsageError(f"--seeds takes 1 to {MAX_SEEDS} different whole numbers from 0 to {2**32 - 1}.")
    models = [_settled(model, options.output) for model in read_models(list(options.models), _shared(options))]
    rows = make_rows(prompts, _styles(models) if options.styles else None)
    return Plan(rows, tuple(seeds), tuple(models))


def _shared(options: Compare) -> Settings:
    """What holds for every model that does not say otherwise."""
    memory = {name: value for name, value in vars(options.memory).items() if value != getattr(PLAIN, name)}
    if "text_states" in memory:
        memory["text_states"] = str(memory["text_states"])
    return Settings(
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        sampler=options.sampler,
        binning=either(options.binning, options.no_binning, "binning"),
        guidance_interval=options.guidance_interval,
        guidance_rescale=options.guidance_rescale,
        guidance_channels=options.guidance_channels,
        null_text=options.null_text,
        engine=options.engine,
        dtype=options.dtype,
        device=options.device,
        **memory,
    )


def _settled(model: Model, output: Path) -> Model:
    """A run's model with its checkpoint named, since a run may go on; a comparison begun earlier keeps its own."""
    if model.kind != "run":
        return model
    from pixart.training.checkpoint_model import find_checkpoint

    settings = model.settings
    if (output / PLAN).is_file():
        for earlier in read(output).models:
            if (earlier.name, earlier.source, earlier.kind) == (model.name, model.source, model.kind):
                settings = replace(
                    settings,
                    checkpoint=settings.checkpoint or earlier.settings.checkpoint,
                    ema=settings.ema or earlier.settings.ema,
                )
                if (model_folder(output, model.folder) / "model").is_dir():
                    return replace(model, settings=settings)
    _, step, ema = find_checkpoint(Path(model.source), step=settings.checkpoint, ema=settings.ema)
    return replace(model, settings=replace(settings, checkpoint=step, ema=ema))


def _styles(models: list[Model]) -> dict:
    from pixart.checkpoints.model_folder import open_model_folder

    for model in models:
        source = Path(model.source) / "model" if model.kind == "run" else model.source
        if model.kind == "pixart" or (model.kind == "run" and (Path(model.source) / "model").is_dir()):
            folder = open_model_folder(None if source == SHIPPED else source)
            if folder.styles:
                return folder.styles
    raise UsageError("--styles: none of these models has styles; put the style into the prompts.")


def _job(plan: Plan, model: Model, folder: Path | None = None) -> Job:
    """What draws a model; one of ours is checked here, with every prompt, before any network is loaded."""
    source = str(folder) if folder else model.source
    given = model.settings.given()
    if given.get("device", "cpu") not in DEVICES:
        raise UsageError(unknown("device", given["device"], DEVICES))
    if model.kind == "diffusers":
        check_diffusers(given)
        return Job("diffusers", source)
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.pipeline.networks import choose_runtime
    from pixart.pipeline.request import check_text_states, make_request

    which = None if source == SHIPPED else source
    opened = open_model_folder(which, parts=given.get("parts"), fast=given.get("fast", False))
    how = loading(given)
    engine = choose_runtime(opened, **how).engine
    asked = {name: given[name] for name in ASKED if name in given}
    for row in plan.rows:
        negative = joined(row.negative_prompt, given.get("negative_prompt", ""))
        request = make_request(opened, row.text, negative_prompt=negative, seed=max(plan.seeds), **asked)
        if how["memory"].text_states is not None:
            check_text_states(opened, request, how["memory"].text_states)
    if request.null_text != "encoded" and engine != "torch":
        raise UsageError(f"The engine {engine} takes no null caption; null_text={request.null_text} needs torch.")
    return Job("pixart", source)


def _draw(plan: Plan, model: Model, job: Job | None, output: Path) -> None:
    """Draw what `model` still lacks. How it ended is in its session; a run's model folder is there only meanwhile."""
    import shutil

    cells = missing(plan, model, output)
    if not cells:
        return
    own = model_folder(output, model.folder) / "model"
    if job is None:
        if not own.is_dir():
            from pixart.training.checkpoint_model import find_checkpoint, write_checkpoint_model

            wanted = model.settings
            run, step, ema = find_checkpoint(Path(model.source), step=wanted.checkpoint, ema=wanted.ema)
            _say(f"{model.name}: preparing step {step:,}, EMA {ema:g}.")
            own.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint_model(run, own, step=step, ema=ema)
        job = _job(plan, model, own)
    done = len(plan.cells) - len(cells)
    with Progress(model.name, len(plan.cells), done) as progress:
        session = draw(plan, model, job, cells, output, lambda _, picture: progress.drawn(picture))
    if session.ended == "done" and own.is_dir():
        shutil.rmtree(own)


def _take_pictures(plan: Plan, model: Model, output: Path) -> None:
    from pixart.evaluation.comparison.made_elsewhere import match, take

    found, notes = match(Path(model.source), plan)
    for note in notes:
        _say(f"{model.name}: {note}")
    known = outcome(output, model.folder)
    take(found, known.folder, have=set(known.drawn), notes=notes)


def _refuse_gaps(plan: Plan, output: Path, page: Path) -> None:
    """PixArtError if a picture of a model that draws is missing, with the reason of each."""
    gaps, count, memory = [], 0, False
    for model in plan.models:
        known = outcome(output, model.folder)
        lacking = len(plan.cells) - len(known.drawn)
        if lacking and model.kind != "pictures":
            count += lacking
            last = known.last
            # --staged is torch's, so it goes on only with what torch began.
            begun = known.drawn and known.engine != "torch"
            memory = memory or (last is not None and last.ended == "memory" and model.kind != "diffusers" and not begun)
            why = {"memory": "memory ran out", "failed": "failed"}.get(last.ended if last else "", "stopped")
            gaps.append(f"{model.name} {why} after {len(known.drawn):,}{f' ({last.reason})' if last else ''}")
    if gaps:
        less = "; with --staged it needs less memory for the same pictures (docs/memory.md)" if memory else ""
        raise PixArtError(
            f"{count:,} of {len(plan.cells) * len(plan.models):,} pictures are missing: {'; '.join(gaps)}. {page} "
            f"shows what there is; the same command draws the rest{less}."
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Pictures of one model, on stderr: a bar on a terminal, elsewhere a line every half minute and at the end."""

    def __init__(self, name: str, total: int, done: int):
        self.name, self.total, self.done = name, total, done
        self.live = sys.stderr.isatty()
        self.began = self.said = time.monotonic()
        self.fresh = 0
        self.bar = None

    def __enter__(self) -> "Progress":
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text = TextColumn("{task.description}", markup=False)
            console = Console(stderr=True)
            self.bar = Bar(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(self.name, total=self.total, completed=self.done)
            self.bar.start()
        else:
            _say(f"{self.name}: loading, then {self.total - self.done:,} pictures.")
        return self

    def __exit__(self, *error) -> None:
        if self.bar:
            self.bar.stop()
        else:
            _say(f"{self.name}: {self.fresh:,} pictures in {time.monotonic() - self.began:.1f} s.")

    def drawn(self, picture) -> None:
        self.fresh += 1
        if self.bar:
            self.bar.update(self.task, completed=self.done + self.fresh)
        elif time.monotonic() - self.said >= 30:
            self.said = time.monotonic()
            _say(f"{self.name}: {self.done + self.fresh:,} of {self.total:,} pictures.")
