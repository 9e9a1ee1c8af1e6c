"""Loaded models that draw one picture at a time: ours, and any text-to-image pipeline of Diffusers."""

import hashlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import MEMORY, SHIPPED
from pixart.runtime.memory import Memory

DTYPES = ("float32", "float16", "bfloat16")
# What belongs to a picture, not to the model: a style brings negative words of its own.
OF_A_PICTURE = ("prompt", "negative_prompt", "resolved_prompt", "resolved_negative_prompt", "style", "seed", "format")


class Drawer(Protocol):
    """A model in memory."""

    settings: dict[str, Any]  # of the last picture: every value that decided it but prompt and seed
    notices: list[str]  # what a person should know of the last picture, such as words that were cut
    weights: dict[str, str]  # SHA-256 by file; known after the first picture

    def draw(self, text: str, negative: str, seed: int) -> Any:
        """An RGB PIL image of `text`, steered away from `negative`; "" steers away from nothing."""


def open_drawer(kind: str, source: str, settings: dict[str, Any]) -> Drawer:
    """Load a model. Raises PixArtError or UsageError in one sentence, ModuleNotFoundError without the extra torch."""
    return PixartDrawer(source, settings) if kind == "pixart" else DiffusersDrawer(source, settings)


def loading(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the settings of a model of ours: the arguments of `choose_runtime` and `Pipeline` when it is loaded."""
    memory = {name: settings[name] for name in MEMORY if name in settings}
    if "text_states" in memory:
        memory["text_states"] = Path(memory["text_states"])
    # As in pixart generate: only torch takes a null caption.
    for_torch = settings.get("null_text", "encoded") != "encoded"
    usual = "torch" if for_torch else "auto"
    found = {"engine": settings.get("engine", usual), "memory": Memory(**memory)}
    return found | {key: settings[key] for key in ("dtype", "device") if key in settings}


def check_diffusers(settings: dict[str, Any]) -> None:
    """UsageError for what no pipeline of Diffusers can be told; without loading anything."""
    dtype = settings.get("dtype", "float32")
    if dtype not in DTYPES:
        raise UsageError(f"A Diffusers pipeline is loaded in one of {', '.join(DTYPES)}, not in {dtype}.")


class PixartDrawer:
    """Our own pipeline: the picture that `pixart generate` draws with the same settings."""

    def __init__(self, source: str, settings: dict[str, Any]):
        from pixart.pipeline.pipeline import Pipeline

        at_opening = (*MEMORY, "engine", "dtype", "device", "parts", "fast")
        self.given = {key: value for key, value in settings.items() if key not in at_opening}
        self.own_negative = self.given.pop("negative_prompt", "")
        self.pipeline = Pipeline.from_pretrained(
            None if source == SHIPPED else source,
            parts=settings.get("parts"),
            fast=settings.get("fast", False),
            **loading(settings),
        )
        self.settings: dict[str, Any] = {}
        self.weights: dict[str, str] = {}
        self.notices: list[str] = []

    def draw(self, text: str, negative: str, seed: int) -> Any:
        result = self.pipeline(text, negative_prompt=joined(negative, self.own_negative), seed=seed, **self.given)
        settings = {key: value for key, value in result.settings[0].items() if key not in OF_A_PICTURE}
        settings.pop("pixels_sha256", None)
        self.weights = settings.pop("weights", {})
        self.settings = {"negative_prompt": self.own_negative, **settings}
        self.notices = result.notices
        return result.images[0]


class DiffusersDrawer:
    """Any pipeline of Diffusers that draws from a prompt, from a folder on disk, safetensors only."""

    def __init__(self, source: str, settings: dict[str, Any]):
        import diffusers
        import torch

        folder = _folder(source)
        self.settings: dict[str, Any] = {}
        self.device = settings.get("device", "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("torch sees no GPU here; leave device=cuda out.")
        dtype = settings.get("dtype", "float32")
        how = {"torch_dtype": getattr(torch, dtype), "local_files_only": True, "use_safetensors": True}
        try:
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **how)
            if "image" in inspect.signature(pipe.__call__).parameters:
                # The folder's own class changes pictures; this finds the one of its family that makes them.
                pipe = diffusers.AutoPipelineForText2Image.from_pipe(pipe)
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError, KeyError) as error:
            raise PixArtError(f"{source} cannot be loaded by Diffusers: {_first_line(error)}") from None
        self.pipe = pipe
        if settings.get("offload") and self.device == "cuda":
            pipe.enable_model_cpu_offload()
            self.settings["offload"] = True
        else:
            pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.torch, self.dtype = torch, dtype
        parameters = inspect.signature(self.pipe.__call__).parameters
        if "prompt" not in parameters:
            raise PixArtError(f"{source} is a {type(pipe).__name__}, which draws nothing from a prompt.")
        names = {"num_inference_steps": "steps", "guidance_scale": "guidance_scale", "width": "width"}
        names |= {"height": "height", "negative_prompt": "negative_prompt"}
        self.call: dict[str, Any] = {}
        self.settings["pipeline"] = type(pipe).__name__
        for theirs, ours in names.items():
            if theirs not in parameters:
                if ours in settings:
                    raise UsageError(f"{source} is a {type(pipe).__name__}, which cannot be told {ours}.")
            elif ours in settings:
                self.call[theirs] = self.settings[ours] = settings[ours]
            elif parameters[theirs].default is not None:
                self.settings[ours] = parameters[theirs].default
        self.takes_negative = "negative_prompt" in parameters
        if scheduler := getattr(self.pipe, "scheduler", None):
            self.settings["sampler"] = type(scheduler).__name__
        threads = torch.get_num_threads() if self.device == "cpu" else None
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        self.settings |= {"engine": "diffusers", "device": self.device, "dtype": dtype, "threads": threads}
        self.settings["versions"] = versions
        self.weights: dict[str, str] = {}
        self.notices: list[str] = []
        self.hashes = ThreadPoolExecutor(1).submit(_hash_weights, folder)

    def draw(self, text: str, negative: str, seed: int) -> Any:
        call = dict(self.call)
        words = joined(negative, call.pop("negative_prompt", ""))
        if words and not self.takes_negative:
            raise UsageError(f"A {type(self.pipe).__name__} cannot be steered away from words (negative_prompt).")
        if words:
            call["negative_prompt"] = words
        generator = self.torch.Generator("cpu").manual_seed(seed)  # the same noise on every device
        try:
            image = self.pipe(prompt=text, generator=generator, **call).images[0]
        except (ValueError, TypeError) as error:  # what the pipeline does not take: a size, a missing picture
            raise PixArtError(f"{type(self.pipe).__name__} refuses to draw: {_first_line(error)}") from None
        self.settings["width"], self.settings["height"] = image.size
        self.weights = self.hashes.result()
        return image.convert("RGB")


def _folder(source: str) -> Path:
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
    code = sorted(folder.rglob("*.py"))
    if code:
        raise PixArtError(f"{source} comes with code of its own ({code[0].name}), which is not run.")
    return folder


def joined(first: str, second: str) -> str:
    return ", ".join(part for part in (first, second) if part.strip())


def _hash_weights(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]
