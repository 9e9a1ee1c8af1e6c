"""The torch engine: every model that pixart reads, in fp32, bf16 or int8."""

import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import pixart
from pixart.model.pixart import PixArt, TextContext
from pixart.sampling.block_cache import BlockCache
from pixart.sampling.engine import Predict
from pixart.sampling.memory import Memory
from pixart.sampling.model_folder import ModelFolder, load_null_caption
from pixart.sampling.parts import Parts
from pixart.sampling.same_bytes import same_bytes

# More numbers than this in the tokens of one batch gain nothing on a CPU: they leave the cache, and products are large.
NUMBERS_AT_ONCE = 2**18


@dataclass(eq=False)
class ReadText:
    """Token states (1, L, T) and their mask (1, L) bool; and what the denoiser makes of them, once it was asked."""

    states: torch.Tensor
    mask: torch.Tensor
    context: TextContext | None = None


class TorchEngine:
    """The networks of a model folder in torch. See `pixart.sampling.engine.Engine`."""

    name = "torch"

    def __init__(self, folder: ModelFolder, dtype: str = "float32", memory: Memory | None = None, device: str = "cpu"):
        """Load from disk only; `dtype` is that of the denoiser, the solver's x_t is always fp32."""
        self.folder = folder
        self.int8 = dtype == "int8"  # in the products of the blocks; between them the numbers are bf16
        self.dtype = torch.bfloat16 if self.int8 else getattr(torch, dtype)
        self.memory = Memory() if memory is None else memory
        self.parts = Parts(folder, self.dtype, self.memory, device, self.int8)
        self.device = self.parts.device
        self._alike: dict[tuple[int, ...], bool] = {}  # for batches of these shapes: are they drawn as alone?

    @property
    def dtype_name(self) -> str:
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    @property
    def text_encoder(self) -> Any:
        return self.parts.text_encoder

    @property
    def denoiser(self) -> PixArt:
        return self.parts.denoiser

    @property
    def decoder(self) -> Any:
        return self.parts.decoder

    @property
    def max_tokens(self) -> int:
        return self.parts.max_tokens

    @property
    def notices(self) -> list[str]:
        """What a person should know of how this engine saves memory, and of what it found out while drawing."""
        notices = []
        if self.memory.offload and not self.parts.offload:
            notices.append("Offloading does nothing here: the model is on the CPU, and there is no GPU to take it off.")
        if not all(self._alike.values()):
            notices.append(
                f"Pictures are drawn one by one: on this {self.device.type} in {self.dtype_name} a batch would change "
                "their bytes."
            )
        return notices

    def read(self, text: str) -> tuple[ReadText, str]:
        encoded = self.text_encoder.encode(text)
        return ReadText(encoded.states, encoded.mask), encoded.cut

    def read_null(self, text: ReadText, whole: bool) -> ReadText:
        caption = load_null_caption(self.folder)[None]
        mask = torch.ones(1, caption.shape[1], dtype=torch.bool) if whole else text.mask
        more = mask.shape[1] - caption.shape[1]  # a text is padded to a multiple of 16, the null caption is not
        return ReadText(torch.nn.functional.pad(caption, (0, 0, 0, more)), mask)  # padded, or cut where it is negative

    def _context(self, text: ReadText) -> TextContext:
        """Keys and values of the text in all blocks: made once, not while reading, when the denoiser may be away."""
        if text.context is None:
            denoiser = self.denoiser
            with torch.inference_mode():
                # Its tokens only: padding would cost time, and need a mask in every block of every step.
                states = text.states[:, text.mask[0]].to(self.device, self.dtype)
                text.context = denoiser.encode_text(states, None)
        return text.context

    def pictures_at_once(self, tokens: int) -> int:
        return max(1, NUMBERS_AT_ONCE // (tokens * self.denoiser.config.width))

    def latents(self, noise: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(noise).to(self.device)

    def predictor(self, texts: list[Any], pictures: int, height: int, width: int, block_cache: int = 1) -> Predict:
        denoiser, device = self.denoiser, self.device
        told = denoiser.config.micro_conditions
        size = torch.tensor([[height, width, height / width]], device=device) if told else None
        contexts = [self._context(text) for text in texts]
        latent = (height // self.folder.vae_factor, width // self.folder.vae_factor)
        if self._together(contexts, pictures, *latent, size):
            # One pass for every text and picture; see `TextContext.together`.
            passes = [(TextContext.together(contexts), slice(None), len(contexts))]
        else:
            passes = [(text, slice(i, i + 1), 1) for text in contexts for i in range(pictures)]
        routes = [BlockCache(block_cache) if block_cache > 1 else None for _ in passes]

        def predict(x_t: torch.Tensor, timestep: int) -> list[torch.Tensor]:
            with torch.inference_mode():
                modulation = denoiser.embed_timestep(torch.tensor([timestep], device=device), size)
                x_t = x_t.to(self.dtype)
                predictions = [
                    denoiser.denoise(x_t[rows].repeat(repeats, 1, 1, 1), modulation, text, route)
                    for (text, rows, repeats), route in zip(passes, routes, strict=True)
                ]
                return list(torch.cat(predictions).float().chunk(len(contexts)))

        return predict

    def _together(
        self, texts: list[TextContext], pictures: int, rows: int, columns: int, size: torch.Tensor | None
    ) -> bool:
        """Whether to draw all of these in one batch: it is not too large, and changes no byte of any picture.

        The latter is asked once per shape, see `pixart.sampling.same_bytes`.
        """
        config, passes = self.denoiser.config, len(texts) * pictures
        if passes * (rows * columns // config.patch_size**2) * config.width > NUMBERS_AT_ONCE:
            return passes == 1
        shape = (len(texts), pictures, rows, columns)
        if passes > 1 and shape not in self._alike:
            self._alike[shape] = same_bytes(self.denoiser, texts, pictures, rows, columns, size)
        return self._alike.get(shape, True)

    def to_numpy(self, array: torch.Tensor) -> np.ndarray:
        return array.float().cpu().numpy()

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        return self.decoder.decode(latent)

    def provenance(self) -> dict[str, Any]:
        import diffusers
        import transformers

        return {
            "engine": self.name,
            "device": self.device.type,
            "dtype": self.dtype_name,
            "memory": self.memory.chosen | self.parts.text_options,
            "threads": torch.get_num_threads(),
            "versions": {
                "pixart": pixart.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
        }
