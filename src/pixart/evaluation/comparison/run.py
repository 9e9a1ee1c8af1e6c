"""Sample what a comparison still lacks, model by model, each in a process of its own; take images made elsewhere.

So a model's peak memory is its own, and its end ends nobody else."""

import contextlib
import inspect
import itertools
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.evaluation.comparison.models import FOR_RUNS, SHIPPED, Model
from pixart.evaluation.comparison.record import (
    IMAGES,
    Cell,
    Plan,
    Sampled,
    add_image,
    outcome,
    read_sampled,
    save_sampled,
)
from pixart.extras import missing_extra
from pixart.images import EXTENSIONS, open_image
from pixart.pipeline.image_files import slug
from pixart.runtime.memory import Memory

# What belongs to an image, not to the model.
OF_AN_IMAGE = ("prompt", "resolved_prompt", "resolved_negative_prompt", "seed", "format", "pixels_sha256")
OF_LOADING = ("engine", "dtype", "device", "parts", "fast")
# What libraries say when there is no memory for a tensor, besides raising MemoryError or torch's own class.
NO_MEMORY = ("out of memory", "not enough memory", "bad_alloc", "bad allocation", "allocate memory", "allocatememory")
LOG = "worker.log"
DIFFUSERS_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Job:
    """What a process samples: `cells`, with their prompts, of the model `source`, into the folder `own`.

    `before` is what sampled the images that are there already; `about` joins the settings.
    """

    kind: str
    source: str
    settings: dict[str, Any]
    cells: list[tuple[Cell, str]]
    own: Path
    before: Sampled
    about: dict[str, Any]


class Generator(Protocol):
    """A model in memory."""

    settings: dict[str, Any]  # of the last images: every value that decided them but prompt and seed
    weights: dict[str, Any]  # what names the model; known after the first image
    notices: list[str]  # what a person should know of the images so far, such as words that were cut
    at_once: int  # images that suit the device; known after the first image

    def generate(self, texts: list[str], seed: int) -> list[Any]:
        """An RGB PIL image of each text, all from the same seed."""


def open_generator(kind: str, source: str, settings: dict[str, Any]) -> Generator:
    """Load a model. Raises PixArtError or UsageError in one sentence, ModuleNotFoundError without the extra torch."""
    return DiffusersGenerator(source, settings) if kind == "diffusers" else OurGenerator(source, settings)


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `Pipeline.from_pretrained` takes, and what a call of the pipeline takes."""
    call = {name: value for name, value in settings.items() if name not in (*FOR_RUNS, "batch_size")}
    loading = {name: call.pop(name) for name in OF_LOADING if name in call}
    memory = {field.name: call.pop(field.name) for field in fields(Memory) if field.name in call}
    if "text_states" in memory:
        memory["text_states"] = Path(memory["text_states"])
    if call.get("null_text", "encoded") != "encoded":  # as in pixart generate: only torch takes a null caption
        loading.setdefault("engine", "torch")
    return loading | {"memory": Memory(**memory)}, call


class OurGenerator:
    """Our own pipeline: the images that `pixart generate` gives with the same settings."""

    def __init__(self, source: str, settings: dict[str, Any]):
        from pixart.pipeline.pipeline import Pipeline

        loading, self.call = split_settings(settings)
        self.pipeline = Pipeline.from_pretrained(None if source == SHIPPED else source, **loading)
        self.settings: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.notices: list[str] = []
        self.at_once = 1

    def generate(self, texts: list[str], seed: int) -> list[Any]:
        from pixart.pipeline.request import make_request

        request = make_request(self.pipeline.folder, texts, seed=seed, **self.call)
        generated = list(self.pipeline.generate(request, on_notice=self.notices.append))
        self.settings = {key: value for key, value in generated[0].settings.items() if key not in OF_AN_IMAGE}
        self.weights = self.settings.pop("weights", None) or {}
        self.at_once = self.pipeline.core.images_at_once(request)
        return [one.image for one in generated]


class DiffusersGenerator:
    """Any pipeline of Diffusers that generates from a prompt, from a folder on disk, safetensors only."""

    at_once = 1

    def __init__(self, source: str, settings: dict[str, Any]):
        import diffusers
        import torch

        from pixart.runtime.device import choose_device, find_devices

        folder, dtype = _diffusers_folder(source), settings.get("dtype", "float32")
        device = choose_device(find_devices(), settings.get("device", "auto")).type
        how = {"torch_dtype": getattr(torch, dtype), "local_files_only": True, "use_safetensors": True}
        try:
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **how)
            if "image" in inspect.signature(pipe.__call__).parameters:
                # The folder's own class changes images; this finds the one of its family that makes them.
                pipe = diffusers.AutoPipelineForText2Image.from_pipe(pipe)
            if settings.get("offload") and device != "cpu":
                pipe.enable_model_cpu_offload(device=device)
            else:
                pipe.to(device)
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError, KeyError, AssertionError) as error:
            raise PixArtError(f"{source} cannot be loaded by Diffusers: {reason_of(error)}.") from None
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.torch, self.notices = pipe, torch, []
        self.parameters = inspect.signature(pipe.__call__).parameters
        self.settings: dict[str, Any] = {"pipeline": type(pipe).__name__, "engine": "diffusers"}
        self.settings |= {"device": device, "dtype": dtype}
        self.settings["versions"] = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        self.call: dict[str, Any] = {}
        for ours in ("prompt", "steps", "guidance_scale", "width", "height", "negative_prompt"):
            theirs = "num_inference_steps" if ours == "steps" else ours
            if theirs not in self.parameters:
                if ours in settings or ours == "prompt":
                    raise UsageError(f"{source} is a {type(pipe).__name__}, which does not take {ours}.")
            elif ours in settings:
                self.call[theirs] = self.settings[ours] = settings[ours]
            elif self.parameters[theirs].default is not None and ours != "prompt":
                self.settings[ours] = self.parameters[theirs].default
        if scheduler := getattr(pipe, "scheduler", None):
            self.settings["sampler"] = type(scheduler).__name__
        # Sizes and times tell another model at once; hashing gigabytes would cost a core.
        files = {path: path.stat() for path in sorted(folder.rglob("*.safetensors"))}
        self.weights = {p.relative_to(folder).as_posix(): [s.st_size, s.st_mtime_ns] for p, s in files.items()}

    def generate(self, texts: list[str], seed: int) -> list[Any]:
        call = dict(self.call)
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(texts)
        # Of the CPU: the same noise on every device, and in every batch.
        generators = [self.torch.Generator("cpu").manual_seed(seed) for _ in texts]
        try:
            images = self.pipe(prompt=texts, generator=generators, **call).images
        except (ValueError, TypeError) as error:  # what the pipeline does not take: a size, a missing image
            raise PixArtError(f"{type(self.pipe).__name__} refuses: {reason_of(error)}.") from None
        self.settings["width"], self.settings["height"] = images[0].size
        return [image.convert("RGB") for image in images]


def work(job: Job) -> None:
    """The process: keeps what it has come to in the model's folder, and what libraries print in its log."""
    with (job.own / LOG).open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        _sample(job)
    except Exception as error:
        traceback.print_exc()
        ended, reason = explained(error)
        save_sampled(job.own, replace(read_sampled(job.own), ended=ended, reason=reason))


def _sample(job: Job) -> None:
    began = time.perf_counter()
    generator = open_generator(job.kind, job.source, job.settings)
    known = replace(job.before, ended="stopped", reason="", load_seconds=round(time.perf_counter() - began, 3))
    first = True
    for seed, group in itertools.groupby(job.cells, key=lambda cell: cell[0].seed):
        # The device is known after the first image, whose time stands apart.
        while batch := list(itertools.islice(group, job.settings.get("batch_size") or generator.at_once)):
            if not multiprocessing.parent_process().is_alive():
                return
            began = time.perf_counter()
            images = generator.generate([text for _, text in batch], seed)
            seconds = round((time.perf_counter() - began) / len(batch), 4)
            if first:
                _refuse_another_model(generator, job.before)
            for (cell, _), image in zip(batch, images, strict=True):
                add_image(job.own, cell, image, seconds=seconds, warm=not first)
            settings, notices = generator.settings | job.about, tuple(dict.fromkeys(generator.notices))
            known = replace(known, settings=settings, weights=generator.weights, notices=notices, **_memory())
            save_sampled(job.own, known)
            first = False
    save_sampled(job.own, replace(known, ended="done"))


def _refuse_another_model(generator: Generator, before: Sampled) -> None:
    """A comparison that goes on must not mix the images of two models, or of two engines, under one name."""
    engine, now = before.settings.get("engine"), generator.settings.get("engine")
    if engine not in (None, now):
        raise PixArtError(f"Its first images came from the engine {engine}, not {now}; compare in a new --output.")
    if changed := [name for name in before.weights if generator.weights.get(name) != before.weights[name]]:
        raise PixArtError(
            f"The model has changed since its first images ({changed[0]} is another); bring it back (of a run, with "
            "checkpoint=STEP), or compare in a new --output."
        )


def explained(error: Exception) -> tuple[Literal["memory", "failed"], str]:
    """How a process ended, and why."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(mark in f"{type(error).__name__} {text}".lower() for mark in NO_MEMORY):
        return "memory", text[-200:]  # ONNX Runtime begins with places in its source
    sentence = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
    if sentence or isinstance(error, PixArtError):
        return "failed", str(sentence or error)
    return "failed", f"{type(error).__name__}: {text[:200]} ({LOG} has all of it)"


def _diffusers_folder(source: str) -> Path:
    """A folder, or the place in the Hub's cache of a hub id that somebody has fetched; nothing is fetched here."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        name, _, revision = source.partition("@")
        try:
            folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        except LocalEntryNotFoundError:
            raise PixArtError(f"{source} is not in the Hub's cache; fetch it first with: hf download {name}") from None
    if code := sorted(folder.rglob("*.py")):
        raise PixArtError(f"{source} comes with code of its own ({code[0].name}), which is not run.")
    return folder


def _memory() -> dict[str, int]:
    """The most memory that this process has had so far, in bytes, where Linux tells; and on a GPU where one is used."""
    found = {}
    with contextlib.suppress(OSError, StopIteration):  # getrusage may say the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        found["peak_bytes"] = next(int(row.split()[1]) * 1024 for row in status.splitlines() if row[:6] == "VmHWM:")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device_bytes"] = torch.cuda.max_memory_reserved()
    return found


NAMED = 4  # mismatches that a message names


def sample(
    plan: Plan, model: Model, source: str, folder: Path, on_images: Callable[[int], None], about: dict[str, Any]
) -> None:
    """Make the missing images of a model; whatever was made is kept.

    `source` is what the process loads; `on_images` is called with how many it has made; `about` joins its settings. A
    model that cannot be loaded, crashes or runs out of memory is no exception here: `sampled.json` tells.
    """
    before = outcome(folder, model.folder)
    own, log = before.folder, before.folder / LOG
    own.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in plan.cells if cell not in before.images]
    cells.sort(key=lambda cell: (cell.seed, cell.row))  # what can share a batch stands together
    texts = [(cell, plan.rows[cell.row].text) for cell in cells]
    save_sampled(own, replace(before.sampled, ended="stopped", reason=""))
    job = Job(model.kind, source, model.settings.given(), texts, own, before.sampled, about)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(job,), daemon=True)
    lines = _count_lines(own)
    process.start()
    try:
        while process.is_alive():
            process.join(0.5)
            on_images(_count_lines(own) - lines)
    finally:
        process.terminate()
        process.join()
    sampled = read_sampled(own)
    if process.exitcode == -9:
        why = "the system ended its process (signal 9), as it does when memory runs out"
        save_sampled(own, replace(sampled, ended="memory", reason=why))
    elif process.exitcode:
        save_sampled(own, replace(sampled, ended="failed", reason=f"its process crashed ({log} has all of it)"))
    elif sampled.ended == "done":
        log.unlink(missing_ok=True)


def _count_lines(own: Path) -> int:
    return (own / IMAGES).read_bytes().count(b"\n") if (own / IMAGES).is_file() else 0


def match(source: Path, plan: Plan) -> tuple[dict[Cell, Path], list[str]]:
    """Images made elsewhere: the file of each cell that has one, and a sentence for each kind of mismatch.

    A file is named after its prompt's number (from 0, or from 1 where none has the number 0 and one has that of the
    last prompt from 1) or after the prompt, as `pixart generate` names it or as it is; then, where there are several
    seeds, by its seed: 0007.png, 7-0.png, a-red-fox-0.png, a red fox_0.png.

    Raises:
        UsageError: two images for one place, or none for any.
    """
    paths = sorted(p for p in source.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    rows_of: dict[str, int] = {}
    for number, row in reversed(list(enumerate(plan.rows))):
        rows_of[row.text.casefold()] = rows_of[slug(row.text)] = number
    numbers = [int(digits[1]) for path in paths if (digits := re.fullmatch(r"(\d{1,9})([-_]\d+)?", path.stem))]
    first = 1 if numbers and 0 not in numbers and max(numbers) == len(plan.rows) else 0
    found: dict[Cell, Path] = {}
    strangers: list[str] = []
    for path in paths:
        cell = _cell(path.stem.casefold(), rows_of, first, plan)
        if cell is None:
            strangers.append(path.name)
        elif cell in found:
            both = f"{found[cell].name} and {path.name}"
            raise UsageError(f"{source}: {both} are both of prompt {cell.row} with seed {cell.seed}; keep one of them.")
        else:
            found[cell] = path
    if not found:
        raise UsageError(
            f"{source}: none of its {len(paths):,} images is named after a prompt or its number, such as 0000-0.png "
            f"or {slug(plan.rows[0].text)}-{plan.seeds[0]}.png."
        )
    notes = [f"The images are numbered from 1, so image 1 is that of the first prompt of {len(plan.rows)}."] * first
    if strangers:
        notes.append(f"Images of no prompt or seed: {len(strangers):,} ({_some(strangers)}).")
    if missing := [f"{cell.row} {plan.rows[cell.row].text[:40]}" for cell in plan.cells if cell not in found]:
        notes.append(f"Prompts without an image: {len(missing):,} ({_some(missing)}).")
    return found, notes


def _cell(stem: str, rows_of: dict[str, int], first: int, plan: Plan) -> Cell | None:
    """The place of an image by its file name, if the plan has it; a prompt may end in a number, so it goes first."""
    name, seed = stem, None
    if stem not in rows_of and (parts := re.fullmatch(r"(.+)[-_](\d{1,10})", stem)):
        name, seed = parts[1], int(parts[2])
    if seed is None and len(plan.seeds) == 1:
        seed = plan.seeds[0]
    by_number = int(name) - first if re.fullmatch(r"\d{1,9}", name) else -1
    row = rows_of.get(name, by_number)
    return Cell(row, seed) if 0 <= row < len(plan.rows) and seed in plan.seeds else None


def take(found: dict[Cell, Path], model: Model, folder: Path, notes: list[str]) -> None:
    """Copy images made elsewhere that the model's folder does not have yet, as RGB in PNG on white.

    Raises PixArtError for one that cannot be opened; those before it are kept.
    """
    known = outcome(folder, model.folder)
    known.folder.mkdir(parents=True, exist_ok=True)
    fresh = {cell: path for cell, path in found.items() if cell not in known.images}
    for cell, path in fresh.items():
        try:
            add_image(known.folder, cell, open_image(path.read_bytes()).image)
        except ImageProblem as problem:
            raise PixArtError(f"{path} cannot be used: {problem}") from None
    save_sampled(known.folder, Sampled("done", notices=tuple(notes)))


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (" ..." if len(items) > NAMED else "")
