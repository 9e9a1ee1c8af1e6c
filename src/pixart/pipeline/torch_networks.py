"""torch: the networks of any model that pixart reads, on any device, and when each of them is in memory."""

import ctypes
import functools
import gc
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixart.checkpoints.adapters import Lora
from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.model_folder import ModelFolder, load_denoiser, load_null_caption, text_hashes
from pixart.encoders.text import EncodedText, TextEncoder
from pixart.encoders.text_states import StoredTexts, TextCache, read_head
from pixart.encoders.tokenizer import Tokenizer
from pixart.encoders.vae import Decoder
from pixart.errors import PixArtError, reason_of
from pixart.model.adapters import attach, detach
from pixart.model.controlnet import build as build_controlnet
from pixart.model.pixart import Block, PixArt, TextContext
from pixart.progress import Progress
from pixart.runtime.compiled import compile_blocks
from pixart.runtime.device import Device, Precision, cuda_free, find_cpu
from pixart.runtime.memory import PLAIN, Memory
from pixart.runtime.plan import LARGE, decoder_dtype, encoder_precision, images_to_decode, rows_at_once
from pixart.runtime.storage import compute_in
from pixart.weights import OnBytes, read_headers

MB = 1_000_000
KEPT_TEXTS = 64  # whose states are remembered


@dataclass(eq=False)
class Text:
    """Token states (1, L, T) and their mask (1, L) bool; and what the denoiser makes of them, once it was used."""

    states: torch.Tensor
    mask: torch.Tensor
    context: TextContext | None = None


class TorchNetworks:
    """Text encoder, denoiser and decoder, kept as `Memory` says. See `pixart.pipeline.networks.Networks`.

    Without `staged` all are loaded at once, so that a damaged one is named before the first step; with it one at a
    time, when it is used, and loading another frees the last.
    """

    name = "torch"

    def __init__(
        self,
        folder: ModelFolder,
        device: Device,
        precision: Precision,
        memory: Memory = PLAIN,
        progress: Progress | None = None,
        control: ControlNetFile | None = None,
        *,
        compile: bool = False,
    ):
        """Load from disk only; `progress` shows what is read. Raises PixArtError, naming the file, for damage."""
        self.compile = compile
        self.folder, self.place, self.precision, self.memory = folder, device, precision, memory
        self.progress, self.control = progress, control
        self.device = torch.device(device.type, device.index) if device.type == "cuda" else torch.device(device.type)
        self.arithmetic = getattr(torch, precision.arithmetic)  # of the denoiser; the solvers' x_t is always fp32
        self._loaded: dict[str, Any] = {}
        self.loras: tuple[Lora, ...] = ()
        self._lock = threading.Lock()
        self._batch: tuple[tuple[Text, ...], TextContext] | None = None  # the texts of the last pass, as one context
        self._encoded: dict[str, EncodedText] = {}  # the latest texts
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
        """The names of the networks that are in memory now."""
        return tuple(self._loaded)

    def set_loras(self, loras: Sequence[Lora]) -> None:
        self.loras, self._batch = tuple(loras), None
        if self.compile:
            torch.compiler.reset()  # graphs do not see that layers have other adapters
        self._encoded.clear()
        for name, network in self._loaded.items():
            self._adapt(name, network)

    def hold(self, memory: Memory) -> None:
        """Hold the networks that are loaded in another way from their next use on; how texts are read stays."""
        self.memory = replace(self.memory, staged=memory.staged, offload=memory.offload, decode=memory.decode)
        if "decoder" in self._loaded and memory.decode == "tiled":
            self._loaded["decoder"].model.enable_tiling()
        if memory.staged:
            self._loaded.clear()
            self._batch = None
            release_memory()

    def _adapt(self, name: str, network: Any) -> None:
        """Put the adapters onto a network, in place of those that were on it."""
        model = network if name == "denoiser" else getattr(network, "model", None)
        if name == "decoder" or model is None:  # which no adapter changes, or a file of text states
            return
        detach(model)
        for lora in self.loras:
            attach(model, lora.adapter.layers if name == "denoiser" else lora.adapter.text_layers, lora.strength)

    @property
    def max_tokens(self) -> int:
        if "text_encoder" in self._loaded:
            return self._loaded["text_encoder"].max_tokens
        return Tokenizer(self.folder.tokenizer, self.folder.text_encoder, self.folder.max_tokens).max_tokens

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode texts in one pass over the file of a streamed text encoder, but for those that are cached."""
        streamed = self.memory.text_encoder_mode == "streamed"
        adapted = any(lora.adapter.text_layers for lora in self.loras)
        cache = None if adapted else self._text_cache  # which is of the text encoder as it is
        if self.memory.text_states is not None or not (streamed or cache):
            return
        new = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        cached = {text: cache.read(text) for text in new} if cache else {}
        self._encoded |= {text: encoded for text, encoded in cached.items() if encoded}
        new = [text for text in new if text not in self._encoded]
        if new:
            encoder = self.text_encoder
            size = encoder.file_bytes * -(-len(new) // encoder.at_once)
            with self._reading("text encoder", size) as encoder.on_bytes:
                self._encoded |= zip(new, encoder.encode_all(new), strict=True)
        for text in new if cache else ():
            cache.write(text, self._encoded[text])
        for old in list(self._encoded)[: -max(KEPT_TEXTS, len(texts))]:
            del self._encoded[old]

    @functools.cached_property
    def _text_cache(self) -> TextCache | None:
        memory, folder = self.memory, self.folder
        if memory.text_cache is None:
            return None
        precision = encoder_precision(self.precision, memory.text_encoder_dtype)
        how = {"storage": precision.storage, "arithmetic": precision.arithmetic, "device": self.place.type}
        how |= {"held": f"{memory.text_encoder_mode} {memory.text_encoder_8bit}", "tokens": str(folder.max_tokens)}
        return TextCache(memory.text_cache, text_hashes(folder) | how)

    def encode(self, text: str) -> tuple[Text, str]:
        self.prepare([text])
        encoded = self._encoded.get(text) or self.text_encoder.encode(text)
        return Text(encoded.states, encoded.mask), encoded.cut

    def weighted(self, text: Text, weights: Sequence[float]) -> Text:
        states = text.states.clone()
        states[0, : len(weights)] *= torch.tensor(weights, device=states.device)[:, None]
        return Text(states, text.mask)

    def unconditional(self, text: Text, full: bool) -> Text:
        caption = load_null_caption(self.folder)[None]
        mask = torch.ones(1, caption.shape[1], dtype=torch.bool) if full else text.mask
        more = mask.shape[1] - caption.shape[1]  # a text is padded to a multiple of 16, the null caption is not
        return Text(torch.nn.functional.pad(caption, (0, 0, 0, more)), mask)  # padded, or cut where it is negative

    def latents(self, noise: np.ndarray) -> torch.Tensor:
        return self._send(torch.from_numpy(noise))

    @torch.inference_mode()
    def denoise(
        self,
        x_t: torch.Tensor,
        timesteps: Sequence[float],
        texts: Sequence[Text],
        images: Sequence[int],
        controls: Sequence[Any] = (),
    ) -> torch.Tensor:
        denoiser = self.denoiser
        factor = self.folder.vae_factor
        height, width = x_t.shape[2] * factor, x_t.shape[3] * factor
        size = None
        if denoiser.config.micro_conditions:
            size = self._send(torch.tensor([[height, width, height / width]]))
        try:
            rows = self._send(torch.tensor(images))
            modulation = denoiser.embed_timestep(self._send(torch.tensor(timesteps))[rows], size)
            step = x_t[rows].to(self.arithmetic), modulation, self._together(texts)
            if self.control is None:
                return denoiser.denoise(*step).float()
            return denoiser.control.denoise(denoiser, *step, *self._controls(x_t, rows, controls)).float()
        except torch.OutOfMemoryError as error:
            release_memory()
            raise MemoryError(str(error)) from None
        except torch._dynamo.exc.TorchDynamoException as error:
            raise PixArtError(f"torch.compile fails here: {reason_of(error)}; leave --compile out.") from None

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A small tensor on the device. From pinned memory, so that nobody waits for the steps that are under way."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _controls(self, x_t: torch.Tensor, rows: torch.Tensor, controls: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Latents and scales of the rows; nothing is added to those of an image without control."""
        if not controls:
            return (None,)
        latents = torch.cat([torch.zeros_like(x_t[:1]) if each is None else each.latent for each in controls])
        scales = self._send(torch.tensor([0.0 if each is None else each.scale for each in controls]))
        return latents[rows].to(self.arithmetic), scales[rows].to(self.arithmetic)[:, None, None]

    def _together(self, texts: Sequence[Text]) -> TextContext:
        """The texts of a pass as one context, which the next pass most likely uses again."""
        key = tuple(texts)
        if self._batch is None or self._batch[0] != key:
            length = self.folder.max_tokens if self.compile else None
            context = TextContext.together([self._context(text) for text in texts], length)
            if context.mask is not None:  # once, and not in every block
                scores = torch.zeros(context.mask.shape, dtype=self.arithmetic, device=self.device)
                context = replace(context, mask=scores.masked_fill_(~context.mask, float("-inf")))
            self._batch = (key, context)
        return self._batch[1]

    def _context(self, text: Text) -> TextContext:
        """Keys and values of the text in all blocks: made once, when the denoiser is in memory."""
        if text.context is None:
            # Its tokens only: padding would cost time, and a mask in every block of every step.
            states = text.states[:, text.mask[0]].to(self.device, self.arithmetic)
            denoiser = self.denoiser
            by_both = self.control is not None
            text.context = (
                denoiser.control.encode_text(denoiser, states, None) if by_both else denoiser.encode_text(states, None)
            )
        return text.context

    def images_at_once(self, rows: int, height: int, width: int) -> int:
        tokens = height * width // self.folder.size_multiple**2
        number_bytes = torch.finfo(self.arithmetic).bits // 8
        config = self.denoiser.config
        return max(1, rows_at_once(self._free(), tokens=tokens, width=config.width, number_bytes=number_bytes) // rows)

    def _free(self) -> Device:
        """The device with the memory that is free now."""
        if self.place.type == "cuda":
            return replace(self.place, free_bytes=cuda_free(self.place.index))
        return self.place if self.place.type == "mps" else find_cpu()

    def to_numpy(self, array: torch.Tensor) -> np.ndarray:
        return array.float().cpu().numpy()

    def decode(self, latents: torch.Tensor) -> list[np.ndarray]:
        decoder = self.decoder
        config, number_bytes = decoder.model.config, torch.finfo(decoder.model.dtype).bits // 8
        pixels = latents.shape[2] * latents.shape[3] * self.folder.vae_factor**2
        channels = config.block_out_channels[0]
        count = images_to_decode(self._free(), pixels=pixels, channels=channels, number_bytes=number_bytes)
        while True:
            try:
                return [image for part in latents.split(count) for image in decoder.decode(part)]
            except torch.OutOfMemoryError as error:
                release_memory()
                if count == 1:
                    raise MemoryError(str(error)) from None
                count //= 2

    def encode_image(self, pixels: np.ndarray) -> torch.Tensor:
        try:
            return self.decoder.encode(pixels).to(self.device)
        except torch.OutOfMemoryError as error:
            release_memory()
            raise MemoryError(str(error)) from None

    def provenance(self) -> dict[str, Any]:
        import diffusers
        import transformers

        return {
            "engine": self.name,
            "device": self.place.type,
            "dtype": self.precision.storage,
            "arithmetic": self.precision.arithmetic,
            "memory": self.memory.chosen | self._text_options,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
        }

    @property
    def _text_options(self) -> dict[str, Any]:
        """How a file of text states was made, where it is not as usual: it decides pixels too."""
        if self.memory.text_states is None:
            return {}
        head, _width = read_head(self.memory.text_states)
        return Memory(text_encoder_8bit=head.text_encoder_8bit, text_encoder_dtype=head.text_encoder_dtype).chosen

    def _get(self, load: Callable[[], Any]) -> Any:
        """A network, loaded if it is not in memory, on the device; the others leave as `Memory` says."""
        name = load.__name__.removeprefix("_load_")
        with self._lock:
            if name not in self._loaded:
                if self.memory.staged and self._loaded:
                    self._loaded.clear()
                    self._batch = None
                    release_memory()
                self._loaded[name] = load()
                self._adapt(name, self._loaded[name])
            if self.memory.offload:
                for other, network in self._loaded.items():
                    if other != name:
                        _move(network, torch.device("cpu"))
            _move(self._loaded[name], self.device)
            return self._loaded[name]

    @contextmanager
    def _reading(self, what: str, size: int) -> Iterator[OnBytes | None]:
        """Show for the block how many of `size` bytes have been read; the block calls what it is given."""
        if self.progress is None or size < LARGE:
            yield None
            return
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            self.progress.update(done // MB)

        with self.progress.aside(f"reading the {what}", size // MB, unit="MB"):
            yield on_bytes

    def _file_bytes(self, paths: Iterable[Path]) -> int:
        return sum(stored.size for stored in read_headers(paths).values())

    def _load_text_encoder(self) -> TextEncoder | StoredTexts:
        memory, folder = self.memory, self.folder
        if memory.text_states is not None:
            return StoredTexts(memory.text_states)
        precision = encoder_precision(self.precision, memory.text_encoder_dtype)
        streamed = memory.text_encoder_mode == "streamed"
        with self._reading("text encoder", 0 if streamed else self._file_bytes(folder.text_files)) as on_bytes:
            return TextEncoder(
                folder.text_encoder,
                folder.tokenizer,
                folder.text_encoder_class,
                folder.max_tokens,
                dtype=precision.storage,
                arithmetic=precision.arithmetic,
                device="cpu" if memory.offload else str(self.device),
                eight_bit=memory.text_encoder_8bit,
                streamed=streamed,
                on_bytes=on_bytes,
            )

    def _load_denoiser(self) -> PixArt:
        storage, device = getattr(torch, self.precision.storage), "cpu" if self.memory.offload else self.device
        files = [path for path in self.folder.weights if path.parent == self.folder.transformer_folder]
        with self._reading("denoiser", self._file_bytes(files)) as on_bytes:
            denoiser = load_denoiser(self.folder, storage, device, on_bytes)
        if self.control is not None:  # a part of it, so that both are moved and converted together
            state = {name: tensor.to(device, storage) for name, tensor in self.control.state.items()}
            denoiser.add_module("control", build_controlnet(denoiser.config, state, self.control.copies))
        denoiser.requires_grad_(False)
        if self.precision.arithmetic != self.precision.storage:
            compute_in(denoiser, self.arithmetic)
        if self.compile:
            compile_blocks(module for module in denoiser.modules() if isinstance(module, Block))
        return denoiser

    def _load_decoder(self) -> Decoder:
        dtype = decoder_dtype(self.place, self.precision, self.memory.vae_dtype)
        decoder = Decoder(self.folder.path / "vae", dtype=dtype, tiled=self.memory.decode == "tiled")
        if self.device.type == "cuda":  # whose convolutions are fastest so
            decoder.model.to(memory_format=torch.channels_last)
        return decoder


def release_memory() -> None:
    """Free what nobody uses any more, and return it to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc returns large blocks only by itself
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def device_of(network: Any) -> torch.device | None:
    """Where the weights of a network lie; None for one that keeps them in a file."""
    if isinstance(network, TextEncoder):
        return None if network.streamed else network.device
    module = network if isinstance(network, torch.nn.Module) else getattr(network, "model", None)
    return None if module is None else next(module.parameters()).device


def _move(network: Any, device: torch.device) -> None:
    """Move the weights. What has come from the CPU stays there too, pinned, so that going back copies nothing."""
    place = device_of(network)
    if place is None or place.type == device.type:
        return
    module = network if isinstance(network, torch.nn.Module) else network.model
    for tensor in chain(module.parameters(), module.buffers()):
        if device.type == "cpu":
            tensor.data = tensor.at_rest if hasattr(tensor, "at_rest") else tensor.data.to(device)
        else:
            if not hasattr(tensor, "at_rest"):
                tensor.at_rest = tensor.data.pin_memory() if device.type == "cuda" else tensor.data
            tensor.data = tensor.at_rest.to(device, non_blocking=True)
    if isinstance(network, TextEncoder):
        network.device = device
