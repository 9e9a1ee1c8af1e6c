"""The autoencoder: pixels to latents and back, on any images."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixart.data.bucket_batches import in_order
from pixart.data.dataset import ALLOWED
from pixart.data.encode import load_vae
from pixart.data.image_rows import ImageRows, to_unit
from pixart.encoders.autoencoder import (
    AutoencoderSizes,
    build,
    fold_statistics,
    moments,
    reconstruction_psnr,
    scaled,
)
from pixart.errors import UsageError
from pixart.files import replacing
from pixart.training.batches import Phase, Source
from pixart.training.recipe import Recipe
from pixart.training.rows import RowStreams
from pixart.training.start import vae_folder_of
from pixart.training.tasks.text_to_image import check_shares

SCALES = (1.0, 0.75, 0.5)  # of a latent that is turned or shrunk
MEASURED, FOLDED = 128, 1024  # images to validate on, and to take the scale of the latents from


@dataclass
class Autoencoder:
    """Train a KL autoencoder on the images of `data`.

    It is a fresh one of the sizes `network`, or that of `init`: a finished run, a model folder or an autoencoder's own.
    The loss is L1, `squared` times L2, `gradient` times the L1 of differences between neighbouring pixels (crisp
    edges) and `kl` times the KL term. `anchor` holds the latents near those of `init`, so that a denoiser that learned
    these has little to learn anew. Of the share `equivariance` of the images, the latent is turned by quarters and
    shrunk, and has to decode into the image turned and shrunk alike (EQ-VAE, arXiv 2502.09509, section 3.2).
    """

    data: Path | None = None
    init: Path | None = None
    network: AutoencoderSizes = field(default_factory=AutoencoderSizes)
    squared: float = 5.0
    gradient: float = 1.0
    kl: float = 1e-5
    anchor: float = 0.0
    equivariance: float = 0.0
    validation: int = MEASURED
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "equivariance", "allow_dropped")
        weights = (self.squared, self.gradient, self.kl, self.anchor)
        if not all(0 <= weight < math.inf for weight in weights):
            raise UsageError(f"autoencoder: squared, gradient, kl and anchor {weights} must be 0 or more.")
        if self.anchor and not self.init:
            raise UsageError("autoencoder: anchor holds the latents near those of init; give it, or leave anchor out.")

    def build(self, recipe: Recipe, device: torch.device) -> "Reconstruction":
        self.images = open_images(self, recipe)
        torch.manual_seed(recipe.loop.seed)
        vae = load_vae(vae_folder_of(self.init)) if self.init else build(self.network)
        vae.to(memory_format=torch.contiguous_format)
        self.frozen = copy.deepcopy(vae).eval().requires_grad_(False).to(device) if self.anchor else None
        self.last_size = recipe.phases[-1].size
        return Reconstruction(vae.train().requires_grad_(True), self.equivariance)

    def source(self, phase: Phase) -> Source:
        return image_source(self.images, phase, self.validation)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        pixels = to_unit(batch["pixels"])
        groups, mean, logvar = model(pixels, batch["rng"])
        losses = self.kl * image_mean(0.5 * (mean.square() + logvar.exp() - 1.0 - logvar))
        if self.frozen is not None:
            losses = losses + self.anchor * image_mean((mean - moments(self.frozen, pixels)[0]).square())
        for rows, decoded, true in groups:
            terms = pixel_losses(decoded, true, self.squared, self.gradient)
            losses = losses.index_add(0, rows.to(losses.device), terms)
        return losses

    @torch.no_grad()
    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        device, found = next(model.parameters()).device, {"validation_psnr": [], "validation_turned_psnr": []}
        for pixels in validation_pixels(self.images, self.last_size, self.validation):
            pixels = to_unit(pixels.to(device))
            found["validation_psnr"].append(reconstruction_psnr(model.vae, pixels))
            if self.equivariance and all(side % 16 == 0 for side in pixels.shape[-2:]):
                found["validation_turned_psnr"].append(reconstruction_psnr(model.vae, pixels, turned=True))
        return {name: torch.cat(values).mean().item() for name, values in found.items() if values}

    @torch.no_grad()
    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        vae = copy.deepcopy(model.vae)
        if not self.init:  # one that was trained before keeps the scale of its latents
            total, squares, count = 0.0, 0.0, 0
            rows = np.arange(len(self.images))
            chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(FOLDED, len(rows))).astype(int))]
            for part in in_order(self.images.buckets(self.last_size)[chosen], 16):
                mean, _ = moments(vae, to_unit(self.images.read(chosen[part.indices], self.last_size)))
                flat = mean.double().transpose(0, 1).flatten(1)
                total, squares, count = total + flat.sum(1), squares + flat.square().sum(1), count + flat.shape[1]
            mean = total / count
            fold_statistics(vae, mean.float(), (squares / count - mean.square()).clamp_min(1e-12).sqrt().float())
        with replacing(folder / "vae") as partial:
            vae.save_pretrained(partial)
        return folder / "vae"


class Reconstruction(torch.nn.Module):
    """The autoencoder as the loop trains it: pixels in [-1, 1] -> what is decoded, and the posterior."""

    def __init__(self, vae: torch.nn.Module, equivariance: float = 0.0):
        super().__init__()
        self.vae, self.equivariance = vae, equivariance

    def forward(self, pixels: Tensor, rng: RowStreams) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, Tensor]:
        """Groups of row numbers (N,), decoded and true pixels (N, 3, h, w); mean and logvar (B, C, H/8, W/8)."""
        mean, logvar = self.vae.quant_conv(self.vae.encoder(pixels)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), np.float32)).to(mean.device)
        latent = mean + noise * torch.exp(0.5 * logvar)
        groups = [(torch.arange(len(latent)), latent, pixels)]
        if self.equivariance:
            groups = transformed(latent, pixels, self.equivariance, rng)
        decode = self.vae.decoder
        return [(rows, decode(self.vae.post_quant_conv(z)).float(), true) for rows, z, true in groups], mean, logvar


def transformed(latent: Tensor, pixels: Tensor, share: float, rng: RowStreams) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Row numbers, latents and pixels by size: the share turned by quarters and scaled alike, (N,), (N, C, h, w) each.

    Images that are not square are turned by halves, so that those of one size have one shape.
    """
    chosen, turn, scale = rng.random((len(latent), 3)).T
    quarters = 4 if latent.shape[-1] == latent.shape[-2] else 2
    turns = np.where(chosen < share, (quarters * turn).astype(int) * (4 // quarters), 0)
    scales = np.where(chosen < share, (len(SCALES) * scale).astype(int), 0)
    groups = []
    for index in sorted(set(scales)):
        rows = np.flatnonzero(scales == index)
        sides = [round(side * SCALES[index]) for side in latent.shape[-2:]]
        small, true = (torch.stack([part[i].rot90(int(turns[i]), (1, 2)) for i in rows]) for part in (latent, pixels))
        if SCALES[index] != 1:
            small = scaled(small, sides)
            true = scaled(true, [8 * side for side in sides])
        groups.append((torch.from_numpy(rows), small, true))
    return groups


def pixel_losses(decoded: Tensor, true: Tensor, squared: float, gradient: float) -> Tensor:
    """L1, `squared` times L2 and `gradient` times L1 of the differences of neighbouring pixels, of each image (N,)."""
    error = decoded - true
    edges = image_mean((error[..., 1:] - error[..., :-1]).abs()) + image_mean(
        (error[..., 1:, :] - error[..., :-1, :]).abs()
    )
    return image_mean(error.abs()) + squared * image_mean(error.square()) + gradient * edges


def image_mean(values: Tensor) -> Tensor:
    """(N, C, h, w) -> (N,)"""
    return values.mean(dim=(1, 2, 3))


def open_images(task: Any, recipe: Recipe, *, captions: bool = False) -> ImageRows:
    """The images of `task.data`. UsageError where it or the size of a phase is not given."""
    if task.data is None:
        raise UsageError("This task needs data = PATH, a folder or file with images.")
    if any(phase.size is None for phase in recipe.phases):
        raise UsageError("Each phase of this task needs size = PIXELS, the base size of its images.")
    return ImageRows(task.data, captions=captions, allow_dropped=task.allow_dropped)


def image_source(images: ImageRows, phase: Phase, validation: int, *, captions: bool = False) -> Source:
    """The rows of a phase: `pixels` (B, 3, H, W) uint8, crops of `phase.crop` where it is given, and `captions`."""
    rows, _ = images.split(validation)
    bucket = images.buckets(phase.size)
    if phase.crop:  # all crops have one shape, but the image must be large enough for one
        bucket = bucket * 0
    read = _ReadImages(images, phase.size, phase.crop, captions)
    return Source(rows, bucket[rows], images.weights[rows], read, images.fingerprint)


@dataclass(frozen=True)
class _ReadImages:
    """What a source calls, also in other processes."""

    images: ImageRows
    size: int
    crop: int | None
    captions: bool

    def __call__(self, rows: np.ndarray, rng: RowStreams) -> dict[str, Any]:
        chance = rng.random((len(rows), 3))
        if self.crop:
            parts = [self.images.read(rows[i : i + 1], self.size)[0] for i in range(len(rows))]
            places = zip(parts, chance[:, :2], strict=True)
            pixels = torch.stack([_crop(part, self.crop, place) for part, place in places])
        else:
            pixels = self.images.read(rows, self.size)
        batch = {"pixels": pixels, "keys": self.images.keys(rows)}
        return batch | ({"captions": self.images.captions(rows, chance[:, 2])} if self.captions else {})


def _crop(image: Tensor, side: int, place: np.ndarray) -> Tensor:
    """A square of an image (3, H, W), which is enlarged where its bucket is narrower."""
    if min(image.shape[1:]) < side:
        size = [max(side, round(length * side / min(image.shape[1:]))) for length in image.shape[1:]]
        image = scaled(image[None].float(), size)[0].round().clamp(0, 255).byte()
    top, left = (int(at * (length - side + 1)) for at, length in zip(place, image.shape[1:], strict=True))
    return image[:, top : top + side, left : left + side]


def validation_pixels(images: ImageRows, size: int, validation: int):
    """Pixels of the validation images, uint8 (N, 3, H, W), a bucket at a time."""
    _, rows = images.split(validation)
    if len(rows):
        for part in in_order(images.buckets(size)[rows], 16):
            yield images.read(rows[part.indices], size)
