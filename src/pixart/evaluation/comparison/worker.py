"""The process that samples for one model, so that its peak memory is its own and its end ends nobody else.

    python -m pixart.evaluation.comparison.worker < job.json

A job comes as JSON on stdin; a line of JSON goes to stdout after loading and after each image.
"""

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from pixart.config import plain
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import FOR_RUNS, SHIPPED
from pixart.evaluation.comparison.record import Cell, add_image

# What belongs to an image, not to the model: a style brings negative words of its own.
OF_AN_IMAGE = ("prompt", "negative_prompt", "resolved_prompt", "resolved_negative_prompt", "style", "seed", "format")
OF_LOADING = ("engine", "dtype", "device", "parts", "fast")
OF_MEMORY = ("staged", "offload", "text_encoder_8bit", "decode", "text_encoder_dtype", "vae_dtype", "text_states")
# What libraries say when there is no memory for a tensor, besides raising MemoryError or torch's own class.
NO_MEMORY = ("out of memory", "not enough memory", "bad_alloc", "bad allocation", "allocate memory", "allocatememory")
DIFFUSERS_DTYPES = ("float32", "float16", "bfloat16")


class Generator(Protocol):
    """A model in memory."""

    settings: dict[str, Any]  # of the last image: every value that decided it but prompt and seed
    notices: list[str]  # what a person should know of the last image, such as words that were cut
    weights: dict[str, Any]  # what names the model; known after the first image

    def generate(self, text: str, negative: str, seed: int) -> Any:
        """An RGB PIL image of `text`, guided away from `negative`; "" guides away from the empty prompt."""


def open_generator(kind: str, source: str, settings: dict[str, Any]) -> Generator:
    """Load a model. Raises PixArtError or UsageError in one sentence, ModuleNotFoundError without the extra torch."""
    return OurGenerator(source, settings) if kind == "pixart" else DiffusersGenerator(source, settings)


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `Pipeline.from_pretrained` takes, and what a call of the pipeline takes."""
    from pixart.runtime.memory import Memory

    memory = {name: settings[name] for name in OF_MEMORY if name in settings}
    if "text_states" in memory:
        memory["text_states"] = Path(memory["text_states"])
    loading = {name: settings[name] for name in OF_LOADING if name in settings} | {"memory": Memory(**memory)}
    # As in pixart generate: only torch takes a null caption.
    if settings.get("null_text", "encoded") != "encoded":
        loading.setdefault("engine", "torch")
    call = {k: v for k, v in settings.items() if k not in (*OF_LOADING, *OF_MEMORY, *FOR_RUNS)}
    return loading, call


class OurGenerator:
    """Our own pipeline: the image that `pixart generate` gives with the same settings."""

    def __init__(self, source: str, settings: dict[str, Any]):
        import pixart

        loading, self.call = split_settings(settings)
        self.own_negative = self.call.pop("negative_prompt", "")
        self.pipeline = pixart.Pipeline.from_pretrained(None if source == SHIPPED else source, **loading)
        self.settings: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.notices: list[str] = []

    def generate(self, text: str, negative: str, seed: int) -> Any:
        result = self.pipeline(text, negative_prompt=joined(negative, self.own_negative), seed=seed, **self.call)
        settings = {key: value for key, value in result.settings[0].items() if key not in OF_AN_IMAGE}
        settings.pop("pixels_sha256", None)
        self.weights = settings.pop("weights", None) or {}
        self.settings = {"negative_prompt": self.own_negative, **settings}
        self.notices = result.notices
        return result.images[0]


class DiffusersGenerator:
    """Any pipeline of Diffusers that generates from a prompt, from a folder on disk, safetensors only."""

    def __init__(self, source: str, settings: dict[str, Any]):
        import diffusers
        import torch

        folder = _diffusers_folder(source)
        dtype, device = settings.get("dtype", "float32"), settings.get("device", "cpu")
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
            raise PixArtError(f"{source} cannot be loaded by Diffusers: {_first_line(error)}") from None
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.torch = pipe, torch
        self.parameters = inspect.signature(pipe.__call__).parameters
        if "prompt" not in self.parameters:
            raise PixArtError(f"{source} is a {type(pipe).__name__}, which takes no prompt.")
        self.settings: dict[str, Any] = {"pipeline": type(pipe).__name__}
        self.call: dict[str, Any] = {}
        for ours in ("steps", "guidance_scale", "width", "height", "negative_prompt"):
            theirs = "num_inference_steps" if ours == "steps" else ours
            if theirs not in self.parameters:
                if ours in settings:
                    raise UsageError(f"{source} is a {type(pipe).__name__}, which does not take {ours}.")
            elif ours in settings:
                self.call[theirs] = self.settings[ours] = settings[ours]
            elif self.parameters[theirs].default is not None:
                self.settings[ours] = self.parameters[theirs].default
        if scheduler := getattr(pipe, "scheduler", None):
            self.settings["sampler"] = type(scheduler).__name__
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        self.settings |= {"engine": "diffusers", "device": device, "dtype": dtype, "versions": versions}
        # Sizes and times tell another model at once; hashing gigabytes would cost a core.
        files = {path: path.stat() for path in sorted(folder.rglob("*.safetensors"))}
        self.weights = {p.relative_to(folder).as_posix(): [s.st_size, s.st_mtime_ns] for p, s in files.items()}
        self.notices: list[str] = []

    def generate(self, text: str, negative: str, seed: int) -> Any:
        call = dict(self.call)
        words = joined(negative, call.pop("negative_prompt", ""))
        if words and "negative_prompt" not in self.parameters:
            raise UsageError(f"A {type(self.pipe).__name__} takes no negative prompt.")
        if words:
            call["negative_prompt"] = words
        generator = self.torch.Generator("cpu").manual_seed(seed)  # the same noise on every device
        try:
            image = self.pipe(prompt=text, generator=generator, **call).images[0]
        except (ValueError, TypeError) as error:  # what the pipeline does not take: a size, a missing image
            raise PixArtError(f"{type(self.pipe).__name__} refuses: {_first_line(error)}") from None
        self.settings["width"], self.settings["height"] = image.size
        return image.convert("RGB")


def joined(first: str, second: str) -> str:
    return ", ".join(part for part in (first, second) if part.strip())


def main() -> int:
    # Only our lines may go to stdout, whatever the libraries print.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)

    def say(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        _sample(job, say)
    except PixArtError as error:
        say(ended="failed", reason=str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1  # who asked has gone
    except Exception as error:
        found = explained(error)
        if found is None:
            raise  # to the log of the model
        say(ended=found[0], reason=found[1])
        return 1
    return 0


def _sample(job: dict[str, Any], say: Any) -> None:
    own = Path(job["folder"])
    began = time.perf_counter()
    generator = open_generator(job["kind"], job["source"], job["settings"])
    say(load_seconds=round(time.perf_counter() - began, 3), **_memory())
    for count, (row, seed, text, negative) in enumerate(job["cells"]):
        began = time.perf_counter()
        image = generator.generate(text, negative, seed)
        seconds = round(time.perf_counter() - began, 4)
        if count == 0:
            _refuse_another_model(generator, job["weights"], job["engine"])
        entry = add_image(
            own, Cell(row, seed), image, seconds=seconds, warm=count > 0, notices=tuple(generator.notices)
        )
        about = {} if count else {"settings": generator.settings, "weights": generator.weights}
        say(image=plain(entry), **about, **_memory())


def _refuse_another_model(generator: Generator, weights: dict[str, Any], engine: str | None) -> None:
    """A comparison that goes on must not mix the images of two models, or of two engines, under one name."""
    now = generator.settings.get("engine")
    if engine not in (None, now):
        raise PixArtError(f"Its first images came from the engine {engine}, not {now}; compare in a new --output.")
    if changed := [name for name in weights if generator.weights.get(name) != weights[name]]:
        raise PixArtError(
            f"The model has changed since its first images ({changed[0]} is another); bring it back, or compare in a "
            "new --output."
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
    """The most memory that this process has had so far, in bytes, and on a GPU where one is used."""
    found = {"peak_bytes": _peak_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device_bytes"] = torch.cuda.max_memory_reserved()
    return found


def _peak_bytes() -> int:
    try:  # what getrusage says can be the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import psutil

        return psutil.Process().memory_info().rss


def _first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
