"""Which model the page draws with: loading one, swapping it for another, and what it takes of memory."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pixart.checkpoints.model_folder import ModelFolder, open_model_folder
from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import PixArtError
from pixart.pipeline.networks import choose_runtime, load_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.runtime.memory import PLAIN, Memory
from pixart.web.preview import Preview


@dataclass(frozen=True)
class Choice:
    """What to load: `source` as `open_model_folder` takes it (None: the shipped model), and how."""

    source: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    memory: Memory = PLAIN
    device: str = "auto"
    fast: bool = False  # its fast denoiser


@dataclass(frozen=True)
class Loaded:
    """A model ready to draw."""

    choice: Choice
    folder: ModelFolder
    pipeline: Pipeline
    preview: Preview
    seconds: float


class Models:
    """The one model of the page. `folder` and `choice` are known at once, its networks when they are loaded."""

    def __init__(self, choice: Choice):
        """Check the folder, load nothing; raises as `open_model_folder` does."""
        self.choice = choice
        self.folder = open_model_folder(choice.source, fast=choice.fast)
        self.tokenizer = _tokenizer(self.folder)
        self.loaded: Loaded | None = None
        self.stage = ""  # what is being done, while something is
        self.error = ""

    def require(self) -> Loaded:
        """The loaded model; loads it if it is not yet. To be called in the drawing thread."""
        return self.loaded or self.load(self.choice)

    def load(self, choice: Choice) -> Loaded:
        """Swap to another model. If that fails, the model before goes on being the page's. In the drawing thread.

        Raises:
            PixArtError: in one sentence, as `open_model_folder` and the engines do.
        """
        self.error = ""
        started = time.monotonic()
        try:
            self.stage = "Looking at its files"
            folder = open_model_folder(choice.source, fast=choice.fast)
            tokenizer = _tokenizer(folder)
            before = self.loaded
            if before is not None and weights_bytes(folder) > available_bytes() / 2:
                # Both together might not fit. If the new one fails, the one before is loaded again when it is wanted.
                self.loaded = before = None
            self.stage = "Loading its networks"
            runtime = choose_runtime(folder, choice.engine, choice.dtype, choice.memory, choice.device)
            pipeline = Pipeline(folder, load_networks(folder, runtime))
            self.stage = "Measuring the preview"
            # With one part at a time in memory, a look by the decoder would put the denoiser out.
            channels, quick = folder.transformer["in_channels"], not choice.memory.staged
            preview = Preview(pipeline.networks, channels, folder.vae_factor, by_decoder=quick)
            self.loaded = Loaded(choice, folder, pipeline, preview, time.monotonic() - started)
            self.choice, self.folder, self.tokenizer = choice, folder, tokenizer
            return self.loaded
        except PixArtError as error:
            self.error = str(error)
            raise
        finally:
            self.stage = ""


def weights_bytes(folder: ModelFolder) -> int:
    return sum(path.stat().st_size for path in folder.weights)


def available_bytes() -> float:
    """Memory that is free for use; where the system does not say, all one could wish."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")


def memory_now() -> tuple[int, int]:
    """Bytes that this process holds now, and the most it ever held. Without /proc both are the most."""
    import resource  # not on Windows, where this is not known

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now = pages * resource.getpagesize()
        return now, max(now, peak)
    except (OSError, ValueError, IndexError):
        return peak, peak


def gpu_memory_now() -> int | None:
    """Bytes that torch holds on the GPU, if torch is in use at all; it is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else None


def _tokenizer(folder: ModelFolder) -> Tokenizer:
    return Tokenizer(folder.path / "tokenizer", folder.path / "text_encoder", folder.max_tokens)
