"""The feature folder: what is written comes back through the memory map, and nothing stale or foreign is read."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixart.data.feature_shards import Features, Origin, open_features
from pixart.data.feature_writer import (
    About,
    BatchRecord,
    FeatureRow,
    write_batch,
    write_manifest,
    write_null_text,
)
from pixart.data.storage import Folder
from pixart.errors import PixArtError, UsageError

ORIGIN = Origin(vae="v", text_encoder="t", tokenizer="k", settings={"base_size": 64, "flip": True, "crop": "centre"})
SHAPES = {"64x64": (4, 8, 8), "96x48": (4, 6, 12)}  # WxH


def row(number: int, bucket: str) -> FeatureRow:
    """A row whose numbers say which it is."""
    moments = tuple(torch.full(SHAPES[bucket], number + part / 10) for part in range(4))
    captions = tuple((c % 2, torch.full((3 + number + c, 5), float(10 * number + c))) for c in range(1 + number % 3))
    return FeatureRow(
        key=f"bild/{number}-ä.png", moments=moments, captions=captions, label=number % 2, original_size=(100, number),
        crop=(number, 1), repeats=number,
    )  # fmt: skip


def write(folder: Path, *, origin: Origin = ORIGIN) -> Features:
    """Two batches of the data: rows 0 to 3 and 4 to 6, every third of them wide."""
    place = Folder(str(folder))
    records = []
    for number, rows in enumerate((range(4), range(4, 7))):
        by_bucket: dict[str, list[FeatureRow]] = {}
        for i in rows:
            bucket = "96x48" if i % 3 == 0 else "64x64"
            by_bucket.setdefault(bucket, []).append(row(i, bucket))
        record = BatchRecord(number, len(rows), data=f"d{number}", glance=f"g{number}")
        records.append(write_batch(place, record, by_bucket, origin))
    about = About(origin, "data", class_names=("cat", "dog"), caption_sources=("text", "llava"), text_dim=5)
    write_manifest(place, records[::-1], about, write_null_text(place, torch.full((2, 5), -1.0)))
    return open_features(folder)


def test_rows_come_back_as_they_were_written_in_the_order_of_the_data(tmp_path):
    features = write(tmp_path / "f")
    assert features.buckets == {"64x64": 4, "96x48": 3} and len(features) == 7
    assert (features.class_names, features.caption_sources) == (("cat", "dog"), ("text", "llava"))
    order = {"64x64": [1, 2, 4, 5], "96x48": [0, 3, 6]}
    for bucket, numbers in order.items():
        batch = features.read(bucket, range(len(numbers)))
        assert batch.keys == [f"bild/{n}-ä.png" for n in numbers]
        assert batch.mean.dtype == batch.std.dtype == torch.float16
        assert batch.mean.shape == batch.std.shape == (len(numbers), *SHAPES[bucket])
        assert batch.mean[:, 0, 0, 0].tolist() == numbers
        assert batch.label.tolist() == [n % 2 for n in numbers]
        assert batch.original_size.tolist() == [[100, n] for n in numbers]
        assert batch.crop.tolist() == [[n, 1] for n in numbers]
    turned = features.read("64x64", [3, 0, 3])
    assert turned.mean[:, 0, 0, 0].tolist() == [5, 1, 5]


def test_captions_are_chosen_padded_with_a_mask_and_dropped_to_the_null_text(tmp_path):
    features = write(tmp_path / "f")
    batch = features.read("64x64", [1, 2, 3], captions=[2, 0, -1])
    assert batch.text.shape == (3, 16, 5) and batch.text_mask.dtype == torch.bool
    assert batch.text_mask.sum(dim=1).tolist() == [3 + 2 + 2, 3 + 4, 2]
    for values, mask, expected in zip(batch.text, batch.text_mask, [22, 40, -1], strict=True):
        assert (values[mask] == expected).all() and not values[~mask].any()
    assert torch.equal(features.null_text, torch.full((2, 5), -1.0).half())
    with pytest.raises(UsageError, match="has 2 captions; there is no caption 2"):
        features.read("64x64", [0], captions=[2])


def test_mirrored_moments_are_chosen_row_by_row(tmp_path):
    features = write(tmp_path / "f")
    batch = features.read("64x64", [0, 1], flipped=[True, False])
    assert batch.mean[:, 0, 0, 0].tolist() == pytest.approx([1.2, 2.0], abs=1e-3)
    assert batch.std[:, 0, 0, 0].tolist() == pytest.approx([1.3, 2.1], abs=2e-3)


def test_the_small_columns_of_a_bucket(tmp_path):
    features = write(tmp_path / "f")
    table = features.table("64x64")
    assert table.caption_counts.tolist() == [2, 3, 2, 3] and table.label.tolist() == [1, 0, 0, 1]
    assert table.repeats.tolist() == [1, 2, 4, 5]
    assert table.original_size.tolist() == [[100, 1], [100, 2], [100, 4], [100, 5]]
    assert features.sources_of("64x64", 3) == ["text", "llava", "text"]
    assert features.sources_of("96x48", 2) == ["text"]


def test_it_survives_pickling_and_verifies(tmp_path):
    features = pickle.loads(pickle.dumps(write(tmp_path / "f")))
    assert features.read("96x48", [1]).mean[0, 0, 0, 0] == 3
    features.verify()


def test_rows_and_buckets_that_are_not_there_are_refused(tmp_path):
    features = write(tmp_path / "f")
    with pytest.raises(UsageError, match="no bucket 32x32; it has 64x64, 96x48"):
        features.read("32x32", [0])
    for rows in ([4], [-1], []):
        with pytest.raises(UsageError, match="the 4 rows of bucket 64x64"):
            features.read("64x64", rows)
    plain = write(tmp_path / "g", origin=replace(ORIGIN, settings={"base_size": 64, "flip": False}))
    with pytest.raises(UsageError, match="--flip"):
        plain.read("64x64", [0], flipped=[True])


def test_features_of_another_make_are_refused_with_what_differs(tmp_path):
    features = write(tmp_path / "f")
    features.check(vae="v", text_encoder="t", tokenizer="k", base_size=64)
    for given, said in (
        ({"vae": "w"}, "another VAE"),
        ({"text_encoder": "w"}, "another text encoder"),
        ({"tokenizer": "w"}, "another tokenizer"),
        ({"base_size": 128}, "base size 64 instead of 128"),
        ({"vae": "w", "base_size": 128}, "another VAE; base size 64 instead of 128"),
    ):
        with pytest.raises(PixArtError, match=f"was made with {said}"):
            features.check(**given)
    with pytest.raises(PixArtError, match="made with version 0 of the extraction, and this is version 1"):
        write(tmp_path / "old", origin=replace(ORIGIN, code=0))


def test_damage_is_named(tmp_path):
    def spoil(name: str, change) -> Path:
        write(tmp_path / name)
        shard = tmp_path / name / "64x64" / "00001.safetensors"
        change(shard)
        return tmp_path / name

    with pytest.raises(PixArtError, match=r"nowhere has no features"):
        open_features(tmp_path / "nowhere")
    with pytest.raises(PixArtError, match=r"00001\.safetensors is missing"):
        open_features(spoil("missing", Path.unlink))
    with pytest.raises(PixArtError, match=r"00001\.safetensors has another length"):
        open_features(spoil("short", lambda path: path.write_bytes(path.read_bytes()[:-1])))

    def flip_bit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-100] ^= 4
        path.write_bytes(content)

    with pytest.raises(PixArtError, match=r"00001\.safetensors is damaged"):
        open_features(spoil("bit", flip_bit)).verify()

    def exchange(path: Path) -> None:  # a shard of the same length from another run
        write(path.parent.parent / "other")
        tensors_of_other = (path.parent.parent / "other/64x64/00001.safetensors").read_bytes()
        path.write_bytes(tensors_of_other.replace(b'"content\\": \\"', b'"content\\": \\"0', 1)[: path.stat().st_size])

    with pytest.raises(PixArtError, match=r"00001\.safetensors (cannot be read|is not the shard)"):
        open_features(spoil("foreign", exchange)).read("64x64", [3])
    manifest = spoil("format", lambda path: None) / "features.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "pixart-features-9"}))
    with pytest.raises(PixArtError, match="format 'pixart-features-9'"):
        open_features(manifest.parent)
    for text in ("", "[]", "{}", '{"format": "pixart-features-1"}', "\x00\xff"):
        manifest.write_text(text)
        with pytest.raises(PixArtError, match=r"features\.json"):
            open_features(manifest.parent)
