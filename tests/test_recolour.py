"""Recoloured training pictures: colours, what stays, captions, provenance, and training on a further split."""

import colorsys
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_data import add, write_tiny_data

from pixart.cli import main
from pixart.data import features
from pixart.data.imagefolder import read_split
from pixart.data.recolour import ANCHORS, leading, leading_name, recoloured
from pixart.data.recolour_split import KEPT_APART, SPLIT, build, captions, suitable
from pixart.errors import PixArtError, UsageError
from pixart.training.batches import LatentBatches, Phase, Sampling, TextCondition, weights_of, weights_of_splits
from pixart.training.recipe import ClassRecipe, TextRecipe, to_json
from pixart.training.structure import structure

YELLOW = (250, 205, 50)


def lemon(colour=YELLOW, side: int = 96) -> Image.Image:
    """A disc with a black outline, a white highlight and a green leaf, drawn smooth."""
    image = Image.new("RGB", (side * 4, side * 4), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 60, 320, 320), colour, "black", width=12)
    pen.ellipse((120, 120, 160, 160), "white")
    pen.ellipse((190, 20, 240, 70), (30, 150, 60))
    return image.resize((side, side), Image.Resampling.BOX)


@pytest.mark.parametrize("colour", ANCHORS)
def test_a_yellow_thing_becomes_a_real_one_of_each_colour(colour):
    picture = lemon()
    found = leading(picture)
    assert found.name == "yellow" and found.share > 0.7 and found.other < 0.1
    turned = recoloured(picture, found, ANCHORS[colour])
    name, share = leading_name(turned)
    assert name == colour and share > 0.6


def test_outline_highlight_background_and_leaf_stay():
    before = np.asarray(picture := lemon()).astype(int)
    after = np.asarray(recoloured(picture, leading(picture), ANCHORS["blue"])).astype(int)
    for y, x in ((0, 0), (16, 47), (35, 35), (11, 53)):  # background, outline, highlight, leaf
        assert np.abs(after[y, x] - before[y, x]).max() <= 1, (y, x)
    assert after[60, 60, 2] > after[60, 60, 0] + 60
    # Half covered pixels of the border to white stay between the two colours, without a rim.
    plain = Image.fromarray(np.uint8([[YELLOW, (252, 230, 152), (255, 255, 255)]])).resize((96, 32), 0)
    edge = np.asarray(recoloured(plain, leading(plain), ANCHORS["blue"])).astype(int)[0, [0, 48, 95]]
    assert (edge[0] < edge[1]).all() and (edge[1] < edge[2]).all() and (edge[2] == 255).all()


def test_a_grey_picture_has_no_leading_colour():
    assert leading(Image.new("RGB", (32, 32), "white")) is None
    assert leading(lemon((120, 120, 120)).convert("L").convert("RGB")) is None


def test_captions_name_the_colour_in_several_orders():
    assert captions("apple", "orange", "flat") == [
        "orange apple, flat", "an orange apple, flat", "flat picture of an orange apple",
        "an orange apple in flat style", "a flat orange apple", "an apple, orange, flat",
        "a flat icon of an orange apple on a white background",
    ]  # fmt: skip
    assert captions("glasses", "blue", "FxEmoji")[1:5] == [
        "FxEmoji picture of blue glasses", "blue glasses in FxEmoji style", "FxEmoji blue glasses",
        "glasses, blue, FxEmoji",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny data with four more things of one colour, a toned hand, a flag and a thing that is kept apart."""
    folder = write_tiny_data(tmp_path_factory.mktemp("recolour") / "data")
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    things = (
        ("lemonade", "food & drink", None), ("teacup", "food & drink", None), ("kite", "activities", None),
        ("house", "travel & places", None), ("hand", "people & body", "dark"), ("flag of Nowhere", "flags", None),
        ("red lorry", "travel & places", None), (KEPT_APART[0], "food & drink", None),
    )  # fmt: skip
    for hue, (thing, group, tone) in enumerate(things):
        rgb = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue / 8, 0.9, 0.9))
        add(folder / "train", rows, thing, thing, tone, "things", "flat", lemon(rgb, 64))
        rows[-1] |= {"group": group, "licence": "CC-BY-4.0"}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_the_split_holds_only_training_things_that_may_have_any_colour(data, capsys):
    assert main(["data", "recolour", str(data), "--copies", "2"]) == 0
    assert "of them recoloured" in capsys.readouterr().err
    rows = [json.loads(line) for line in (data / SPLIT / "metadata.jsonl").read_text().splitlines()]
    assert {row["base_concept"] for row in rows} == {"lemonade", "teacup", "kite", "house"}
    turned = [row for row in rows if row["changed"]]
    assert len(turned) == 8 and all(row["licence"] == "CC-BY-4.0" for row in rows)
    records = read_split(data / SPLIT)
    for row, record in zip(rows, records, strict=True):
        picture = Image.open(record.path)
        assert leading_name(picture)[0] == row["colour"]
        assert record.text == record.captions[0] == f"{row['colour']} {row['base_concept']}, flat"
        if row["changed"]:
            assert row["changed"].endswith(f"to {row['colour']}") and row["copied_from"].startswith("train/")
        else:
            assert record.path.read_bytes() == (data / row["copied_from"]).read_bytes()
    for name in {row["base_concept"] for row in turned}:
        assert len({row["colour"] for row in turned if row["base_concept"] == name}) == 2
    assert main(["data", "recolour", str(data)]) == 2 and "already" in capsys.readouterr().err


def test_the_same_data_give_the_same_split(data, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train").symlink_to(data / "train")
        build(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a" / SPLIT).iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b" / SPLIT).iterdir())
    assert all((tmp_path / "a" / SPLIT / f).read_bytes() == (tmp_path / "b" / SPLIT / f).read_bytes() for f in files)


def test_names_that_say_a_colour_or_are_kept_apart_are_not_suitable(data):
    names = {record.concept: suitable(record) for record in read_split(data / "train")}
    assert names["lemonade"] and not names["red lorry"] and not names["apple"] and not names["hand"]


def test_nothing_to_turn_and_no_data_are_one_sentence(tmp_path):
    with pytest.raises(PixArtError, match=r"metadata\.jsonl"):
        build(tmp_path)
    write_tiny_data(tmp_path / "data")
    with pytest.raises(PixArtError, match="could be turned"):
        build(tmp_path / "data")
    assert not list((tmp_path / "data").glob(".*"))
    with pytest.raises(UsageError, match="copies"):
        build(tmp_path / "data", copies=0)


def test_extra_splits_get_their_share_and_nothing_changes_without_them(data):
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
    phases, sampling = (Phase(steps=1, size=64, batch_size=1),), Sampling(extra_splits={SPLIT: 0.2})
    where = {"run": tmp_path, "autoencoder": tmp_path, "phases": phases, "sampling": sampling}
    kept = TextRecipe(data=tmp_path, cache=tmp_path, **where)
    assert structure(to_json(kept)["sampling"], Sampling, "sampling") == sampling
    with pytest.raises(UsageError, match="not for features"):
        TextRecipe(features=tmp_path, **where)
    with pytest.raises(UsageError, match="classes know no colours"):
        ClassRecipe(data=tmp_path, cache=tmp_path, **where)
