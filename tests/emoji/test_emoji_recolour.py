"""Recoloured training images: colours, what stays, captions, provenance."""

import colorsys
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_data import add, write_tiny_data

from emojis.colours import leading_colour
from emojis.prompts import things
from emojis.recolour import ANCHORS, leading, recoloured
from emojis.recoloured_split import SPLIT, build, captions, suitable
from emojis.records import read_split
from make import main
from pixart.errors import PixArtError, UsageError

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
    name, share = leading_colour(turned)
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
        ("red lorry", "travel & places", None), ("apple", "food & drink", None),
    )  # fmt: skip
    for hue, (thing, group, tone) in enumerate(things):
        rgb = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue / 8, 0.9, 0.9))
        add(folder / "train", rows, thing, thing, tone, "things", "flat", lemon(rgb, 64))
        rows[-1] |= {"group": group, "licence": "CC-BY-4.0"}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_the_split_holds_only_training_things_that_may_have_any_colour(data):
    assert main(["recolour", str(data), "--copies", "2"]) == 0
    rows = [json.loads(line) for line in (data / SPLIT / "metadata.jsonl").read_text().splitlines()]
    assert {row["base_concept"] for row in rows} == {"lemonade", "teacup", "kite", "house"}
    turned = [row for row in rows if row["changed"]]
    assert len(turned) == 8 and all(row["licence"] == "CC-BY-4.0" for row in rows)
    records = read_split(data / SPLIT)
    for row, record in zip(rows, records, strict=True):
        picture = Image.open(record.path)
        assert leading_colour(picture)[0] == row["colour"]
        assert record.text == record.captions[0] == f"{row['colour']} {row['base_concept']}, flat"
        if row["changed"]:
            assert row["changed"].endswith(f"to {row['colour']}") and row["copied_from"].startswith("train/")
        else:
            assert record.path.read_bytes() == (data / row["copied_from"]).read_bytes()
    for name in {row["base_concept"] for row in turned}:
        assert len({row["colour"] for row in turned if row["base_concept"] == name}) == 2
    assert main(["recolour", str(data)]) == 2


def test_the_same_data_give_the_same_split(data, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train").symlink_to(data / "train")
        build(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a" / SPLIT).iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b" / SPLIT).iterdir())
    assert all((tmp_path / "a" / SPLIT / f).read_bytes() == (tmp_path / "b" / SPLIT / f).read_bytes() for f in files)


def test_names_that_say_a_colour_or_are_kept_apart_are_not_suitable(data):
    names = {record.concept: suitable(record, things()) for record in read_split(data / "train")}
    assert names["lemonade"] and not names["red lorry"] and not names["apple"] and not names["hand"]


def test_nothing_to_turn_and_no_data_are_one_sentence(tmp_path):
    with pytest.raises(PixArtError, match=r"metadata\.jsonl"):
        build(tmp_path)
    write_tiny_data(tmp_path / "data")
    with pytest.raises(PixArtError):
        build(tmp_path / "data")
    assert not list((tmp_path / "data").glob(".*"))
    with pytest.raises(UsageError):
        build(tmp_path / "data", copies=0)
