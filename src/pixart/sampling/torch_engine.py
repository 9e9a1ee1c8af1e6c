"""The torch engine: every model that pixart reads, in fp32 or bf16."""

import platform
from typing import Any

import numpy as np
import torch

import pixart
from pixart.checkpoints.diffusers import load_transformer
from pixart.encoders.text import TextEncoder
from pixart.encoders.vae import Decoder
from pixart.sampling.engine import Predict
from pixart.sampling.model_folder import ModelFolder


class TorchEngine:
    """The networks of a model folder in torch, on the CPU. See `pixart.sampling.engine.Engine`."""

    name = "torch"

    def __init__(self, folder: ModelFolder, dtype: str = "float32"):
        """Load from disk only; `dtype` is that of the denoiser, the rest is fp32 (the solver's x_t too)."""
        self.dtype = getattr(torch, dtype)
        self.text_encoder = TextEncoder(
            folder.path / "text_encoder", folder.path / "tokenizer", folder.text_encoder_class, folder.max_tokens
        )
        self.max_tokens = self.text_encoder.max_tokens
        self.denoiser = load_transformer(folder.path / "transformer").to(self.dtype).eval().requires_grad_(False)
        self.decoder = Decoder(folder.path / "vae")

    def read(self, text: str) -> tuple[Any, str]:
        encoded = self.text_encoder.encode(text)
        with torch.inference_mode():
            return self.denoiser.encode_text(encoded.states.to(self.dtype), encoded.mask), encoded.cut

    def pictures_at_once(self, tokens: int) -> int:
        # Matrix products of another batch size may round differently; one at a time keeps every picture's bytes.
        return 1

    def latents(self, noise: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(noise)

    def predictor(self, texts: list[Any], pictures: int, height: int, width: int) -> Predict:
        size = torch.tensor([[height, width, height / width]]) if self.denoiser.config.micro_conditions else None

        def predict(x_t: torch.Tensor, timestep: int) -> list[torch.Tensor]:
            with torch.inference_mode():
                modulation = self.denoiser.embed_timestep(torch.tensor([timestep]), size)
                x_t = x_t.to(self.dtype)
                # One pass per text, not one of two rows: with scale 1 or an empty prompt the second pass falls away,
                # and the first must not change by it.
                return [self.denoiser.denoise(x_t, modulation, text).float() for text in texts]

        return predict

    def to_numpy(self, array: torch.Tensor) -> np.ndarray:
        return array.float().numpy()

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        return self.decoder.decode(latent)

    def provenance(self) -> dict[str, Any]:
        import diffusers
        import transformers

        return {
            "engine": self.name,
            "device": "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
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
