"""What the recipe of a decoder brings to the loop: latents, their pictures and captions, and who draws them again."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.fast import weights_hash
from pixart.checkpoints.folder import write_with_vae
from pixart.checkpoints.model_folder import ModelFolder, load_denoiser, open_model_folder
from pixart.data import features
from pixart.data.encode import load_vae
from pixart.data.imagefolder import read_split
from pixart.encoders import autoencoder
from pixart.errors import UsageError
from pixart.training.batches import TextCondition, check_batch_sizes, digest, phase_at, weights_of_splits
from pixart.training.decoding import Decoder, DecoderRecipe, Drawer, decoding_loss
from pixart.training.precision import autocast
from pixart.training.rows import WHOLE, RowStreams, Share
from pixart.training.sources import HELD_OUT, keys_of, latents_by_size, pictures_by_size, spread
from pixart.training.stage import Stage
from pixart.training.start import finished_model

MEASURED = 64  # held-out pictures that an evaluation decodes
MEASURED_LEVEL = 0.4  # the noise level from which they are drawn again


class PictureBatches:
    """`{"latent", "pixels", "text", "text_mask", "count", "keys"}` as `decoding_loss` takes them."""

    def __init__(
        self,
        recipe: DecoderRecipe,
        moments: dict[int, tuple[Tensor, Tensor]],
        pictures: dict[int, Tensor],
        text: features.TextStates,
        drawn_by: str,
    ):
        """`moments` and `pictures` by size in pixels; `drawn_by` is the hash of the denoiser that draws."""
        self.recipe, self.moments, self.pictures, self.drawn_by = recipe, moments, pictures, drawn_by
        names = ["train", *recipe.sampling.extra_splits]
        splits = [read_split(recipe.data / name) for name in names]
        self.keys = keys_of(names, splits)
        self.cumulative = np.cumsum(weights_of_splits(splits, recipe.sampling))
        self.condition = TextCondition(text, 0.0, recipe.sampling.short_caption_share)
        check_batch_sizes(recipe.phases, len(self.keys), "the training split")

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        phase = phase_at(self.recipe.phases, step)
        rows = share.rows(phase.batch_size)
        rng = RowStreams(self.recipe.loop.seed, step, rows, purpose=1)
        chosen = np.searchsorted(self.cumulative, rng.random(len(rows)) * self.cumulative[-1], side="right")
        mean, std = (part[chosen].float() for part in self.moments[phase.size])
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        return {
            "latent": mean + std * noise,
            "pixels": features.to_unit(self.pictures[phase.size][chosen]),
            "count": len(rows),
            "keys": [self.keys[i] for i in chosen],
            **self.condition(chosen, rng),
        }

    def fingerprint(self) -> str:
        moments = [part for both in self.moments.values() for part in both]
        data = digest(*moments, torch.from_numpy(self.cumulative), *self.condition.tensors())
        return f"{data}, {self.drawn_by}"

    def data_size(self) -> int:
        return len(self.keys)


def drawing_folder(recipe: DecoderRecipe) -> Path:
    """The model folder that draws. PixArtError where there is none, or the run that makes it is not finished."""
    return finished_model(recipe.init, "The drawing model", "--init")


def decoder_stage(recipe: DecoderRecipe, report: Callable[[str], None]) -> Stage:
    """Raises PixArtError or UsageError where data, autoencoder or model are missing or do not fit."""
    folder = open_model_folder(drawing_folder(recipe))
    encoder, tokenizer = folder.path / "text_encoder", folder.path / "tokenizer"
    vae = load_vae(recipe.autoencoder).to(memory_format=torch.contiguous_format)
    _check(recipe, folder, vae)

    def told(split: str) -> features.TextStates:
        return features.text_states(recipe.data, split, encoder, tokenizer, recipe.cache, report)

    text = features.joined([told(name) for name in ("train", *recipe.sampling.extra_splits)])
    moments, pictures = latents_by_size(recipe, report), pictures_by_size(recipe, report)
    batches = PictureBatches(recipe, moments, pictures, text, weights_hash(folder.transformer_folder))
    drawer = Drawer(load_denoiser(folder), text.null, recipe.drawn)
    held_text, held_out = told(HELD_OUT), {}
    for size in pictures:
        held_out[size] = _held_out(vae, features.pixels(recipe.data, HELD_OUT, size, recipe.cache, report), held_text)

    def finish(ema: torch.nn.Module) -> Path:
        vae.post_quant_conv, vae.decoder = ema.post_quant_conv, ema.decoder
        vae.save_pretrained(recipe.run / "vae")
        shutil.rmtree(recipe.run / "model", ignore_errors=True)  # of a finish that was killed before it was noted
        return write_with_vae(folder.path, recipe.run / "model", vae, torch.float16)

    loss = partial(decoding_loss, drawer=drawer, weights=recipe.weights)
    model = Decoder(vae).requires_grad_(True)
    return Stage(model, loss, batches, _evaluation(recipe, drawer, held_out), finish)


def _check(recipe: DecoderRecipe, folder: ModelFolder, vae) -> None:
    """Raises UsageError where the model's denoiser cannot draw latents of this autoencoder."""
    if not folder.scheduler.get("use_flow_sigmas"):
        raise UsageError(f"{folder.path} predicts eps; only the latents of models that predict a velocity are drawn.")
    if vae.config.scaling_factor != 1:
        raise UsageError(
            f"The autoencoder {recipe.autoencoder} has scaling_factor {vae.config.scaling_factor}; fold it into "
            "quant_conv and post_quant_conv."
        )
    if not _same_encoder(vae, load_vae(folder.path / "vae")):
        raise UsageError(
            f"The denoiser of {folder.path} draws latents of another autoencoder than {recipe.autoencoder}: their "
            f"encoders differ. Give --autoencoder {folder.path / 'vae'}, or another --init."
        )


def _same_encoder(vae, other) -> bool:
    """Whether both make the same latents, but for what half precision takes from the weights."""
    ours, theirs = ([*part.encoder.parameters(), *part.quant_conv.parameters()] for part in (vae, other))
    return [p.shape for p in ours] == [p.shape for p in theirs] and all(
        torch.allclose(one, two, rtol=0.01, atol=1e-3) for one, two in zip(ours, theirs, strict=True)
    )


def _held_out(vae, pictures: Tensor, text: features.TextStates) -> dict[str, Tensor]:
    """Held-out pictures with their latents, short captions, and noise."""
    chosen = spread(len(pictures), MEASURED)
    pixels, rng = features.to_unit(pictures[chosen]), np.random.default_rng(0)
    latent = torch.cat([autoencoder.moments(vae, part)[0] for part in pixels.split(16)])
    eps = torch.from_numpy(rng.standard_normal(tuple(latent.shape), np.float32))
    return {"pixels": pixels, "latent": latent, "eps": eps, **TextCondition(text, 0.0, 1.0)(chosen, rng)}


def _evaluation(recipe: DecoderRecipe, drawer: Drawer, held_out: dict[int, dict[str, Tensor]]):
    """PSNR in dB of held-out pictures, decoded from the encoder's latents and from these drawn again, by size."""

    @torch.no_grad()
    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        device, found = next(ema.parameters()).device, {}
        for size, held in held_out.items():
            here = {name: part.to(device) for name, part in held.items()}
            levels = torch.full((len(here["latent"]),), MEASURED_LEVEL, device=device)
            with autocast(recipe.loop.precision, device):
                again = drawer.again(here["latent"], levels, here["eps"], here["text"], here["text_mask"])
            found[f"held_out_psnr_{size}"] = _psnr(ema, here["latent"], here["pixels"])
            found[f"held_out_drawn_psnr_{size}"] = _psnr(ema, again, here["pixels"])
        return found

    return evaluate


def _psnr(decoder: torch.nn.Module, latents: Tensor, pixels: Tensor, batch_size: int = 16) -> float:
    values = []
    for latent, part in zip(latents.split(batch_size), pixels.split(batch_size), strict=True):
        squares = ((decoder(latent).clamp(-1, 1) - part) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * torch.log10(squares.clamp_min(1e-10)))
    return torch.cat(values).mean().item()
