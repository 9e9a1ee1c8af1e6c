"""The decoder's own training: it learns to decode what the denoiser generates, and every latent stays what it was.

An autoencoder's decoder has seen nothing but its encoder's latents. A generated latent is not quite one of these, and
the difference shows as a weave on flat areas and as soft edges. So a share of the latents here is generated: noised to
a level where the image is still the same image, and denoised with guidance as sampling would (SDEdit, arXiv
2108.01073). The decoder has to give the true image for them. The encoder does not change, so denoisers and features
stay valid.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.folder import write_with_vae
from pixart.checkpoints.model_folder import load_denoiser, open_model_folder
from pixart.data.bucket_batches import in_order
from pixart.data.dataset import ALLOWED
from pixart.data.encode import autocast, encode_captions, load_text_encoder, load_vae
from pixart.data.features import pad, weights_id
from pixart.data.image_rows import to_unit
from pixart.diffusion import flow
from pixart.encoders import autoencoder
from pixart.errors import UsageError
from pixart.files import replacing
from pixart.training.batches import Phase, Source
from pixart.training.recipe import Recipe
from pixart.training.start import model_folder_of, vae_folder_of
from pixart.training.tasks.autoencoder import image_source, open_images, pixel_losses
from pixart.training.tasks.distillation import guided
from pixart.training.tasks.text_to_image import check_shares

MEASURED_LEVEL = 0.4  # the noise level from which latents are generated for validation


@dataclass
class DecoderTuning:
    """Train the decoder of a model's autoencoder on the images and captions of `data`.

    `model`: a model folder, or the run that makes it; `autoencoder`: another one with the same encoder. Of the latents,
    `share` are generated, from noise levels up to `highest_level` (0 to 1) in `steps` Euler steps. `squared` and
    `gradient` weigh the loss as in `Autoencoder`.
    """

    data: Path | None = None
    model: str | None = None
    autoencoder: Path | None = None
    share: float = 0.5
    highest_level: float = 0.5
    steps: int = 2
    guidance_scale: float = 4.5
    squared: float = 5.0
    gradient: float = 1.0
    validation: int = 64
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "share", "highest_level", "allow_dropped")
        if not 1 <= self.steps <= 50 or not 0 <= self.guidance_scale <= 50 or not self.highest_level > 0:
            raise UsageError(
                f"decoder: steps {self.steps} must be from 1 to 50, guidance_scale {self.guidance_scale} from 0 to 50, "
                f"highest_level {self.highest_level} above 0."
            )
        if not 0 <= self.squared < math.inf or not 0 <= self.gradient < math.inf:
            raise UsageError(f"decoder: squared {self.squared} and gradient {self.gradient} must be 0 or more.")

    def build(self, recipe: Recipe, device: torch.device) -> "Decoder":
        if self.model is None:
            raise UsageError("decoder: give model, the folder of the model whose decoder is trained.")
        self.recipe = recipe
        self.images = open_images(self, recipe, captions=True)
        self.folder = open_model_folder(model_folder_of(self.model))
        if not self.folder.scheduler.get("use_flow_sigmas"):
            raise UsageError(f"{self.folder.path} predicts eps; this task needs a model that predicts a velocity.")
        path = self.folder.path
        vae_folder = vae_folder_of(self.autoencoder) if self.autoencoder else path / "vae"
        self.vae = load_vae(vae_folder, device).to(memory_format=torch.contiguous_format)
        if self.autoencoder and not _same_encoder(self.vae.cpu(), load_vae(path / "vae")):
            raise UsageError(
                f"The encoder of {self.autoencoder} differs from that of {path}; their latents are others."
            )
        self.scaling = self.vae.to(device).config.scaling_factor or 1.0
        self.network = load_denoiser(self.folder).to(device).eval().requires_grad_(False)
        parts = path / "text_encoder", path / "tokenizer", device
        self.encoder = load_text_encoder(*parts, max_tokens=self.folder.max_tokens)
        self.identity = f"{weights_id(path / 'transformer')} {weights_id(vae_folder)}"
        self.null_text = self._text([""])[0][0]
        return Decoder(self.vae).train().requires_grad_(True)

    def source(self, phase: Phase) -> Source:
        source = image_source(self.images, phase, self.validation, captions=True)
        return Source(source.rows, source.bucket, source.weight, source.read, f"{source.fingerprint} {self.identity}")

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        pixels, rng = to_unit(batch["pixels"]), batch["rng"]
        count, device = len(pixels), pixels.device
        mean, std = autoencoder.moments(self.vae, pixels)
        latent = mean + std * torch.from_numpy(rng.standard_normal(tuple(mean.shape))).to(device)
        chosen = np.flatnonzero(rng.random(count) < self.share)
        levels = torch.from_numpy(rng.random(count).astype(np.float32)).to(device) * self.highest_level
        eps = torch.from_numpy(rng.standard_normal(tuple(mean.shape))).to(device)
        if len(chosen):
            captions, rows = [batch["captions"][i] for i in chosen], torch.from_numpy(chosen).to(device)
            latent = latent.index_copy(0, rows, self._generated(latent[rows], levels[rows], eps[rows], captions))
        return pixel_losses(model(latent), pixels, self.squared, self.gradient)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        """PSNR in dB of validation images, decoded from the encoder's latents and from generated ones."""
        device, size = next(model.parameters()).device, self.recipe.phases[-1].size
        _, rows = self.images.split(self.validation)
        found = {"validation_psnr": [], "validation_generated_psnr": []}
        for part in in_order(self.images.buckets(size)[rows], 16) if len(rows) else []:
            chosen, rng = rows[part.indices], np.random.default_rng(0)
            pixels = to_unit(self.images.read(chosen, size).to(device))
            latent = autoencoder.moments(self.vae, pixels)[0]
            eps = torch.from_numpy(rng.standard_normal(tuple(latent.shape), np.float32)).to(device)
            levels = torch.full((len(latent),), MEASURED_LEVEL, device=device)
            captions = self.images.captions(chosen, np.zeros(len(chosen)))
            with autocast(self.recipe.loop.precision, device):
                generated = self._generated(latent, levels, eps, captions)
            found["validation_psnr"].append(autoencoder.psnr(model(latent), pixels))
            found["validation_generated_psnr"].append(autoencoder.psnr(model(generated), pixels))
        return {name: torch.cat(values).mean().item() for name, values in found.items() if values}

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        # The averaged decoder in the frozen autoencoder, which from here on is only written.
        vae = self.vae.cpu()
        vae.post_quant_conv, vae.decoder = model.post_quant_conv, model.decoder
        with replacing(folder / "vae") as partial:
            vae.save_pretrained(partial)
        return write_with_vae(self.folder.path, folder / "model", vae, torch.float16)

    @torch.no_grad()
    def _generated(self, latent: Tensor, levels: Tensor, eps: Tensor, captions: list[str]) -> Tensor:
        """Latents (B, C, h, w) noised with `eps` to `levels` (B,), and back by Euler's method with guidance."""
        text, mask = self._text(captions)
        x_t = flow.add_noise(latent * self.scaling, eps, levels)
        denoise = guided(self.network, self.null_text, self.guidance_scale, x_t, text, mask)
        for step in range(self.steps):
            velocity = denoise(x_t, 1000 * levels * (1 - step / self.steps))
            x_t = x_t - (levels / self.steps).view(-1, 1, 1, 1) * velocity
        return x_t / self.scaling

    def _text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        states, _ = encode_captions(self.encoder, captions)
        device = self.encoder.model.device
        text, mask = pad(states) if captions != [""] else (states[0][None], torch.ones(1, len(states[0])))
        return text.float().to(device), mask.to(device)


class Decoder(torch.nn.Module):
    """What is trained: latents (B, C, h, w) -> pixels (B, 3, 8h, 8w) fp32, about -1 to 1."""

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent)).float()


def _same_encoder(vae: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether both make the same latents, but for what half precision takes from the weights."""
    ours, theirs = ([*part.encoder.parameters(), *part.quant_conv.parameters()] for part in (vae, other))
    return [p.shape for p in ours] == [p.shape for p in theirs] and all(
        torch.allclose(one, two, rtol=0.01, atol=1e-3) for one, two in zip(ours, theirs, strict=True)
    )
