"""The frozen autoencoder: latents to pixels, and back."""

from pathlib import Path

import numpy as np

from pixart.errors import PixArtError, reason_of


class Decoder:
    """Diffusers' AutoencoderKL from a folder, its means as latents. Holds no state between calls."""

    def __init__(self, folder: Path, *, dtype: str = "float32", tiled: bool = False):
        """As `load_autoencoder`; with `tiled` large images are decoded in overlapping tiles that are blended."""
        self.model = load_autoencoder(folder, dtype)
        self.folder = folder
        if tiled:
            self.model.enable_tiling()

    def decode(self, latents) -> np.ndarray:
        """Latent tensor (B, C, h, w) -> uint8 RGB (B, H, W, 3).

        Only `scaling_factor` is applied, and pixels are rounded, as the stock PixArt pipeline does.
        """
        import torch

        with torch.inference_mode():
            latents = latents.to(self.model.device, self.model.dtype) / self.model.config.scaling_factor
            pixels = self.model.decode(latents, return_dict=False)[0].float()
            if torch.isnan(pixels).any():
                raise not_numbers(self.folder)
            # As `to_bytes`, where the pixels are: a GPU sends a quarter of the bytes, and rounds many times faster.
            pixels = (pixels * 0.5 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
            return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def encode(self, pixels: np.ndarray):
        """uint8 RGB (H, W, 3) -> the mean of its latent, fp32 tensor (1, C, h, w), times `scaling_factor`."""
        import torch

        with torch.inference_mode():
            image = torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            image = image.to(self.model.device, self.model.dtype)
            return self.model.encode(image).latent_dist.mean.float() * self.model.config.scaling_factor


def load_autoencoder(folder: Path, dtype: str = "float32"):
    """A frozen Diffusers AutoencoderKL from the disk. PixArtError, naming the folder, where it cannot be loaded."""
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
        raise PixArtError(f"The autoencoder in {folder} cannot be loaded: {reason_of(error)}.") from error
    if info["missing_keys"]:
        raise PixArtError(f"The autoencoder in {folder} lacks weights, among them {sorted(info['missing_keys'])[0]}.")
    return model.eval().requires_grad_(False)


def not_numbers(folder: Path) -> PixArtError:
    """What to raise where an autoencoder gave NaN, which would silently become black."""
    return PixArtError(
        f"The autoencoder in {folder} gave pixels that are not numbers; copy it again, or decode in float32 if its "
        "weights are sound."
    )


def to_bytes(pixels: np.ndarray, folder: Path) -> np.ndarray:
    """Pixels (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded; `folder` is the autoencoder's, for the message.

    Raises:
        PixArtError: there is NaN among the pixels.
    """
    if np.isnan(pixels).any():
        raise not_numbers(folder)
    pixels = np.clip(pixels * np.float32(0.5) + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
    return (pixels * 255).round().astype(np.uint8)
