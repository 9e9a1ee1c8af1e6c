"""Which true picture is nearest to a drawn one, and the grid of held-out captions that counts it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_data import COLOURS, SHAPES, STYLES, draw, write_tiny_data

from pixart.data.imagefolder import read_split
from pixart.errors import UsageError
from pixart.evaluation.nearest import distances, gradient_histogram, lab, nearest, thumbnail

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "held_out_grid.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("held_out_grid", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(side: int = 64) -> list[Image.Image]:
    return [draw(shape, rgb, style, side) for shape in SHAPES for rgb in COLOURS.values() for style in STYLES]


def spoiled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moved by two pixels, with strong noise."""
    moved = np.roll(np.asarray(image).astype(float), 2, axis=(0, 1))
    return Image.fromarray((moved + rng.normal(0, 25, moved.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # as colour tables give them for sRGB under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((128, 128, 128), (53.59, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 0), (97.14, -21.55, 94.48)),
    ],
)
def test_lab_of_known_colours(rgb, expected):
    assert lab(np.array(rgb, dtype=np.uint8)) == pytest.approx(expected, abs=0.03)


def test_lab_keeps_the_shape_of_a_picture():
    assert lab(np.zeros((3, 5, 3), dtype=np.uint8)).shape == (3, 5, 3)


def test_spoiled_copies_find_themselves_at_another_size():
    rng = np.random.default_rng(0)
    drawn = [spoiled(image, rng) for image in shapes(128)]
    assert nearest(drawn, shapes()).tolist() == list(range(18))


def test_soft_copies_find_themselves():
    soft = [image.filter(ImageFilter.GaussianBlur(5)) for image in shapes()]
    assert nearest(soft, shapes()).tolist() == list(range(18))
    pale = [Image.blend(Image.new("RGB", image.size, "white"), image, 0.6) for image in shapes()]
    for image, paler in zip(shapes(), pale, strict=True):
        assert np.allclose(gradient_histogram(image), gradient_histogram(paler), atol=0.03)
    assert gradient_histogram(Image.new("RGB", (64, 64), "red")).tolist() == [0] * 128


def test_it_follows_the_order_of_the_true_pictures():
    order = np.random.default_rng(1).permutation(18)
    true = [shapes()[k] for k in order]
    assert order[nearest(shapes(), true)].tolist() == list(range(18))


def test_drawing_without_regard_to_the_caption_is_right_by_chance_only():
    rng = np.random.default_rng(2)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(18)]
    assert (nearest(noise, shapes()) == np.arange(18)).sum() <= 3
    assert (nearest([shapes()[4]] * 18, shapes()) == np.arange(18)).sum() == 1


def stripes(level: bool, colour: str) -> Image.Image:
    """One-pixel stripes: the thumbnail sees their mean colour only, the grey copy their direction."""
    image = Image.new("RGB", (64, 64), "white")
    for at in range(0, 64, 4):
        image.paste(colour, (0, at, 64, at + 2) if level else (at, 0, at + 2, 64))
    return image


def test_edges_tell_apart_what_colours_cannot_and_the_other_way_round():
    level, upright = stripes(True, "black"), stripes(False, "black")
    assert np.allclose(thumbnail(level), thumbnail(upright))
    assert nearest([upright, level], [level, upright]).tolist() == [1, 0]
    red, teal = stripes(True, "#ff0000"), stripes(True, "#006c6c")  # equally light in grey
    assert np.abs(gradient_histogram(red) - gradient_histogram(teal)).max() < 0.02 * gradient_histogram(red).max()
    assert nearest([teal, red], [red, teal]).tolist() == [1, 0]


def test_directions_fall_into_the_right_bin_and_cell():
    image = Image.new("L", (64, 64), 0)
    image.paste(255, (0, 8, 16, 64))  # dark above light in the upper left corner: a gradient straight down
    cells = gradient_histogram(image).reshape(4, 4, 8)
    assert cells[0, 0].argmax() == 4  # 90 degrees
    assert cells[0, 0, 4] > 10 * cells[0, 0, [1, 2, 6, 7]].max()
    assert cells[:, 2:].sum() == 0


def test_both_parts_weigh_equally_between_true_pictures():
    true = shapes()
    parts = []
    for describe in (thumbnail, gradient_histogram):
        features = np.array([describe(image) for image in true])
        pairs = np.linalg.norm(features[:, None] - features[None], axis=-1)
        parts.append(pairs / pairs[~np.eye(18, dtype=bool)].mean())
    assert np.allclose(distances(true, true), np.hypot(*parts))


def test_nothing_to_tell_apart():
    assert nearest([], shapes()).tolist() == []
    with pytest.raises(ValueError, match="two true pictures"):
        nearest(shapes(), shapes()[:1])


def test_captions_are_chosen_by_the_seed_one_per_concept(benchmark, tmp_path):
    records = read_split(write_tiny_data(tmp_path) / "train")
    chosen = benchmark.choose(records, 6, seed=0)
    assert len({record.base_concept for record in chosen}) == 6
    assert benchmark.choose(records[::-1], 6, seed=0) == chosen
    assert benchmark.choose(records, 6, seed=1) != chosen
    with pytest.raises(UsageError, match="from 2 to 9"):
        benchmark.choose(records, 10, seed=0)


def test_the_copy_is_of_the_same_concept_from_training(benchmark, tmp_path):
    held_out, train = (read_split(write_tiny_data(tmp_path) / split) for split in ("test_cells", "train"))
    for record, copy in zip(held_out, benchmark.other_style(held_out, train, seed=0), strict=True):
        assert copy.concept == record.concept and copy.style != record.style
    assert benchmark.other_style(held_out, train[-1:], seed=0)[1] is None


def test_the_grid_is_drawn_and_counted(benchmark, tmp_path, tiny_model, capsys):
    data, out = write_tiny_data(tmp_path / "data"), tmp_path / "new" / "out"
    words = ["--data", data, "--model", tiny_model, "--count", 3, "--size", 64, "--steps", 1, "--out", out]
    assert benchmark.main([str(word) for word in words]) == 0
    printed = json.loads(capsys.readouterr().out)
    figures = json.loads((out / "held-out-grid.json").read_text())
    assert printed == {key: value for key, value in figures.items() if key != "pictures"}
    pictures = figures["pictures"]
    held_out = {record.text for record in read_split(data / "test_cells")}
    assert {picture["text"] for picture in pictures} == held_out
    assert [picture["number"] for picture in pictures] == [1, 2, 3]
    assert [picture["seed"] for picture in pictures] == [0, 1, 2]
    hits = [picture["nearest_number"] == picture["number"] for picture in pictures]
    assert figures["own_is_nearest"] == sum(hits) == sum(s["own_is_nearest"] for s in figures["by_style"].values())
    assert {style: count["of"] for style, count in figures["by_style"].items()} == {"Noto": 2, "flat": 1}
    assert figures["settings"]["steps"] == 1 and len(figures["settings"]["model_hash"]) == 64
    copies = figures["trivial_answers"]["training_picture_of_the_concept_in_another_style"]
    assert copies["of"] == 3
    with Image.open(out / "held-out-grid.png") as grid, Image.open(out / "held-out-drawn.png") as sheet:
        assert grid.width > 3 * 2 * 128 and sheet.width > 3 * 128
        assert np.asarray(sheet).std() > 10


def test_missing_data_is_named(benchmark, tmp_path, capsys):
    assert benchmark.main(["--data", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
