"""Buckets: the official tables, computed ones, bringing images into them, and batches of one shape."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixart.buckets import (
    CROPS,
    OFFICIAL_SIZES,
    Bucket,
    bucket_table,
    computed_table,
    cover,
    fit,
    kept_share,
    official_table,
    square_table,
)
from pixart.data.bucket_batches import EpochBatches, WeightedBatches, in_order
from pixart.data.dataset import check_dropped
from pixart.errors import PixArtError, UsageError

sides = st.integers(min_value=1, max_value=20_000)
assignments = st.lists(st.integers(min_value=0, max_value=4), min_size=1, max_size=40)


def stock_tables() -> dict[int, dict[str, list[float]]]:
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    return {
        256: alpha.ASPECT_RATIO_256_BIN,
        512: alpha.ASPECT_RATIO_512_BIN,
        1024: alpha.ASPECT_RATIO_1024_BIN,
        2048: sigma.ASPECT_RATIO_2048_BIN,
    }


@pytest.mark.parametrize("base_size", OFFICIAL_SIZES)
def test_the_tables_for_sampling_are_those_of_diffusers(base_size):
    ours = [(b.ratio, [b.height, b.width]) for b in official_table(base_size, sampling=True).buckets]
    assert ours == [(float(key), size) for key, size in stock_tables()[base_size].items()]


@pytest.mark.parametrize("base_size", OFFICIAL_SIZES)
def test_the_tables_for_training_have_40_buckets_in_the_proportions_of_2048(base_size):
    table = official_table(base_size)
    assert len(table.buckets) == 40
    scaled = {key: [side * base_size / 2048 for side in size] for key, size in stock_tables()[2048].items()}
    assert {str(b.ratio): [b.height, b.width] for b in table.buckets} == scaled


@given(sides, sides, st.sampled_from(OFFICIAL_SIZES))
def test_the_nearest_bucket_is_the_one_that_diffusers_takes(height, width, base_size):
    from diffusers.image_processor import PixArtImageProcessor

    table = official_table(base_size, sampling=True)
    bucket = table.buckets[table.nearest(height, width)]
    stock = PixArtImageProcessor.classify_height_width_bin(height, width, stock_tables()[base_size])
    assert (bucket.height, bucket.width) == stock


@given(st.integers(1, 80), st.sampled_from([8, 16, 32, 64]), st.floats(1, 16))
def test_computed_tables_stay_within_the_pixels_of_the_square_and_hold_it(times, step, max_ratio):
    base_size = times * step
    table = computed_table(base_size, step=step, max_ratio=max_ratio)
    ratios = [bucket.ratio for bucket in table.buckets]
    assert ratios == sorted(set(ratios))
    assert Bucket(1.0, base_size, base_size) in table.buckets
    for bucket in table.buckets:
        assert bucket.height % step == 0 and bucket.width % step == 0
        assert bucket.ratio == bucket.height / bucket.width
        assert bucket.height * bucket.width <= base_size**2
        assert 1 / max_ratio <= bucket.ratio * (1 + 1e-9) and bucket.ratio <= max_ratio * (1 + 1e-9)
        # No wider bucket of this height, or no higher one of this width, would fit.
        assert (
            bucket.height * (bucket.width + step) > base_size**2 or bucket.width * (bucket.height + step) > base_size**2
        )
        mirrored = Bucket(bucket.width / bucket.height, bucket.width, bucket.height)
        assert mirrored in table.buckets


def test_a_table_is_official_where_there_is_one_and_computed_elsewhere():
    assert bucket_table(512) == official_table(512)
    assert [(b.height, b.width) for b in bucket_table(64).buckets] == [
        (32, 128),
        (48, 80),
        (64, 64),
        (80, 48),
        (128, 32),
    ]
    assert len(bucket_table(512, step=64).buckets) < 40
    assert square_table(64).buckets == (Bucket(1.0, 64, 64),)


@pytest.mark.parametrize(
    "make",
    [
        lambda: official_table(300),
        lambda: computed_table(100),
        lambda: computed_table(64, step=0),
        lambda: computed_table(64, max_ratio=0.5),
        lambda: computed_table(64, max_ratio=float("nan")),
        lambda: official_table(256).nearest(0, 5),
        lambda: fit(Image.new("RGB", (9, 9)), square_table(16), crop="left"),
        lambda: EpochBatches([], 4, 0),
        lambda: EpochBatches([0], 0, 0),
        lambda: EpochBatches([-1], 4, 0),
        lambda: EpochBatches([0], 4, 0)(-1),
        lambda: WeightedBatches([0, 1], 4, 0, [1.0]),
        lambda: WeightedBatches([0, 1], 4, 0, [1.0, float("nan")]),
        lambda: WeightedBatches([0, 1], 4, 0, [0.0, 0.0]),
    ],
)
def test_what_no_table_and_no_batches_can_be_is_refused(make):
    with pytest.raises(UsageError):
        make()


@given(sides, sides, st.sampled_from([64, 256, 1024]))
def test_covering_fits_one_side_and_loses_what_kept_share_says(height, width, base_size):
    table = bucket_table(base_size)
    bucket = table.buckets[table.nearest(height, width)]
    covering = cover(height, width, bucket)
    assert covering[0] >= bucket.height and covering[1] >= bucket.width
    assert covering[0] == bucket.height or covering[1] == bucket.width
    exact = max(bucket.height / height, bucket.width / width)
    assert abs(covering[0] - exact * height) <= 0.5 and abs(covering[1] - exact * width) <= 0.5
    kept = bucket.height * bucket.width / (exact * height * exact * width)
    assert kept_share(height, width, bucket) == pytest.approx(kept)
    if 0.25 <= height / width <= 4 and base_size > 64:
        assert kept > 0.85  # the official tables lose little of any image within their range


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(CROPS), st.integers(0, 9), st.text(max_size=5))
def test_a_fitted_image_has_its_buckets_size_and_is_a_pure_function(height, width, crop, seed, name):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, table = Image.fromarray(pixels), computed_table(64)
    one, two = (fit(image, table, crop=crop, seed=seed, name=name) for _ in range(2))
    bucket = table.buckets[one.bucket]
    assert (one.image.height, one.image.width) == (bucket.height, bucket.width)
    assert one.image.tobytes() == two.image.tobytes() and one.crop_corner == two.crop_corner
    assert one.original_size == (height, width) and one.aspect_ratio == bucket.ratio
    covering = cover(height, width, bucket)
    assert 0 <= one.crop_corner[0] <= covering[0] - bucket.height
    assert 0 <= one.crop_corner[1] <= covering[1] - bucket.width


@settings(max_examples=40)
@given(st.integers(20, 200), st.integers(20, 200), st.sampled_from(CROPS))
def test_cropping_while_resizing_is_resizing_and_then_cropping(height, width, crop):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, table = Image.fromarray(pixels), computed_table(64)
    fitted = fit(image, table, crop=crop, name="a")
    bucket, (top, left) = table.buckets[fitted.bucket], fitted.crop_corner
    covering = cover(height, width, bucket)
    whole = image.resize((covering[1], covering[0]), Image.Resampling.BICUBIC)
    part = whole.crop((left, top, left + bucket.width, top + bucket.height))
    apart = np.abs(np.asarray(part, dtype=int) - np.asarray(fitted.image, dtype=int))
    assert apart.max() <= 2


def test_a_strip_of_an_image_never_becomes_a_giant_on_its_way():
    import tracemalloc

    strip = Image.new("RGB", (20_000, 1), "red")
    tracemalloc.start()
    fitted = fit(strip, official_table(256), crop="clever")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fitted.image.size == (512, 128)
    assert peak < 20e6  # numpy's part; resized whole it would be 128 x 2,560,000 pixels


def test_the_clever_crop_keeps_what_is_there_to_see():
    table = square_table(64)
    pixels = np.full((100, 300, 3), 255, dtype=np.uint8)
    pixels[20:80, 200:260] = np.random.default_rng(0).integers(0, 256, (60, 60, 3))
    kept = fit(Image.fromarray(pixels), table, crop="clever")
    left = kept.crop_corner[1] * 100 / 64
    assert left <= 201 and left + 100 >= 259
    upright = fit(Image.fromarray(np.swapaxes(pixels, 0, 1).copy()), table, crop="clever")
    assert abs(upright.crop_corner[0] - kept.crop_corner[1]) <= 2
    plain = Image.new("RGB", (300, 100), "white")
    assert fit(plain, table, crop="clever").crop_corner == fit(plain, table).crop_corner == (0, 64)


def test_random_crops_go_everywhere_and_follow_the_seed_and_the_name():
    image, table = Image.new("RGB", (128, 64)), square_table(64)
    corners = [fit(image, table, crop="random", seed=1, name=str(i)).crop_corner[1] for i in range(400)]
    assert min(corners) < 4 and max(corners) > 60 and len(set(corners)) > 50
    assert corners != [fit(image, table, crop="random", seed=2, name=str(i)).crop_corner[1] for i in range(400)]
    # Written out once more: an image extracted today must be extracted alike in a year.
    digests = [hashlib.blake2b(f"1:{i}".encode(), digest_size=8).digest() for i in range(400)]
    assert corners == [int.from_bytes(digest, "big") % 65 for digest in digests]


@given(assignments, st.integers(1, 9))
def test_in_order_has_every_image_once_and_never_two_shapes_in_a_batch(assignment, batch_size):
    batches = in_order(assignment, batch_size)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(assignment)))
    assert all({assignment[i] for i in batch.indices} == {batch.bucket} for batch in batches)
    for bucket, count in Counter(batch.bucket for batch in batches).items():
        assert count == -(-assignment.count(bucket) // batch_size)


@given(assignments, st.integers(1, 9), st.integers(0, 3), st.integers(1, 60))
def test_epoch_batches_lose_nothing_and_never_mix_shapes(assignment, batch_size, seed, steps):
    batches = EpochBatches(assignment, batch_size, seed)
    seen, turns = Counter(), Counter()
    whole_epochs = batches.epoch_of(steps)
    steps = batches.steps_before(whole_epochs) or steps
    for step in range(steps):
        batch = batches(step)
        assert len(batch.indices) == batch_size
        assert {assignment[i] for i in batch.indices} == {batch.bucket}
        seen.update(int(i) for i in batch.indices)
        turns[batch.bucket] += 1
    if batches.steps_before(whole_epochs):
        for index, bucket in enumerate(assignment):
            size = assignment.count(bucket)
            taken = turns[bucket] * batch_size
            assert taken // size <= seen[index] <= -(-taken // size)
            # Nothing waits longer than the batch that is not full yet.
            assert whole_epochs * size - taken < batch_size


@given(assignments, st.integers(1, 9), st.integers(0, 3), st.integers(0, 10_000))
def test_an_epoch_batch_follows_from_the_seed_and_its_number_alone(assignment, batch_size, seed, step):
    used = EpochBatches(assignment, batch_size, seed)
    for before in (0, 1, step // 2, step + 1):
        used(before)
    fresh = EpochBatches(assignment, batch_size, seed)
    assert used(step).bucket == fresh(step).bucket
    assert used(step).indices.tolist() == fresh(step).indices.tolist()


def test_epochs_are_shuffled_over_buckets_and_differ():
    batches = EpochBatches([0] * 64 + [1] * 64, 4, seed=0)
    assert batches.steps_before(1) == 32 and batches.epoch_of(31) == 0 and batches.epoch_of(32) == 1
    first, second = ([batches(e * 32 + k) for k in range(32)] for e in (0, 1))
    assert [b.bucket for b in first] != sorted(b.bucket for b in first)
    assert [b.indices.tolist() for b in first] != [b.indices.tolist() for b in second]
    assert sorted(i for b in first for i in b.indices) == list(range(128))
    other = EpochBatches([0] * 64 + [1] * 64, 4, seed=1)
    assert [other(k).indices.tolist() for k in range(32)] != [b.indices.tolist() for b in first]


@given(assignments, st.integers(1, 9), st.integers(0, 1000))
def test_weighted_batches_never_mix_shapes_and_repeat_themselves(assignment, batch_size, step):
    weights = [0.0 if i % 3 == 1 else 1.0 + i for i in range(len(assignment))]
    one, two = (WeightedBatches(assignment, batch_size, 5, weights)(step) for _ in range(2))
    assert one.bucket == two.bucket and one.indices.tolist() == two.indices.tolist()
    assert {assignment[i] for i in one.indices} == {one.bucket}
    assert all(weights[i] > 0 for i in one.indices)


def test_weighted_batches_choose_each_image_as_often_as_its_weight_says():
    weights = np.array([1.0, 1.0, 2.0, 4.0, 0.0, 8.0])
    batches = WeightedBatches([0, 3, 0, 3, 0, 7], 8, 0, weights)
    taken = Counter(int(i) for step in range(4000) for i in batches(step).indices)
    shares = np.array([taken[i] / 32_000 for i in range(6)])
    assert np.abs(shares - weights / 16).max() < 0.02
    assert taken[4] == 0


def test_one_percent_may_be_dropped_and_more_must_be_allowed():
    check_dropped(0, 10)
    check_dropped(10, 1000)
    check_dropped(3, 10, allowed=0.3)
    with pytest.raises(PixArtError) as stopped:
        check_dropped(11, 1000, examples=(f"{n}.png: it is truncated" for n in range(11)))
    for part in ("11 of 1,000", "0.png: it is truncated", "--allow-dropped 0.02"):
        assert part in str(stopped.value)
    check_dropped(11, 1000, allowed=0.02)  # what the message advises
    for counts in ({"dropped": 5, "total": 5, "allowed": 1}, {"dropped": 0, "total": 0}):
        with pytest.raises(PixArtError):
            check_dropped(**counts)
    with pytest.raises(PixArtError):
        check_dropped(0, 10, allowed=0.9, unknown=("0.tar: it is cut off",))
    check_dropped(0, 10, allowed=1, unknown=("0.tar: it is cut off",))
