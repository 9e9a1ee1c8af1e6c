"""Where a stage's latents, texts and classes come from: pictures that are encoded as training begins, or features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixart.data import features
from pixart.data.imagefolder import Record, read_split
from pixart.errors import UsageError
from pixart.training.batches import ClassCondition, LatentBatches, TextCondition, weights_of, weights_of_splits
from pixart.training.decoding import DecoderRecipe
from pixart.training.feature_batches import FeatureBatches, Rows, held_out_batches, open_for
from pixart.training.recipe import ClassRecipe, TextRecipe, text_folders

HELD_OUT = "test_cells"


@dataclass(frozen=True)
class Source:
    """What a stage learns from.

    `channels` are those of the latents, `text_dim` the width of the text
    states (None for classes), `classes` the names of every kind of class, `styles` what prompts may be dressed in.
    `held_out` are batches that training never sees, whose captions or classes are not dropped.
    """

    channels: int
    batches: Callable[..., dict]
    held_out: tuple[dict, ...]
    text_dim: int | None = None
    classes: dict[str, list[str]] | None = None
    styles: tuple[str, ...] = ()


def class_source(recipe: ClassRecipe, report) -> Source:
    """For stage 1. Raises PixArtError or UsageError where data or features are missing or do not fit."""
    return _class_features(recipe) if recipe.features else _class_pictures(recipe, report)


def text_source(recipe: TextRecipe, report) -> Source:
    """For stages 2 and 3. Raises PixArtError or UsageError where data or features are missing or do not fit."""
    return _text_features(recipe) if recipe.features else _text_pictures(recipe, report)


def _class_pictures(recipe: ClassRecipe, report) -> Source:
    records = read_split(recipe.data / "train")
    moments = latents_by_size(recipe, report)
    names = {kind: sorted({_class_name(record, kind) for record in records}) for kind in recipe.classes}
    counts = tuple(len(kind) for kind in names.values())
    condition = ClassCondition(_class_indices(records, names), counts, recipe.class_dropout)
    keys, weights = [record.file_name for record in records], weights_of(records, recipe.sampling)
    batches = LatentBatches(moments, weights, condition, recipe.phases, recipe.loop.seed, keys)
    held_condition = ClassCondition(_class_indices(read_split(recipe.data / HELD_OUT), names), counts, dropout=0.0)
    held_out = _held_out_latents(recipe, held_condition, report)
    return Source(_channels(moments), batches, (held_out,), classes=names)


def _class_name(record: Record, kind: str) -> str:
    if kind not in ("subgroup", "group", "style"):
        raise UsageError(f"A class kind is subgroup, group or style, not {kind!r}.")
    return getattr(record, kind)


def _class_indices(records: list[Record], names: dict[str, list[str]]) -> Tensor:
    """(N, kinds) int64; a class that training never saw gets the null class."""
    index = {kind: {name: i for i, name in enumerate(known)} for kind, known in names.items()}
    return torch.tensor([[at.get(_class_name(r, kind), len(at)) for kind, at in index.items()] for r in records])


def _text_pictures(recipe: TextRecipe, report) -> Source:
    names = ["train", *recipe.sampling.extra_splits]
    splits = [read_split(recipe.data / name) for name in names]
    encoder, tokenizer = text_folders(recipe)
    text = features.joined(
        [features.text_states(recipe.data, name, encoder, tokenizer, recipe.cache, report) for name in names]
    )
    moments = latents_by_size(recipe, report)
    condition = TextCondition(text, recipe.caption_dropout, recipe.sampling.short_caption_share)
    keys, weights = keys_of(names, splits), weights_of_splits(splits, recipe.sampling)
    batches = LatentBatches(moments, weights, condition, recipe.phases, recipe.loop.seed, keys)
    held_text = features.text_states(recipe.data, HELD_OUT, encoder, tokenizer, recipe.cache, report)
    held_out = _held_out_latents(recipe, TextCondition(held_text, dropout=0.0, short_share=1.0), report)
    styles = tuple(sorted({record.style for record in splits[0]}))
    return Source(_channels(moments), batches, (held_out,), text_dim=text.null.shape[1], styles=styles)


def _class_features(recipe: ClassRecipe) -> Source:
    store = open_for(recipe)
    if not store.class_names:
        raise UsageError(f"{recipe.features} has no classes; extract it from class folders, one folder a class.")
    rows = Rows(store, recipe)
    batches, held_out = FeatureBatches(rows, dropout=recipe.class_dropout), held_out_batches(rows)
    classes = {"class": list(store.class_names)}
    return Source(store.latent_channels, batches, held_out, classes=classes)


def _text_features(recipe: TextRecipe) -> Source:
    store = open_for(recipe)
    rows = Rows(store, recipe)
    batches, held_out = FeatureBatches(rows, dropout=recipe.caption_dropout), held_out_batches(rows)
    return Source(store.latent_channels, batches, held_out, text_dim=store.text_dim)


def latents_by_size(recipe: ClassRecipe | TextRecipe | DecoderRecipe, report) -> dict[int, tuple[Tensor, Tensor]]:
    """Mean and deviation of the latents of train and the extra splits, for each picture size of the recipe."""

    def of(name: str, size: int) -> tuple[Tensor, Tensor]:
        return features.latents(recipe.data, name, size, recipe.autoencoder, recipe.cache, report)

    found = {}
    for size in sorted({phase.size for phase in recipe.phases}):
        found[size] = of("train", size)
        for name in recipe.sampling.extra_splits:
            found[size] = tuple(torch.cat(both) for both in zip(found[size], of(name, size), strict=True))
    return found


def pictures_by_size(recipe: DecoderRecipe, report) -> dict[int, Tensor]:
    """uint8 (N, 3, size, size) of train and the extra splits, for each picture size of the recipe."""
    found = {}
    for size in sorted({phase.size for phase in recipe.phases}):
        names = ("train", *recipe.sampling.extra_splits)
        parts = [features.pixels(recipe.data, name, size, recipe.cache, report) for name in names]
        found[size] = torch.cat(parts) if len(parts) > 1 else parts[0]  # one alone stays in its file until it is read
    return found


def keys_of(names: list[str], splits: list[list[Record]]) -> list[str]:
    """What pictures are called in messages: those of extra splits with the name of their folder."""
    named = [record.file_name for record in splits[0]]
    for name, records in zip(names[1:], splits[1:], strict=True):
        named += [f"{name}/{record.file_name}" for record in records]
    return named


def _channels(moments: dict[int, tuple[Tensor, Tensor]]) -> int:
    return next(iter(moments.values()))[0].shape[1]


def _held_out_latents(recipe: ClassRecipe | TextRecipe, condition, report) -> dict:
    """Up to 256 held-out pictures at the last phase's size."""
    size = recipe.phases[-1].size
    mean, _ = features.latents(recipe.data, HELD_OUT, size, recipe.autoencoder, recipe.cache, report)
    chosen = spread(len(mean), 256)
    return {"latent": mean[chosen].float(), "count": len(chosen), **condition(chosen, np.random.default_rng(0))}


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices, evenly over `count`: metadata is in Unicode's order, so the first would all be faces."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)
