"""The three networks of a model folder in torch: when each is loaded, where it lies, and when it goes."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from pixart.encoders.text import TextEncoder
from pixart.encoders.text_states import StoredTexts, read_head
from pixart.encoders.tokenizer import Tokenizer
from pixart.encoders.vae import Decoder
from pixart.errors import UsageError
from pixart.model.packed import pack
from pixart.model.pixart import PixArt
from pixart.sampling.memory import Memory
from pixart.sampling.model_folder import ModelFolder, load_denoiser

DEVICES = ("cpu", "cuda")


class Parts:
    """Text encoder, denoiser and decoder, as `Memory` wants them kept. Asking for one loads it if it is not there.

    Without `staged` all are loaded at once, so that a damaged one is named before the first step; with it one at a
    time, and asking for another frees the last.
    """

    def __init__(
        self, folder: ModelFolder, dtype: torch.dtype, memory: Memory, device: str = "cpu", int8: bool = False
    ):
        """`dtype` is the denoiser's; `int8` puts the products of its blocks into 8 bits, on a CPU.

        Raises PixArtError, naming the file, for damage; UsageError for no such device.
        """
        if device not in DEVICES or (device == "cuda" and not torch.cuda.is_available()):
            raise UsageError(
                f'There is no device "{device}" here; pixart draws on cpu, or on cuda where torch sees one.'
            )
        if int8 and device != "cpu":
            raise UsageError(f"int8 is for the CPU; on {device} take bfloat16.")
        self.folder, self.dtype, self.memory, self.int8 = folder, dtype, memory, int8
        self.device = torch.device(device)
        self.offload = memory.offload and device != "cpu"
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()
        if not memory.staged:
            for load in (self._load_text_encoder, self._load_denoiser, self._load_decoder):
                self._get(load)

    @property
    def text_encoder(self) -> TextEncoder | StoredTexts:
        return self._get(self._load_text_encoder)

    @property
    def denoiser(self) -> PixArt:
        return self._get(self._load_denoiser)

    @property
    def decoder(self) -> Decoder:
        return self._get(self._load_decoder)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the parts that are in memory now."""
        return tuple(self._loaded)

    @property
    def max_tokens(self) -> int:
        """Of a text; what the text encoder reads, if that is less than what the transformer was trained with."""
        if "text_encoder" in self._loaded:
            return self._loaded["text_encoder"].max_tokens
        path = self.folder.path
        return Tokenizer(path / "tokenizer", path / "text_encoder", self.folder.max_tokens).max_tokens

    @property
    def text_options(self) -> dict[str, Any]:
        """How a file of text states was made, where it is not as usual: it is in the picture too."""
        if self.memory.text_states is None:
            return {}
        head, _width = read_head(self.memory.text_states)
        made = Memory(text_encoder_8bit=head.text_encoder_8bit, text_encoder_dtype=head.text_encoder_dtype)
        return made.chosen

    def _get(self, load: Callable[[], Any]) -> Any:
        name = load.__name__.removeprefix("_load_")
        with self._lock:
            if name not in self._loaded:
                if self.memory.staged and self._loaded:
                    self._loaded.clear()
                    give_back_memory()
                self._loaded[name] = load()
            if self.offload:
                for other, part in self._loaded.items():
                    if other != name:
                        _move(part, torch.device("cpu"))
            _move(self._loaded[name], self.device)
            return self._loaded[name]

    def _load_text_encoder(self) -> TextEncoder | StoredTexts:
        memory, path = self.memory, self.folder.path
        if memory.text_states is not None:
            return StoredTexts(memory.text_states)
        return TextEncoder(
            path / "text_encoder",
            path / "tokenizer",
            self.folder.text_encoder_class,
            self.folder.max_tokens,
            dtype=memory.text_encoder_dtype,
            eight_bit=memory.text_encoder_8bit,
        )

    def _load_denoiser(self) -> PixArt:
        denoiser = load_denoiser(self.folder, self.dtype).requires_grad_(False)
        if self.device.type == "cpu":
            trim()  # what reading left behind, before packing takes as much again
            pack(denoiser, self.int8)
            for parameter in denoiser.parameters():  # what was not packed holds the whole mapped file in memory
                parameter.data = parameter.data.clone()
            trim()
        return denoiser

    def _load_decoder(self) -> Decoder:
        return Decoder(self.folder.path / "vae", dtype=self.memory.vae_dtype, way=self.memory.decode)


def give_back_memory() -> None:
    """Free what nobody uses any more, and return it to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Return freed memory to the system, which glibc does by itself for large blocks only."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def place_of(part: Any) -> torch.device | None:
    """Where the weights of a part lie; None for a file of text states, which has none."""
    module = part if isinstance(part, torch.nn.Module) else getattr(part, "model", None)
    return None if module is None else next(module.parameters()).device


def _move(part: Any, device: torch.device) -> None:
    place = place_of(part)
    if place is not None and place.type != device.type:
        (part if isinstance(part, torch.nn.Module) else part.model).to(device)
