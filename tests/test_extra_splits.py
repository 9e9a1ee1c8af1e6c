"""Training on further splits of a data set: their shares, their captions, and where they do not belong."""

import numpy as np
import pytest
import torch
from pixart.training.structure import structure
from tiny_data import write_tiny_data

from pixart.data import features
from pixart.data.imagefolder import read_split
from pixart.errors import UsageError
from pixart.training.batches import LatentBatches, Phase, Sampling, TextCondition, weights_of, weights_of_splits
from pixart.training.recipe import ClassRecipe, TextRecipe, to_json


def test_extra_splits_get_their_share_and_nothing_changes_without_them(tmp_path):
    data = write_tiny_data(tmp_path / "data")
    train, extra = read_split(data / "train"), read_split(data / "test_cells")
    sampling = Sampling(style_weights={"Noto": 3.0}, skin_tone_weight=0.5)
    assert np.array_equal(weights_of_splits([train], sampling), weights_of(train, sampling))
    both = Sampling(style_weights={"Noto": 3.0}, skin_tone_weight=0.5, extra_splits={"more": 0.2})
    weights = weights_of_splits([train, extra], both)
    assert weights.sum() == pytest.approx(1) and weights[len(train) :].sum() == pytest.approx(0.2)
    assert np.allclose(weights[: len(train)], weights_of(train, sampling) * 0.8)
    by_hand = np.array([3.0 if record.style == "Noto" else 1.0 for record in extra])
    assert np.allclose(weights[len(train) :], 0.2 * by_hand / by_hand.sum())
    for bad in ({"more": 0.0}, {"more": 1.0}, {"a": 0.5, "b": 0.5}, {"more": float("nan")}, {"test_cells": 0.1}):
        with pytest.raises(UsageError, match="extra_splits"):
            Sampling(extra_splits=bad)


def test_joined_captions_are_those_of_each_split():
    def texts(first: int, lengths: list[int]) -> features.TextStates:
        states = torch.cat([torch.full((n, 2), float(first + k)) for k, n in enumerate(lengths)])
        starts = torch.tensor([0, *np.cumsum(lengths)])
        return features.TextStates(states, starts, torch.arange(0, len(lengths) + 1, 2), torch.zeros(1, 2))

    one, two = texts(10, [3, 1, 2, 2]), texts(20, [1, 4])
    both = features.joined([one, two])
    assert features.joined([one]) is one
    phases = (Phase(steps=50, size=32, batch_size=3),)
    moments = {32: (torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4), torch.zeros(3, 1, 4, 4))}
    batches = LatentBatches(moments, np.ones(3) / 3, TextCondition(both, 0.0), phases, seed=0)
    seen: dict[int, set] = {0: set(), 1: set(), 2: set()}
    for step in range(50):
        batch = batches(step)
        for row in range(3):
            count = int(batch["text_mask"][row].sum())
            states = batch["text"][row, :count, 0]
            assert (states == states[0]).all()
            seen[int(batch["latent"][row, 0, 0, 0])].add((int(states[0]), count))
    assert seen == {0: {(10, 3), (11, 1)}, 1: {(12, 2), (13, 2)}, 2: {(20, 1), (21, 4)}}


def test_recipes_say_where_extra_splits_do_not_belong(tmp_path):
    phases, sampling = (Phase(steps=1, size=64, batch_size=1),), Sampling(extra_splits={"more": 0.2})
    where = {"run": tmp_path, "autoencoder": tmp_path, "phases": phases, "sampling": sampling}
    kept = TextRecipe(data=tmp_path, cache=tmp_path, **where)
    assert structure(to_json(kept)["sampling"], Sampling, "sampling") == sampling
    with pytest.raises(UsageError, match="not for features"):
        TextRecipe(features=tmp_path, **where)
    with pytest.raises(UsageError, match="classes know no colours"):
        ClassRecipe(data=tmp_path, cache=tmp_path, **where)
