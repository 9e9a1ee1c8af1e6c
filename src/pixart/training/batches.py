"""Batches by number: batch k is a pure function of the seed and k, so the data position of a run is its step.

`batches(step, share)` gives the rows of one process, or of one part of an accumulated batch: row r of batch k is a
pure function of the seed, k and r (see rows.py), whoever asks for it. `count` is the number of rows given, `keys`
names their pictures, and `batches.fingerprint()` is a hash of all that they are taken from.
A recipe's phases say how many steps are done at which picture size; each batch holds pictures of one size.
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixart.data.features import TextStates, to_unit
from pixart.data.imagefolder import Record
from pixart.data.split import SPLITS
from pixart.errors import UsageError
from pixart.training.rows import WHOLE, RowStreams, Share
from pixart.training.tread import choose_tokens

PATCH_SIZE = 2  # of the latent, as in all published PixArt networks


@dataclass(frozen=True)
class Phase:
    """`steps` steps on pictures of `size` px; `crop` (autoencoder only) takes random squares of that side.

    Text stages only, and one of the two: `route_share` of the tokens skips the middle blocks (tread.py), `mask_share`
    of the patches is dropped after the first ones (masking.py).
    """

    steps: int
    size: int
    batch_size: int
    crop: int | None = None
    route_share: float = 0.0
    mask_share: float = 0.0

    def __post_init__(self):
        for name in ("steps", "size", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"A phase needs {name} of at least 1, not {getattr(self, name)}.")
        if self.size % 16 or (self.crop and (self.crop % 16 or self.crop > self.size)):
            raise UsageError(f"Size {self.size} and crop {self.crop} must be multiples of 16, the crop not the larger.")
        shares = (self.route_share, self.mask_share)
        if not all(0 <= share < 1 for share in shares) or all(shares):
            raise UsageError(
                f"route_share {self.route_share} and mask_share {self.mask_share} must be from 0 to below 1, and only "
                "one of them above 0."
            )


@dataclass(frozen=True)
class Sampling:
    """How often a picture is drawn: the weights of its style, and of pictures with a skin tone, multiply.

    A concept with skin tones has five more pictures per style that differ in one colour; the weight evens that out.
    `short_caption_share` of the draws take a picture's first, short caption.

    For feature folders: `small_buckets` says what becomes of buckets with fewer pictures than a batch, and `held_out`
    so many pictures, a tenth of all at most, are never trained on but measured.

    For data, all but stage 1: `extra_splits` names further folders beside train, each with the share of all
    draws that is taken from it; within it the weights hold too.
    """

    style_weights: dict[str, float] = field(default_factory=dict)
    skin_tone_weight: float = 1.0
    short_caption_share: float = 0.0
    small_buckets: Literal["refuse", "drop", "repeat"] = "refuse"
    held_out: int = 256
    extra_splits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        weights = {"skin_tone_weight": self.skin_tone_weight} | self.style_weights
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise UsageError(f"sampling: the weight {name} is {weight}; it must be 0 or more.")
        if not 0 <= self.short_caption_share <= 1:
            raise UsageError(f"sampling: short_caption_share {self.short_caption_share} must be from 0 to 1.")
        if self.held_out < 0:
            raise UsageError(f"sampling: held_out {self.held_out} must not be negative.")
        if not all(share > 0 for share in self.extra_splits.values()) or not sum(self.extra_splits.values()) < 1:
            raise UsageError(
                f"sampling: the shares of extra_splits, {self.extra_splits}, must be above 0 and together below 1; the "
                "rest is drawn from train."
            )
        if held := sorted(set(self.extra_splits) & set(SPLITS)):
            raise UsageError(f"sampling: extra_splits names {held[0]}, which is trained on already or held out.")


def total_steps(phases: tuple[Phase, ...]) -> int:
    return sum(phase.steps for phase in phases)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


def check_batch_sizes(phases: tuple[Phase, ...], count: int, data: str) -> None:
    """UsageError where a batch is larger than the data set."""
    for number, phase in enumerate(phases):
        if phase.batch_size > count:
            raise UsageError(
                f"A batch of {phase.batch_size} is larger than the data set: {data} has {count} pictures to train on. "
                f"Give --phases.{number}.batch-size {count} or less."
            )


def weights_of(records: list[Record], sampling: Sampling) -> np.ndarray:
    """The chance of each record, (N,) summing to 1."""
    known = {record.style for record in records}
    unknown = set(sampling.style_weights) - known
    if unknown:
        raise UsageError(f"sampling.style_weights names {sorted(unknown)}; the data has the styles {sorted(known)}.")
    weights = np.array(
        [
            sampling.style_weights.get(record.style, 1.0) * (sampling.skin_tone_weight if record.skin_tone else 1.0)
            for record in records
        ]
    )
    if not weights.sum() > 0:
        raise UsageError("sampling: all pictures have the weight 0; give at least one style a weight above 0.")
    return weights / weights.sum()


def weights_of_splits(splits: list[list[Record]], sampling: Sampling) -> np.ndarray:
    """The chance of each record of train and of each of the extra splits, in that order, (N,) summing to 1."""
    train, *extra = splits
    shares = list(sampling.extra_splits.values())
    weights = [weights_of(train, sampling) * (1 - sum(shares)) if extra else weights_of(train, sampling)]
    for records, share in zip(extra, shares, strict=True):
        styles = {record.style for record in records}
        known = {name: weight for name, weight in sampling.style_weights.items() if name in styles}
        weights.append(weights_of(records, replace(sampling, style_weights=known)) * share)
    return np.concatenate(weights)


def digest(*tensors: Tensor) -> str:
    """SHA-256 of what is trained on: a run is not continued on other data. A second per gigabyte."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8))
    return digest.hexdigest()


def _named(keys: list[str] | None, chosen: np.ndarray) -> dict[str, list[str]]:
    """The names of the chosen pictures, for who has to say which of them went wrong."""
    return {"keys": [keys[i] for i in chosen]} if keys else {}


class PixelBatches:
    """Random pictures or random crops of them: `{"pixels": (B, 3, H, W) in [-1, 1], "count": B, "keys": B names}`."""

    def __init__(
        self, pictures: dict[int, Tensor], phases: tuple[Phase, ...], seed: int, keys: list[str] | None = None
    ):
        self.pictures, self.phases, self.seed, self.keys = pictures, phases, seed, keys
        for phase in phases:
            check_batch_sizes(phases, len(pictures[phase.size]), "the training split")

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        phase = phase_at(self.phases, step)
        rows = share.rows(phase.batch_size)
        rng = RowStreams(self.seed, step, rows, purpose=1)
        pictures = self.pictures[phase.size]
        chosen = (rng.random(len(rows)) * len(pictures)).astype(int)
        side = phase.crop or phase.size
        corners = (rng.random((len(rows), 2)) * (phase.size - side + 1)).astype(int)
        parts = [pictures[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, corners, strict=True)]
        return {"pixels": to_unit(torch.stack(parts)), "count": len(rows), **_named(self.keys, chosen)}

    def fingerprint(self) -> str:
        return digest(*self.pictures.values())

    def data_size(self) -> int:
        return max(len(pictures) for pictures in self.pictures.values())


class LatentBatches:
    """Cached latents, drawn by weight, with what conditions them added by `condition(indices, rng) -> dict`."""

    def __init__(
        self,
        moments: dict[int, tuple[Tensor, Tensor]],
        weights: np.ndarray,
        condition,
        phases: tuple[Phase, ...],
        seed: int,
        keys: list[str] | None = None,
    ):
        self.moments, self.condition, self.phases, self.seed, self.keys = moments, condition, phases, seed, keys
        self.cumulative = np.cumsum(weights)
        check_batch_sizes(phases, len(weights), "the training split")

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        phase = phase_at(self.phases, step)
        rows = share.rows(phase.batch_size)
        rng = RowStreams(self.seed, step, rows, purpose=1)
        chosen = np.searchsorted(self.cumulative, rng.random(len(rows)) * self.cumulative[-1], side="right")
        mean, std = (part[chosen].float() for part in self.moments[phase.size])
        # A fresh sample of the posterior each time, as the official trainer does (tools/extract_features.py).
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        batch = {"latent": mean + std * noise, "count": len(rows), **_named(self.keys, chosen)}
        batch |= self.condition(chosen, rng)
        return batch | spared_tokens(phase, batch["latent"], rng)

    def fingerprint(self) -> str:
        tensors = [part for moments in self.moments.values() for part in moments]
        return digest(*tensors, torch.from_numpy(self.cumulative), *self.condition.tensors())

    def data_size(self) -> int:
        return len(self.cumulative)


def spared_tokens(phase: Phase, latent: Tensor, rng: RowStreams) -> dict[str, Tensor]:
    """`routed` or `visible` (B, K) for latents (B, C, h, w), where the phase spares tokens."""
    shares = {"routed": phase.route_share, "visible": phase.mask_share}
    tokens = latent.shape[2] * latent.shape[3] // PATCH_SIZE**2
    return {name: choose_tokens(rng.random((len(latent), tokens)), share) for name, share in shares.items() if share}


@dataclass(frozen=True)
class ClassCondition:
    """Class indices with dropout: `{"classes": (B, kinds) int64}`; a dropped row has every kind's null class."""

    classes: Tensor  # (N, kinds)
    counts: tuple[int, ...]
    dropout: float

    def __call__(self, chosen: np.ndarray, rng: np.random.Generator | RowStreams) -> dict:
        classes = self.classes[chosen].clone()
        classes[rng.random(len(chosen)) < self.dropout] = torch.tensor(self.counts)
        return {"classes": classes}

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.classes,)


@dataclass(frozen=True)
class TextCondition:
    """One of each picture's captions, padded to the longest of the batch: `{"text": (B, L, T), "text_mask": (B, L)}`.

    With probability `dropout` it is the encoded empty prompt with its own mask, which is what the stock pipeline
    takes as null text. With probability `short_share` it is the picture's first, short caption.
    """

    text: TextStates
    dropout: float
    short_share: float = 0.0

    def __call__(self, chosen: np.ndarray, rng: np.random.Generator | RowStreams) -> dict:
        first, last = self.text.first_caption[chosen].numpy(), self.text.first_caption[chosen + 1].numpy()
        captions = first + (rng.random(len(chosen)) * (last - first)).astype(int)
        captions = np.where(rng.random(len(chosen)) < self.short_share, first, captions)
        dropped = rng.random(len(chosen)) < self.dropout
        states = [
            self.text.null if drop else self.text.states[self.text.starts[c] : self.text.starts[c + 1]]
            for c, drop in zip(captions, dropped, strict=True)
        ]
        length = max(len(s) for s in states)
        length += -length % 16  # few distinct lengths: the kernels and a compiled graph are reused
        text = torch.zeros(len(states), length, self.text.null.shape[1])
        mask = torch.zeros(len(states), length, dtype=torch.bool)
        for row, s in enumerate(states):
            text[row, : len(s)] = s
            mask[row, : len(s)] = True
        return {"text": text, "text_mask": mask}

    def tensors(self) -> tuple[Tensor, ...]:
        return self.text.states, self.text.starts, self.text.first_caption, self.text.null
