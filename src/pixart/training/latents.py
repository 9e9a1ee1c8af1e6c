"""Batches from feature folders, for the tasks that train on latents: buckets, captions, classes, micro-conditions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixart.data.bucket_batches import in_order
from pixart.data.dataset import check_dropped
from pixart.data.encode import autocast
from pixart.data.features import MANIFEST, FeatureBatch, Features, open_features
from pixart.errors import UsageError
from pixart.training.batches import Phase, Source
from pixart.training.recipe import Recipe
from pixart.training.reports import loss_by_level
from pixart.training.rows import RowStreams
from pixart.training.task import Loss

VALIDATED_AT_ONCE = 16
Rng = RowStreams | np.random.Generator


@dataclass(frozen=True)
class LatentRows:
    """Reads rows of feature folders as batches: `latent` and, by `condition`, the text or the classes.

    `dropout` of the rows lose their condition; `first_caption_share` of them take their first caption, the others any.
    With `micro_conditions`, `size` too, with `masked`, `mask` (B, 1, h, w) from 0 to 1; with `padded`, all texts at one
    length, for compiled graphs.
    """

    condition: str  # "text" or "classes"
    validation: int
    allow_dropped: float
    dropout: float = 0.0
    first_caption_share: float = 0.0
    micro_conditions: bool = False
    padded: bool = False
    masked: bool = False

    def source(self, phase: Phase) -> Source:
        """The rows of a phase that are trained on."""
        store = self.open(phase)
        rows, _ = store.split(self.validation)
        read = _Read(self, store)
        return Source(rows, store.bucket[rows], store.columns["weight"][rows], read, store.fingerprint())

    def open(self, phase: Phase) -> Features:
        """The feature folder of a phase. Raises UsageError where it is not named or cannot be trained on."""
        if phase.features is None:
            raise UsageError("Each phase of this task needs features = FOLDER, made by pixart data extract.")
        manifest = phase.features / MANIFEST
        store = _opened(phase.features, manifest.stat().st_mtime_ns if manifest.is_file() else 0)
        dropped, examples = store.dropped()
        total = len(store) + dropped
        check_dropped(dropped, total, allowed=self.allow_dropped, examples=examples, flag="--TASK.allow-dropped")
        if self.condition == "text" and not store.has_text:
            raise UsageError(f"{phase.features} has no captions in it; extract it without --labels-only.")
        if self.masked and not store.settings.masks:
            raise UsageError(f"{phase.features} has no masks in it, which unmasked_weight needs; extract with --masks.")
        columns = store.columns
        without = (columns["label"] < 0).any(1) if self.condition == "classes" else columns["captions"] < 1
        if without.any() or (self.condition == "classes" and not store.manifest.labels):
            what = "class" if self.condition == "classes" else "caption"
            raise UsageError(f"{int(without.sum())} rows of {phase.features} have no {what}; add it and extract again.")
        return store

    def validation_batches(self, phase: Phase) -> list[dict[str, Any]]:
        """The validation rows of a phase in batches of one bucket each, nothing dropped, always the same."""
        store = self.open(phase)
        _, rows = store.split(self.validation)
        if not len(rows):
            return []
        parts = in_order(store.bucket[rows], VALIDATED_AT_ONCE)
        rngs = [np.random.default_rng([0, number]) for number in range(len(parts))]
        return [self.read(store, rows[part.indices], rng, dropout=0.0) for part, rng in zip(parts, rngs, strict=True)]

    def read(self, store: Features, rows: np.ndarray, rng: Rng, *, dropout: float | None = None) -> dict[str, Any]:
        """The batch of these rows, all of one bucket."""
        count, has_text = len(rows), self.condition == "text"
        views = (rng.random(count) * store.views).astype(int)
        captions = (rng.random(count) * store.columns["captions"][rows]).astype(int)
        captions = np.where(rng.random(count) < self.first_caption_share, 0, captions)
        dropped = rng.random(count) < (self.dropout if dropout is None else dropout)
        captions = np.where(dropped, -1, captions) if has_text else np.full(count, -1)
        pad_to = store.settings.max_tokens if self.padded else None
        found = store.read(rows, captions=captions, views=views, pad_to=pad_to)
        # A fresh sample of the posterior each time, as the official trainer does (tools/extract_features.py).
        mean, std = found.mean.float(), found.std.float()
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32))
        latent = (mean + std * noise) * store.manifest.scaling_factor
        batch = {"latent": latent, "count": count, "keys": found.keys, "rows": rows, "views": views}
        if self.masked:
            batch["mask"] = found.mask[:, None] / 255
        return batch | (self._text(found) if has_text else self._classes(store, found, dropped))

    def _text(self, found: FeatureBatch) -> dict[str, Tensor]:
        text = {"text": found.text.float(), "text_mask": found.text_mask}
        if not self.micro_conditions:
            return text
        height, width = found.mean.shape[-2:]
        ratio = torch.full((len(found.mean), 1), height / width)
        return text | {"size": torch.cat([found.original_size.float(), ratio], dim=1)}

    def _classes(self, store: Features, found: FeatureBatch, dropped: np.ndarray) -> dict[str, Tensor]:
        classes = found.label.clone()
        classes[torch.from_numpy(dropped)] = torch.tensor([len(names) for names in store.manifest.labels.values()])
        return {"classes": classes}


@dataclass(frozen=True)
class _Read:
    """What a source calls, also in other processes."""

    how: LatentRows
    store: Features

    def __call__(self, rows: np.ndarray, rng: RowStreams) -> dict[str, Any]:
        return self.how.read(self.store, rows, rng)


@torch.no_grad()
def denoising_validation(
    model: torch.nn.Module, loss: Loss, batches: list[dict[str, Any]], recipe: Recipe
) -> dict[str, float]:
    """The mean loss with fixed noise and noise levels, so that metrics of a run compare, also by noise level."""
    device, rng = next(model.parameters()).device, np.random.default_rng(0)
    levels, losses = [], []
    with autocast(recipe.loop.precision, device):
        for batch in _on(device, batches):
            batch["rng"] = rng
            losses.append(loss(model, batch))
            levels.append(batch.get("levels", torch.zeros(0, device=device)))
    if not losses:
        return {}
    metrics = {"validation_loss": torch.cat(losses).mean().item()}
    together = torch.cat(levels)
    return metrics | (loss_by_level(together, torch.cat(losses)) if len(together) else {})


def _on(device: torch.device, batches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {name: part.to(device) if torch.is_tensor(part) else part for name, part in batch.items()}


@cache
def _opened(path: Path, written: int) -> Features:
    """Once for each time that the folder was written."""
    return open_features(path)


def encoder_folders(
    store: Features, autoencoder: Path | None, text_encoder: Path | None
) -> tuple[Path, Path | None, Path | None]:
    """Autoencoder, text encoder and tokenizer: those given, else those that the features were made with.

    Raises PixArtError where they are not there or are others than the features were made with.
    """
    known = {name: Path(path) for name, path in store.manifest.encoders.items()}
    vae, encoder = autoencoder or known["vae"], text_encoder or known.get("text_encoder")
    store.check(vae=vae, text_encoder=encoder if store.has_text else None)
    tokenizer = text_encoder.parent / "tokenizer" if text_encoder else known.get("tokenizer")
    return vae, encoder, tokenizer
