"""The frozen autoencoder: latents to pixels."""

from pathlib import Path

import numpy as np

from pixart.errors import PixArtError


class Decoder:
    """Diffusers' AutoencoderKL from a folder, used from latents to pixels only. Holds no state between calls."""

    def __init__(self, folder: Path, *, dtype: str = "float32", way: str = "whole"):
        """Load from disk only; `dtype` and `way` are `vae_dtype` and `decode` of `pixart.sampling.memory.Memory`.

        Raises PixArtError, naming the folder, where it does not hold what it should.
        """
        import torch
        from diffusers import AutoencoderKL

        try:
            model, info = AutoencoderKL.from_pretrained(
                folder,
                torch_dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PixArtError(f"The autoencoder in {folder} cannot be loaded: {reason}") from error
        if info["missing_keys"]:
            raise PixArtError(
                f"The autoencoder in {folder} lacks weights, among them {sorted(info['missing_keys'])[0]}."
            )
        self.model = model.eval().requires_grad_(False)
        self.folder, self.way = folder, way
        if way == "tiled":
            self.model.enable_tiling()

    def decode(self, latent) -> np.ndarray:
        """Latent tensor (1, C, h, w) -> uint8 RGB (H, W, 3). One picture at a time, so that its bytes are its own.

        Only `scaling_factor` is applied, and pixels are rounded, as the stock PixArt pipeline does.
        """
        import torch

        from pixart.encoders.strips import decode_in_strips

        with torch.inference_mode():
            latent = latent.to(self.model.device, self.model.dtype) / self.model.config.scaling_factor
            if self.way == "sequential":
                pixels = decode_in_strips(self.model, latent)
            else:
                pixels = self.model.decode(latent, return_dict=False)[0]
            pixels = (pixels.float() * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).cpu().numpy()
        check_pixels(pixels, self.folder)
        return (pixels * 255).round().astype(np.uint8)


def check_pixels(pixels: np.ndarray, folder: Path) -> None:
    """PixArtError if there is NaN among the pixels, which would become black without a word."""
    if np.isnan(pixels).any():
        raise PixArtError(
            f"The autoencoder in {folder} gave pixels that are not numbers; copy it again, or decode in fp32 if its "
            "weights are whole."
        )
