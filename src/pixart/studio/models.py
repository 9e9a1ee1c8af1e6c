"""Which model the page generates with: loading one, swapping it for another."""

import time
from dataclasses import dataclass

from pixart.checkpoints.model_folder import ModelFolder, open_model_folder
from pixart.encoders.tokenizer import Tokenizer
from pixart.pipeline.networks import Runtime, choose_runtime, load_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.runtime.memory import PLAIN, Memory
from pixart.studio.preview import Preview


@dataclass(frozen=True)
class Choice:
    """What to load: `source` as `open_model_folder` takes it (None: the shipped model), and how."""

    source: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    memory: Memory = PLAIN
    device: str = "auto"
    fast: bool = False  # its few-step model


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate."""

    pipeline: Pipeline
    runtime: Runtime
    tokenizer: Tokenizer
    preview: Preview
    seconds: float


class Models:
    """The one model of the page. `folder` and `choice` are known at once, its networks when they are loaded."""

    def __init__(self, choice: Choice):
        """Check the folder, load nothing; raises as `open_model_folder` does."""
        self.choice = choice
        self.folder = _open(choice)
        self.loaded: Loaded | None = None

    def require(self) -> Loaded:
        """The loaded model; loads it if it is not yet. To be called in the worker."""
        if self.loaded is None:
            self.load(self.choice)
        return self.loaded

    def load(self, choice: Choice) -> None:
        """Swap to another model. If that fails, the page stays with the one before. To be called in the worker.

        Raises:
            PixArtError: in one sentence, as `open_model_folder` and the engines do.
        """
        started = time.monotonic()
        folder = _open(choice)
        runtime = choose_runtime(folder, choice.engine, choice.dtype, choice.memory, choice.device)
        tokenizer = Tokenizer(folder.tokenizer, folder.text_encoder, folder.max_tokens)
        # Both together might not fit. If this one fails, the one before is loaded again when it is needed.
        self.loaded = None
        pipeline = Pipeline(folder, load_networks(folder, runtime))
        # With one network at a time in memory, decoding a preview would put the denoiser out.
        channels, by_decoder = folder.transformer["in_channels"], not choice.memory.staged
        preview = Preview(pipeline.networks, channels, folder.vae_factor, by_decoder=by_decoder)
        self.loaded = Loaded(pipeline, runtime, tokenizer, preview, time.monotonic() - started)
        self.choice, self.folder = choice, folder


def _open(choice: Choice) -> ModelFolder:
    return open_model_folder(choice.source, fast=choice.fast, text_encoder=choice.memory.text_encoder)
