"""The networks of one model behind one interface: encode texts, denoise rows, decode latents. Two engines provide it.

Which engine, device and dtype a model gets is decided here, before anything heavy is loaded.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.model_folder import ModelFolder
from pixart.config import unknown
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object
from pixart.progress import Progress
from pixart.runtime.device import DEVICES, Device, Precision, choose_device, choose_precision, find_cpu, find_devices
from pixart.runtime.memory import PLAIN, Memory, check_memory
from pixart.runtime.plan import DECODER_NUMBERS, Sizes, choose_plan
from pixart.weights import Stored, read_header, read_headers

ENGINES = ("auto", "onnx", "torch")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
GRAPH_DTYPES = ("auto", "float32", "int8")


class Networks(Protocol):
    """Text encoder, denoiser and decoder, loaded. Arrays between its methods are of its own kind (numpy or torch)."""

    name: str
    max_tokens: int
    memory: Memory
    control: ControlNetFile | None  # a ControlNet that is loaded beside the denoiser

    def set_loras(self, loras: Sequence[Lora]) -> None:
        """Generate with these adapters, which fit the model, and no others from now on; the model stays loaded."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode texts that are soon needed, where together they cost little more than one."""

    def encode(self, text: str) -> tuple[Any, str]:
        """A text as `denoise` takes it, and the words over the limit. Once per text."""

    def weighted(self, text: Any, weights: Sequence[float]) -> Any:
        """A text that `encode` gave, with the states of each token, padding left out, times its weight."""

    def unconditional(self, text: Any, full: bool) -> Any:
        """The null caption that the model was trained with, as `denoise` takes it.

        Under the mask of `text`, which `encode` gave, as the official code does it; or all of its tokens.
        """

    def latents(self, noise: np.ndarray) -> Any:
        """Latents or noise (B, C, h, w) float32 as an array of this engine."""

    def denoise(
        self,
        x_t: Any,
        timesteps: Sequence[float],
        texts: Sequence[Any],
        images: Sequence[int],
        controls: Sequence[Any] = (),
    ) -> Any:
        """Predictions (B, out_channels, h, w) of B rows in one pass.

        Args:
            x_t: noisy latents (M, C, h, w) of M images.
            timesteps: of each image, 0 (clean) to 1000 (noise).
            texts: of each row.
            images: of each row, the index of its image; a guided image has two rows.
            controls: of each image, what the ControlNet is given (`latent` and `scale`) or None; empty where none is.

        Raises:
            MemoryError: so many rows do not fit the device.
        """

    def images_at_once(self, rows: int, height: int, width: int) -> int:
        """How many images, with so many rows each, of height x width pixels to denoise in one pass."""

    def encode_image(self, pixels: np.ndarray) -> Any:
        """An image, uint8 RGB (H, W, 3), as a latent (1, C, h, w) of this engine. Raises MemoryError."""

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of this engine as fp32 numpy."""

    def decode(self, latents: Any) -> list[np.ndarray]:
        """Clean latents (B, C, h, w) -> uint8 RGB (H, W, 3) each."""

    def provenance(self) -> dict[str, Any]:
        """Engine, device, dtype, memory options, threads and versions, for image metadata."""


@dataclass(frozen=True)
class Runtime:
    """Where and how a model is computed; `reason` is for the line that says so."""

    engine: str
    device: Device
    precision: Precision
    int8: bool = False
    memory: Memory = PLAIN
    held: str = ""  # how the networks are held in memory, in words

    @property
    def dtype(self) -> str:
        return "int8" if self.int8 else self.precision.storage

    @property
    def line(self) -> str:
        engine = "ONNX Runtime" if self.engine == "onnx" else "torch"
        offload = " Offloading does nothing on a CPU." if self.memory.offload and self.device.type == "cpu" else ""
        held = f"; {self.held}" if self.held else ""
        return f"{engine} on {self.device.type} in {self.dtype} ({self.precision.reason}){held}.{offload}"


def choose_runtime(
    folder: ModelFolder,
    engine: str = "auto",
    dtype: str = "auto",
    memory: Memory = PLAIN,
    device: str = "auto",
    *,
    size: tuple[int, int] | None = None,
    once: bool = False,
    control: ControlNetFile | None = None,
) -> Runtime:
    """Engine, device, dtype and memory plan for a model; loads no network.

    Left to itself it is ONNX Runtime on the CPU where the folder has graphs, which starts at once; with memory options,
    another dtype or a device it is torch, on the fastest device here.

    Args:
        size: height and width in pixels of the largest image, which decides what fits; None: the model's own.
        once: the model is loaded for one request.
        control: a ControlNet that is loaded with it, which only torch computes.

    Raises:
        UsageError: no such engine, dtype or device, or not together.
        PixArtError: the folder has no graphs, torch is not installed, or the model does not fit the memory here.
    """
    for kind, name, known in (("engine", engine, ENGINES), ("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if name not in known:
            raise UsageError(unknown(kind, str(name), known))
    if control is not None and (engine == "onnx" or dtype == "int8"):
        raise UsageError("A ControlNet is computed by torch, not by the graphs of ONNX Runtime; give --engine torch.")
    for_graphs = check_memory(memory) == PLAIN and device in ("auto", "cpu") and dtype in GRAPH_DTYPES
    for_graphs = for_graphs and control is None
    if (engine == "onnx" or dtype == "int8") and not for_graphs:
        raise UsageError(
            "ONNX Runtime computes on the CPU in float32 or int8, with all networks loaded; memory options, other "
            "devices and dtypes need --engine torch."
        )
    if engine == "torch" and dtype == "int8":
        raise UsageError("torch does not compute in int8 here; int8 is for the graphs of ONNX Runtime.")
    if (engine == "onnx" or dtype == "int8") and not folder.has_graphs:
        raise PixArtError(
            f"{folder.path} has no graphs for ONNX Runtime. Write them with: pixart convert {folder.path} --to onnx"
        )
    if engine != "torch" and for_graphs and folder.has_graphs:
        reason = "as given" if engine == "onnx" or device == "cpu" else "the folder has graphs"
        return Runtime("onnx", find_cpu(), Precision("float32", "float32", reason), dtype == "int8")
    if not _installed("torch"):
        why = "" if folder.has_graphs else f" ({folder.path} has no graphs for ONNX Runtime)"
        raise PixArtError(f"This needs torch, which is not installed: pip install 'pixart[torch]'{why}")
    found = choose_device(find_devices(), device)
    precision = choose_precision(found, dtype)
    sizes = sizes_of(folder, *(size or (folder.native_size, folder.native_size)))
    if control is not None:
        sizes = replace(sizes, denoiser=sizes.denoiser + sum(tensor.numel() for tensor in control.state.values()))
    plan = choose_plan(sizes, found, precision, find_cpu().free_bytes, memory, once=once)
    return Runtime("torch", found, precision, memory=plan.memory, held=plan.reason)


def sizes_of(folder: ModelFolder, height: int, width: int) -> Sizes:
    """What a memory plan needs to know of a model and an image of it, from configs and the headers of the weights."""
    config, vae = folder.transformer, read_json_object(folder.path / "vae" / "config.json")
    stored: dict[Path, list[tuple[str, Stored]]] = {}
    for path in (path for path in folder.weights if path.is_relative_to(folder.path)):
        stored.setdefault(path.parent, []).extend(read_header(path).items())
    text = list(read_headers(folder.text_files).items())
    looked_up = ("shared", "embed", "relative_attention_bias")
    linear = [
        math.prod(each.shape) for name, each in text if len(each.shape) == 2 and not any(w in name for w in looked_up)
    ]
    if folder.checkpoint is None:
        denoiser = sum(math.prod(each.shape) for _, each in stored[folder.transformer_folder])
    else:
        denoiser = sum(tensor.numel() for tensor in folder.checkpoint.state.values())
    channels, tile = vae["block_out_channels"], vae.get("sample_size") or 512
    per_pixel = DECODER_NUMBERS * channels[min(1, len(channels) - 1)]
    return Sizes(
        text_linear=sum(linear),
        text_other=sum(math.prod(each.shape) for _, each in text) - sum(linear),
        text_layer=max(linear, default=0),
        text_file=sum(each.size for _, each in text),
        denoiser=denoiser,
        decoder=sum(math.prod(each.shape) for _, each in stored[folder.path / "vae"]),
        tokens=height * width // folder.size_multiple**2,
        width=config["num_attention_heads"] * config["attention_head_dim"],
        decoded=per_pixel * height * width,
        decoded_tile=per_pixel * min(height, tile) * min(width, tile),
    )


def load_networks(
    folder: ModelFolder,
    runtime: Runtime,
    progress: Progress | None = None,
    control: ControlNetFile | None = None,
) -> Networks:
    """Load a checked model folder as `choose_runtime` decided; `progress` shows what is read, now and on first use.

    `control` is a ControlNet that fits the model, for a runtime with torch.

    Raises:
        PixArtError: a file is damaged, and named.
    """
    if runtime.engine == "onnx":
        from pixart.graphs.engine import GraphNetworks

        return GraphNetworks(folder, int8=runtime.int8)
    from pixart.pipeline.torch_networks import TorchNetworks

    return TorchNetworks(folder, runtime.device, runtime.precision, runtime.memory, progress, control)


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False
