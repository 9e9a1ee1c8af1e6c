"""The statistics under an evaluation: chances, kernel distances, nearness of copies, features that nobody trained."""

import math
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from tiny_data import COLOURS, SHAPES, draw

from emojis.colours import cielab, leading_colour
from emojis.features import gradient_histogram, plain, textures
from emojis.measures import chance_of_first, kernel_distance, mean, nearness
from emojis.reference import Reference, Seen


def test_the_chance_of_being_first_is_what_drawing_candidates_gives():
    better = np.array([0, 1, 5, 40, 999])
    exact = [comb(999 - b, 499) / comb(999, 499) for b in better]
    assert chance_of_first(better, 1000, 1) == pytest.approx(exact)
    rng = np.random.default_rng(0)
    drawn = np.array([rng.choice(999, 499, replace=False) for _ in range(4000)])
    for b, first_ten in zip(better, chance_of_first(better, 1000, 10), strict=True):
        assert first_ten == pytest.approx(((drawn < b).sum(axis=1) < 10).mean(), abs=0.02)
    assert chance_of_first(np.array([0, 9, 10]), 400, 10).tolist() == [1.0, 1.0, 0.0]  # fewer than 500: all of them


def test_an_interval_over_concepts_is_wider_than_one_over_pictures():
    rng = np.random.default_rng(1)
    concepts = np.repeat(np.arange(40), 10)
    values = (rng.random(40) < 0.5).astype(float)[concepts]  # all pictures of a concept alike
    by_concept, by_picture = mean(values, concepts), mean(values, np.arange(400))
    assert by_concept.value == by_picture.value == values.mean()
    assert by_concept.low < by_picture.low < values.mean() < by_picture.high < by_concept.high
    assert by_concept.high - by_concept.low == pytest.approx(4 * 0.5 / math.sqrt(40), rel=0.2)


def direct(x, y) -> float:
    """Gretton et al. (2012), equation 3, by the letter, with the cubic kernel."""
    kernel = lambda a, b: (a @ b + 1) ** 3  # noqa: E731
    m, n = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within += sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return 1000 * (within - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n))


def test_the_kernel_distance_is_the_unbiased_one():
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 0.5, (12, 3)), rng.normal(0.3, 0.5, (9, 3))
    found = kernel_distance(x, np.arange(12), y, np.arange(12, 21), np.ones(9))
    assert found.value == pytest.approx(direct(x, y))
    values = []
    for seed in range(200):
        x, y = (np.random.default_rng([seed, k]).normal(0, 0.6, (20, 4)) for k in range(2))
        one = kernel_distance(x, np.arange(20), y, np.arange(20, 40), np.ones(20), resamples=2)
        values.append(one.value)
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)  # none between sets of one distribution


def test_pictures_of_one_concept_are_not_compared_with_each_other():
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 0.7, (30, 4))
    x = np.concatenate([centres, centres])  # every concept twice: as if the pictures were not independent
    concepts = np.tile(np.arange(30), 2)
    twice = kernel_distance(x, concepts, centres, np.arange(30), np.ones(30))
    assert twice.value == pytest.approx(0, abs=1e-9)
    far = kernel_distance(x + 0.5, concepts, centres, np.arange(30), np.ones(30))
    assert far.low > 0


def test_weights_count_as_often_as_they_say():
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 0.5, (20, 3)), rng.normal(0.2, 0.5, (20, 3))
    at, weight = np.arange(20), np.where(np.arange(20) < 5, 2.0, 1.0)
    # One concept more for every doubled row, which is another picture that happens to look the same.
    doubled = np.concatenate([y, y[:5]])
    a = kernel_distance(x, at, y, at + 20, weight, resamples=2).value
    b = kernel_distance(x, at, doubled, np.concatenate([at, at[:5]]) + 20, np.ones(25), resamples=2).value
    assert a == pytest.approx(b)


def test_a_copy_is_near_to_one_training_picture_and_a_new_picture_to_none():
    pictures = [draw(shape, rgb, "flat") for shape in SHAPES for rgb in COLOURS.values()]
    features = plain(pictures)
    nobody = Seen(np.zeros((0, 1)), [], features[:0], [])
    centre, away = features.mean(axis=0), features - features.mean(axis=0)
    reference = Reference([], nobody, nobody, centre, 1.0, np.eye(1024), away, np.arange(9), "")
    soft = plain([picture.filter(ImageFilter.GaussianBlur(0.3)) for picture in pictures])
    assert (nearness(features, reference) < 1e-2).all() and (nearness(soft, reference) < 1 / 3).all()
    twins = replace(reference, train=np.repeat(away, 2, axis=0), train_concept=np.repeat(np.arange(9), 2))
    assert (nearness(soft, twins) < 1 / 3).all()  # though two training pictures are as near
    between = plain([draw(shape, (230, 200, 40), "Noto") for shape in SHAPES])
    assert (nearness(between, reference) > 1 / 3).all()


def test_plain_features_see_colour_edges_and_texture_at_any_size():
    red, green = draw("circle", (220, 30, 30), "flat"), draw("circle", (30, 160, 60), "flat")
    rows = plain([red, green, red.resize((128, 128)), red.convert("RGBA")])
    assert rows.shape == (4, 1024) and (rows[0] == rows[3]).all()
    assert np.linalg.norm(rows[0] - rows[2]) < 0.2 * np.linalg.norm(rows[0] - rows[1])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert np.linalg.norm(textures(Image.fromarray(noise)) - textures(grey)) > 1


@pytest.mark.parametrize("colour", COLOURS)
def test_the_leading_colour_is_that_of_the_object_and_not_of_the_background(colour):
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).ellipse((30, 20, 50, 40), COLOURS[colour])  # a twentieth of the picture
    assert leading_colour(image)[0] == colour
    assert leading_colour(Image.new("RGB", (64, 64), "white")) == (None, 0.0)


def test_white_within_an_object_is_not_background():
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), "white", (220, 30, 30), width=3)
    assert leading_colour(image)[0] == "white"


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # as colour tables give them for sRGB under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)), ((0, 0, 0), (0.0, 0.0, 0.0)), ((128, 128, 128), (53.59, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)), ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)  # fmt: skip
def test_lab_of_known_colours(rgb, expected):
    assert cielab(np.array(rgb, dtype=np.uint8)) == pytest.approx(expected, abs=0.03)


def test_directions_fall_into_the_right_bin_and_cell():
    image = Image.new("L", (64, 64), 0)
    image.paste(255, (0, 8, 16, 64))  # dark above light in the upper left corner: a gradient straight down
    cells = gradient_histogram(image).reshape(4, 4, 8)
    assert cells[0, 0].argmax() == 4  # 90 degrees
    assert cells[0, 0, 4] > 10 * cells[0, 0, [1, 2, 6, 7]].max()
    assert cells[:, 2:].sum() == 0
