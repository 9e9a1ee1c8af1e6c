"""Which model the page generates with: loading one, swapping it for another."""

import time
from dataclasses import dataclass
from pathlib import Path

from pixart.checkpoints.adapters import Lora, find_loras
from pixart.checkpoints.model_folder import ModelFolder, open_model_folder
from pixart.encoders.tokenizer import Tokenizer
from pixart.pipeline.networks import Runtime, choose_runtime, load_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.runtime.memory import PLAIN, Memory


@dataclass(frozen=True)
class Choice:
    """What to load: `source` as `open_model_folder` takes it (None: the shipped model), and how."""

    source: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    memory: Memory = PLAIN
    device: str = "auto"
    compile: bool = False
    fast: bool = False  # its few-step model


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate."""

    pipeline: Pipeline
    runtime: Runtime
    tokenizer: Tokenizer
    seconds: float


class Models:
    """The one model of the page. `folder`, `choice` and `loras` are known at once, its networks when they are loaded.

    `loras` are the adapters in the folder of adapters that fit the model, by name.
    """

    def __init__(self, choice: Choice, lora_folder: Path | None = None):
        """Check the folders, load nothing; raises as `open_model_folder` and `find_loras` do."""
        self.choice, self.lora_folder = choice, lora_folder
        self.folder = _open(choice)
        self.loras = self._find_loras(self.folder)
        self.loaded: Loaded | None = None

    def require(self) -> Loaded:
        """The loaded model; loads it if it is not yet. To be called in the studio's worker."""
        if self.loaded is None:
            self.load(self.choice)
        return self.loaded

    def load(self, choice: Choice) -> None:
        """Swap to another model. If that fails, the page stays with the one before. In the studio's worker.

        Raises:
            PixArtError: in one sentence, as `open_model_folder` and the engines do.
        """
        started = time.monotonic()
        folder = _open(choice)
        runtime = choose_runtime(
            folder, choice.engine, choice.dtype, choice.memory, choice.device, compile=choice.compile
        )
        tokenizer = Tokenizer(folder.tokenizer, folder.text_encoder, folder.max_tokens)
        loras = self._find_loras(folder)
        # Both together might not fit. If this one fails, the one before is loaded again when it is needed.
        self.loaded = None
        pipeline = Pipeline(folder, load_networks(folder, runtime))
        self.loaded = Loaded(pipeline, runtime, tokenizer, time.monotonic() - started)
        self.choice, self.folder, self.loras = choice, folder, loras

    def _find_loras(self, folder: ModelFolder) -> dict[str, Lora]:
        return find_loras(self.lora_folder, folder) if self.lora_folder is not None else {}


def _open(choice: Choice) -> ModelFolder:
    return open_model_folder(choice.source, fast=choice.fast, text_encoder=choice.memory.text_encoder)
