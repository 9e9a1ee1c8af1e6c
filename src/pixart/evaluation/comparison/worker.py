"""The process that samples for one model, so that its peak memory is its own and its end ends nobody else."""

import contextlib
import inspect
import itertools
import os
import sys
import time
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pixart.errors import PixArtError, UsageError, reason_of
from pixart.evaluation.comparison.models import FOR_RUNS, SHIPPED
from pixart.evaluation.comparison.record import Cell, add_image
from pixart.runtime.memory import Memory

# What belongs to an image, not to the model.
OF_AN_IMAGE = ("prompt", "resolved_prompt", "resolved_negative_prompt", "seed", "format", "pixels_sha256")
OF_LOADING = ("engine", "dtype", "device", "parts", "fast")
# What libraries say when there is no memory for a tensor, besides raising MemoryError or torch's own class.
NO_MEMORY = ("out of memory", "not enough memory", "bad_alloc", "bad allocation", "allocate memory", "allocatememory")
DIFFUSERS_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Job:
    """What a process samples: `cells` of the model `source`, into the folder `own`.

    `weights` and `engine` are those of the images that are there already.
    """

    kind: str
    source: str
    settings: dict[str, Any]
    cells: list[tuple[Cell, str]]  # with the prompt
    own: Path
    weights: dict[str, Any]
    engine: str | None


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


def work(job: Job, log: Path, events: Connection) -> None:
    """The process: sends changes of its `Session`, and writes what libraries print into `log`."""
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        _sample(job, lambda **event: events.send(event))
    except PixArtError as error:
        events.send({"ended": "failed", "reason": str(error)})
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)  # who started this process has gone, or stops too
    except Exception as error:
        found = explained(error)
        if found is None:
            raise  # to the log of the model
        events.send(dict(zip(("ended", "reason"), found, strict=True)))


def _sample(job: Job, say: Any) -> None:
    began = time.perf_counter()
    generator = open_generator(job.kind, job.source, job.settings)
    say(load_seconds=round(time.perf_counter() - began, 3), **_memory())
    count = 0
    for seed, group in itertools.groupby(job.cells, key=lambda cell: cell[0].seed):
        # The device is known after the first image, whose time stands apart.
        while batch := list(itertools.islice(group, job.settings.get("batch_size") or generator.at_once)):
            began = time.perf_counter()
            images = generator.generate([text for _, text in batch], seed)
            seconds = round((time.perf_counter() - began) / len(batch), 4)
            if count == 0:
                _refuse_another_model(generator, job.weights, job.engine)
            for (cell, _), image in zip(batch, images, strict=True):
                add_image(job.own, cell, image, seconds=seconds, warm=count > 0)
            count += len(batch)
            known = {"settings": generator.settings, "weights": generator.weights}
            say(images=count, notices=tuple(dict.fromkeys(generator.notices)), **known, **_memory())


def _refuse_another_model(generator: Generator, weights: dict[str, Any], engine: str | None) -> None:
    """A comparison that goes on must not mix the images of two models, or of two engines, under one name."""
    now = generator.settings.get("engine")
    if engine not in (None, now):
        raise PixArtError(f"Its first images came from the engine {engine}, not {now}; compare in a new --output.")
    if changed := [name for name in weights if generator.weights.get(name) != weights[name]]:
        raise PixArtError(
            f"The model has changed since its first images ({changed[0]} is another); bring it back (of a run, with "
            "checkpoint=STEP), or compare in a new --output."
        )


def explained(error: Exception) -> tuple[str, str] | None:
    """How a session ended ("memory" or "failed") and why, for what a person can change; None for a bug."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(mark in f"{type(error).__name__} {text}".lower() for mark in NO_MEMORY):
        return "memory", text[-200:]  # ONNX Runtime begins with places in its source
    if isinstance(error, ModuleNotFoundError):
        from pixart.extras import missing_extra

        sentence = missing_extra(error)
        return None if sentence is None else ("failed", str(sentence))
    if isinstance(error, OSError):
        return "failed", f"{error.filename or 'A file'} cannot be written or read: {error.strerror}."
    return None


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
