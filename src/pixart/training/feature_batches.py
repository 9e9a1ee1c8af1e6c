"""Batches from a feature folder (`pixart data extract`): buckets, captions, classes and micro-conditions by number."""

import hashlib
import json

import numpy as np
import torch
from torch import Tensor

from pixart.data.bucket_batches import EpochBatches, WeightedBatches, in_order
from pixart.data.dropped import check_dropped
from pixart.data.feature_shards import FeatureBatch, Features, files_hash, open_features, weights_hash
from pixart.errors import UsageError
from pixart.training.batches import Phase, check_batch_sizes, spared_tokens
from pixart.training.recipe import ClassRecipe, TextRecipe, text_folders
from pixart.training.rows import WHOLE, RowStreams, Share

EVALUATED_AT_ONCE = 16


def open_for(recipe: ClassRecipe | TextRecipe) -> Features:
    """The recipe's features, checked against its encoders and sizes.

    Raises:
        PixArtError: the folder is missing, unfinished, or made with other encoders or at another size; or too many
            pictures were dropped when it was made.
        UsageError: the recipe asks for what the folder does not have.
    """
    store = open_features(recipe.features)
    dropped, examples = store.dropped()
    check_dropped(dropped, len(store) + dropped, allowed=recipe.allow_dropped, examples=examples)
    sizes = {phase.size for phase in recipe.phases}
    made_at = store.origin.settings.get("base_size")
    if sizes != {made_at}:
        raise UsageError(
            f"{recipe.features} was made at {made_at} px, and the phases ask for {', '.join(map(str, sorted(sizes)))} "
            "px; a feature folder serves phases of its own size, so extract it at that size."
        )
    encoder = tokenizer = None
    if isinstance(recipe, TextRecipe):
        if not store.has_text:
            raise UsageError(f"{recipe.features} has no captions in it; extract it with a text encoder.")
        texts, folder = text_folders(recipe)
        encoder = weights_hash(texts)
        tokenizer = files_hash(sorted(path for path in folder.glob("*") if path.is_file()))
    store.check(vae=weights_hash(recipe.autoencoder), text_encoder=encoder, tokenizer=tokenizer)
    if store.shift_factor:
        raise UsageError(
            f"The autoencoder of {recipe.features} has shift_factor {store.shift_factor}, which the stock pipeline "
            "does not apply; fold it into quant_conv and post_quant_conv, and extract again."
        )
    return store


class FeatureBatches:
    """`{"latent", "count", "keys"}` and, by the recipe's kind, text and its mask (and size), or classes.

    All rows of a batch come from one bucket. Every row is taken once per pass over its bucket, or by weight where the
    data says how often (kohya's repeats). Mirrored latents, where the folder has them, are taken half of the time.
    """

    def __init__(self, rows: "Rows", *, dropout: float):
        self.rows, self.store, self.recipe, self.dropout = rows, rows.store, rows.recipe, dropout
        recipe = self.recipe
        self.phases, self.seed = recipe.phases, recipe.loop.seed
        check_batch_sizes(recipe.phases, len(self.rows.training), str(recipe.features))
        self.by_phase = [self._chooser(phase) for phase in recipe.phases]

    def _chooser(self, phase: Phase) -> tuple[np.ndarray, EpochBatches | WeightedBatches]:
        """The rows that a phase trains on, and who chooses among them."""
        kept = _without_small_buckets(self.rows, self.rows.training, phase, self.recipe)
        assignment, repeats = self.rows.bucket[kept], self.rows.repeats[kept]
        if (repeats == repeats[0]).all():
            return kept, EpochBatches(assignment, phase.batch_size, self.seed)
        return kept, WeightedBatches(assignment, phase.batch_size, self.seed, repeats)

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        number, first = 0, 0
        while number < len(self.phases) - 1 and step >= first + self.phases[number].steps:
            first += self.phases[number].steps
            number += 1
        phase, (kept, choose) = self.phases[number], self.by_phase[number]
        mine = share.rows(phase.batch_size)
        rng = RowStreams(self.seed, step, mine, purpose=1)
        batch = self.rows.read(kept[choose(step - first).indices[mine]], rng, self.dropout)
        return batch | spared_tokens(phase, batch["latent"], rng)

    def fingerprint(self) -> str:
        """A hash of the folder's manifest, which has the content hashes of its shards."""
        return hashlib.sha256(json.dumps(self.store.manifest, sort_keys=True).encode()).hexdigest()

    def data_size(self) -> int:
        return len(self.rows.training)


class Rows:
    """All rows of a folder under one number, and how they are read for a recipe."""

    def __init__(self, store: Features, recipe: ClassRecipe | TextRecipe):
        self.store, self.recipe = store, recipe
        self.names = list(store.buckets)
        counts = np.array([store.buckets[name] for name in self.names])
        self.bucket = np.repeat(np.arange(len(counts)), counts)
        self.first = np.concatenate([[0], np.cumsum(counts)])
        tables = [store.table(name) for name in self.names]
        self.captions = torch.cat([table.caption_counts for table in tables]).numpy()
        self.repeats = torch.cat([table.repeats for table in tables]).numpy().astype(float)
        labels = torch.cat([table.label for table in tables]).numpy()
        self.by_class = isinstance(recipe, ClassRecipe)
        without = int((labels < 0).sum() if self.by_class else (self.captions < 1).sum())
        if without:
            raise UsageError(
                f"{without} of the {len(self.bucket)} rows of {recipe.features} have no "
                f"{'class' if self.by_class else 'caption'}; add them to the data and extract again."
            )
        # The same rows for every run on this folder, whatever its seed: a random tenth at most.
        count = min(recipe.sampling.held_out, len(self.bucket) // 10)
        order = np.random.default_rng(0).permutation(len(self.bucket))
        self.held_out, self.training = np.sort(order[:count]), np.sort(order[count:])

    def read(self, chosen: np.ndarray, rng: RowStreams | np.random.Generator, dropout: float) -> dict:
        """The batch of rows `chosen`, all of one bucket."""
        bucket, count = self.bucket[chosen[0]], len(chosen)
        places = chosen - self.first[bucket]
        flipped = (rng.random(count) < 0.5) & self.store.has_flips
        captions = (rng.random(count) * self.captions[chosen]).astype(int)
        captions = np.where(rng.random(count) < self.recipe.sampling.short_caption_share, 0, captions)
        dropped = rng.random(count) < dropout
        captions = np.where(dropped, -1, captions) if self.store.has_text else None
        read = self.store.read(self.names[bucket], places, captions=captions, flipped=flipped)
        mean, std = read.mean.float(), read.std.float()
        # A fresh sample of the posterior each time, as the official trainer does (tools/extract_features.py).
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32))
        latent = (mean + std * noise) * self.store.scaling_factor
        return {"latent": latent, "count": count, "keys": read.keys, **self._condition(read, dropped)}

    def _condition(self, read: FeatureBatch, dropped: np.ndarray) -> dict[str, Tensor]:
        if self.by_class:
            classes = read.label[:, None].clone()
            classes[torch.from_numpy(dropped)] = len(self.store.class_names)
            return {"classes": classes}
        text = {"text": read.text.float(), "text_mask": read.text_mask}
        if not self.recipe.model.micro_conditions:
            return text
        height, width = read.mean.shape[-2:]
        ratio = torch.full((len(read.mean), 1), height / width)
        return text | {"size": torch.cat([read.original_size.float(), ratio], dim=1)}


def held_out_batches(rows: Rows) -> tuple[dict, ...]:
    """The held-out rows in batches of one bucket each, nothing dropped, the same for every run on these features."""
    if not len(rows.held_out):
        return ()
    parts = in_order(rows.bucket[rows.held_out], EVALUATED_AT_ONCE)
    return tuple(
        rows.read(rows.held_out[part.indices], np.random.default_rng([0, number]), dropout=0.0)
        for number, part in enumerate(parts)
    )


def _without_small_buckets(rows: Rows, kept: np.ndarray, phase: Phase, recipe: ClassRecipe | TextRecipe) -> np.ndarray:
    """What stays of `kept` where buckets with fewer rows than a batch are dropped, if the recipe says so."""
    counts = np.bincount(rows.bucket[kept], minlength=len(rows.names))
    small = [i for i, count in enumerate(counts) if 0 < count < phase.batch_size]
    if not small or recipe.sampling.small_buckets == "repeat":
        return kept
    if recipe.sampling.small_buckets == "drop":
        left = kept[~np.isin(rows.bucket[kept], small)]
        if len(left):
            return left
    shown = ", ".join(f"{rows.names[i]} ({counts[i]})" for i in small[:3]) + (", ..." if len(small) > 3 else "")
    raise UsageError(
        f"{len(small)} of {int((counts > 0).sum())} buckets of {recipe.features} have fewer pictures than a batch of "
        f"{phase.batch_size}: {shown}. Give a smaller batch_size, or --sampling.small-buckets drop to leave their "
        f"{int(counts[small].sum())} pictures out, or repeat to fill batches with them more than once."
    )
