"""What draws: two engines behind one face. The solvers, the noise and the guidance stand above and are the same."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pixart.errors import PixArtError, UsageError
from pixart.sampling.memory import PLAIN, Memory, check_memory
from pixart.sampling.model_folder import ModelFolder
from pixart.sampling.prompts import unknown

ENGINES = ("auto", "onnx", "torch")
DTYPES = {"float32": ("onnx", "torch"), "int8": ("onnx", "torch"), "bfloat16": ("torch",)}  # and who can draw in them

# x_t (B, C, h, w) and a timestep -> one prediction (B, out_channels, h, w) for each text.
Predict = Callable[[Any, int], list[Any]]


class Engine(Protocol):
    """The networks of one model folder, loaded. Arrays between its methods are of its own kind (numpy or torch)."""

    name: str
    max_tokens: int
    memory: Memory  # how it was told to save memory
    notices: Sequence[str]  # what a person should know before it draws

    def read(self, text: str) -> tuple[Any, str]:
        """A text as what the denoiser needs of it, and the words over the limit. Once per text."""

    def read_null(self, text: Any, whole: bool) -> Any:
        """The null caption that the model was trained with, in place of a null text that is read.

        Under the mask of `text`, which `read` gave, as the official code does it; or all of its tokens.

        Raises:
            UsageError: this engine takes none.
        """

    def pictures_at_once(self, tokens: int) -> int:
        """How many pictures to draw together, at `tokens` image tokens in all passes of one of them.

        Only as many as keep the promise: a picture's bytes are the same alone and among others.
        """

    def latents(self, noise: np.ndarray) -> Any:
        """Noise (B, C, h, w) as an array of this engine."""

    def predictor(self, texts: list[Any], pictures: int, height: int, width: int, block_cache: int = 1) -> Predict:
        """The denoiser for one or two texts (the prompt's, the null text's), for `pictures` pictures at once.

        Height and width are those of the pictures in pixels, for networks with micro-conditions. With `block_cache`
        N above 1 (torch only) it is for the steps of one drawing in their order, and computes the middle blocks at
        every Nth.
        """

    def to_numpy(self, array: Any) -> np.ndarray:
        """The engine's array as fp32 numpy."""

    def decode(self, latent: Any) -> np.ndarray:
        """Clean latents (1, C, h, w) -> uint8 RGB (H, W, 3)."""

    def provenance(self) -> dict[str, Any]:
        """Engine, device, dtype, threads and versions, for the picture's file."""


def choose_engine(
    folder: ModelFolder,
    engine: str = "auto",
    dtype: str = "float32",
    memory: Memory = PLAIN,
    device: str = "cpu",
) -> str:
    """Which engine a request for one of ENGINES means for this folder; loads nothing.

    "auto" is ONNX Runtime where the folder has graphs and it can draw so: in this dtype, on the CPU, without saving
    memory; else torch.

    Raises:
        UsageError: no such engine or dtype. PixArtError: the folder has no graphs, or torch is not installed.
    """
    if engine not in ENGINES:
        raise UsageError(unknown("engine", str(engine), ENGINES))
    if dtype not in DTYPES:
        raise UsageError(unknown("dtype", str(dtype), DTYPES))
    able = DTYPES[dtype]
    if check_memory(memory) != PLAIN or device != "cpu":
        able = tuple(name for name in able if name != "onnx")
        if engine == "onnx" or not able:
            raise UsageError(
                "ONNX Runtime draws on the CPU, with all parts loaded: ways to save memory and other devices need the "
                "engine torch, in float32 or bfloat16."
            )
    if engine != "auto" and engine not in able:
        raise UsageError(f"The engine {engine} does not draw in {dtype}; take --engine {able[0]}.")
    if able == ("onnx",):
        engine = "onnx"
    if engine == "onnx" and not folder.has_graphs:
        raise PixArtError(
            f"{folder.path} has no graphs for ONNX Runtime. Write them with: pixart convert {folder.path} --to onnx"
        )
    if engine == "onnx" or (engine == "auto" and folder.has_graphs and "onnx" in able):
        return "onnx"
    if not _installed("torch"):
        why = "" if folder.has_graphs else f" ({folder.path} has no graphs for ONNX Runtime)"
        raise PixArtError(f"This needs torch, which is not installed: pip install 'pixart[torch]'{why}")
    return "torch"


def open_engine(
    folder: ModelFolder,
    engine: str = "auto",
    dtype: str = "float32",
    memory: Memory = PLAIN,
    device: str = "cpu",
) -> Engine:
    """Load a checked model folder with the engine that `choose_engine` names; raises as that does."""
    if choose_engine(folder, engine, dtype, memory, device) == "onnx":
        from pixart.sampling.onnx_engine import OnnxEngine

        return OnnxEngine(folder, dtype)
    from pixart.sampling.torch_engine import TorchEngine

    return TorchEngine(folder, dtype, memory, device)


def check_block_cache(engine: str) -> None:
    """UsageError if this engine cannot leave blocks out."""
    if engine != "torch":
        raise UsageError(f"The engine {engine} computes every block at every step; a block cache needs --engine torch.")


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False
