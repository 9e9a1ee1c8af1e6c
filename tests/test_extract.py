"""`pixart data extract`: what comes out equals the encoders' own, whoever computes it, and it goes on after a kill."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import CLASSES, write_photos
from PIL import Image
from tiny_run import start

from pixart.cli import main
from pixart.data.extract import Extractor, Job, choose_for
from pixart.data.features import FeatureRow, Features, Settings, open_features, pad, weights_id
from pixart.errors import PixArtError
from pixart.runtime.device import Device

SIZE = ("--base-size", "64")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", weight=lambda i: 1 + i % 3)


@pytest.fixture(scope="module")
def plain(photos, tiny_model, tmp_path_factory) -> Path:
    """Features in batches of eight. Do not change them; copy them."""
    folder = tmp_path_factory.mktemp("plain") / "f"
    assert extract(photos, folder, tiny_model) == 0
    return folder


def extract(photos: Path, dest: Path, model: Path, *more: str) -> int:
    words = ["data", "extract", photos, dest, "--model", model, *SIZE, "--rows", "8", "--precision", "float32"]
    return main([*map(str, words), *more])


def assert_same(ours: Path, theirs: Path) -> None:
    """The same shards, byte by byte, and nothing left over."""
    names = sorted(path.relative_to(theirs).as_posix() for path in theirs.rglob("*") if path.is_file())
    assert sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*") if path.is_file()) == names
    for name in names:
        if name.endswith(".safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_features_equal_what_the_stock_encoders_make(photos, plain, tiny_model):
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, BertModel

    store = open_features(plain)
    assert len(store) == 40 and store.has_text and store.manifest.origin.settings.rows == 8
    vae = AutoencoderKL.from_pretrained(tiny_model / "vae")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model / "tokenizer")
    encoder = BertModel.from_pretrained(tiny_model / "text_encoder")
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    by_key = {line["file_name"]: line for line in lines}
    for row in range(0, len(store), 7):
        found = store.read(np.array([row]))
        (key,) = found.keys
        with Image.open(photos / key) as image:
            width, height = image.size
        assert found.original_size.tolist() == [[height, width]]
        bucket = store.bucket_names[store.bucket[row]].split("x")
        assert found.mean.shape[2:] == (int(bucket[1]) // 8, int(bucket[0]) // 8)
        if (width, height) == (int(bucket[0]), int(bucket[1])):  # neither resized nor cropped: its very pixels
            with Image.open(photos / key) as image:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32)) / 127.5 - 1
            posterior = vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist
            # 128 for 127.5 would change means by some 4e-3
            assert (found.mean.float() - posterior.mean).abs().max() < 1e-3
            assert (found.std.float() - posterior.std).abs().max() < 1e-3
        tokens = tokenizer(by_key[key]["text"], return_tensors="pt")
        states = encoder(**tokens).last_hidden_state[0]
        assert torch.allclose(found.text[0, : len(states)].float(), states, atol=4e-3)
        assert int(found.text_mask.sum()) == len(states)
    sizes = {store.bucket_names[i] for i in store.bucket}
    assert "64x64" in sizes and len(sizes) > 2
    labels = store.columns["label"][:, 0]
    assert set(store.manifest.labels["class"]) == set(CLASSES) and set(labels.tolist()) == {0, 1, 2}
    keys = [key for bucket in set(store.bucket) for key in store.read(np.flatnonzero(store.bucket == bucket)).keys]
    order = np.concatenate([np.flatnonzero(store.bucket == bucket) for bucket in set(store.bucket)])
    weights = dict(zip(keys, store.columns["weight"][order], strict=True))
    assert all(weights[f"{i:04d}.jpg"] == 1 + i % 3 for i in range(40))


def test_killed_again_and_again_it_ends_with_the_same_folder(photos, plain, tiny_model, tmp_path):
    words = ["data", "extract", photos, tmp_path / "f", "--model", tiny_model, *SIZE, "--rows", "8"]
    words = [*map(str, words), "--precision", "float32"]
    for done in (1, 3):
        process = start(main, words)
        end = time.monotonic() + 240
        while len(list((tmp_path / "f" / "progress").glob("0*.json"))) < done:
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.005)
        process.kill()
        process.join()
        with pytest.raises(PixArtError):
            open_features(tmp_path / "f")
    assert extract(photos, tmp_path / "f", tiny_model) == 0
    assert_same(tmp_path / "f", plain)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_shard_of_an_unfinished_folder_is_made_again(
    photos, plain, tiny_model, tmp_path, damage, monkeypatch
):
    """What is found half done is read and compared, not believed."""
    import pixart.data.extract as module

    folder, calls = tmp_path / "f", []

    def stop_at_the_third(extractor, batch, where, before=module.work):
        calls.append(batch.number)
        if batch.number == 3 and len(calls) == 4:
            raise KeyboardInterrupt
        return before(extractor, batch, where)

    monkeypatch.setattr(module, "work", stop_at_the_third)
    assert extract(photos, folder, tiny_model) == 130
    shard = next(folder.glob("*/00001.safetensors"))
    content = shard.read_bytes()
    changed = content[:-100] if damage == "truncated" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    shard.write_bytes(changed)
    if damage == "removed":
        shard.unlink()
    assert extract(photos, folder, tiny_model) == 0
    assert calls == [0, 1, 2, 3, 1, 3, 4]
    assert_same(folder, plain)


def test_a_finished_folder_is_checked_and_damage_is_named(photos, plain, tiny_model, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "f")
    assert extract(photos, folder, tiny_model) == 0
    assert_same(folder, plain)
    shard = next(folder.glob("*/00001.safetensors"))
    content = shard.read_bytes()
    for changed in (content[:-1], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b"", None):
        shard.unlink()
        if changed is not None:
            shard.write_bytes(changed)
        assert extract(photos, folder, tiny_model) == 1
        assert shard.name in capsys.readouterr().err
        shard.write_bytes(content)
    for damaged in (
        "{",
        "[]",
        '{"format": 3}',
        json.dumps({"format": "pixart-features-3", "origin": 1}),
        "[" * 200_000,
    ):
        (folder / "features.json").write_text(damaged)
        with pytest.raises(PixArtError):
            open_features(folder)


def test_other_data_encoders_and_settings_are_refused_with_what_differs(photos, plain, tiny_model, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "f")
    for more, word in ((["--flip"], "flip"), (["--crop", "random"], "crop"), (["--max-tokens", "7"], "max tokens")):
        assert extract(photos, folder, tiny_model, *more) == 1
        assert word in capsys.readouterr().err
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert extract(photos, folder, other) == 1 and "autoencoder" in capsys.readouterr().err
    copy = shutil.copytree(photos, tmp_path / "photos")
    os.utime(copy / "0003.jpg")  # touched, and the same
    assert extract(copy, folder, tiny_model) == 0
    Image.new("RGB", (64, 64), "red").save(copy / "0003.jpg")
    assert extract(copy, folder, tiny_model) == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert extract(photos, tmp_path / "full", tiny_model) == 2 and (tmp_path / "full" / "mine.txt").exists()


def test_what_the_machine_decides_is_chosen_once(photos, plain, tiny_model, tmp_path, monkeypatch):
    amx = Device("cpu", "new", 8 << 30, 8 << 30, True, False)
    avx2 = Device("cpu", "old", 8 << 30, 8 << 30, False, False)
    assert choose_for(amx)["precision"] == "bfloat16" and choose_for(avx2)["precision"] == "float32"
    words = ["data", "extract", str(photos), str(tmp_path / "f"), "--model", str(tiny_model), *SIZE, "--rows", "8"]
    for device in (avx2, amx):  # continued on another machine, it goes on as it began
        monkeypatch.setattr("pixart.commands.extract.find_devices", lambda device=device: [device])
        assert main(words) == 0
    assert open_features(tmp_path / "f").settings.precision == "float32"


def test_views_are_crops_and_their_mirror_images(photos, tiny_model, tmp_path):
    assert extract(photos, tmp_path / "f", tiny_model, "--crop", "random", "--crops", "3", "--flip") == 0
    store = open_features(tmp_path / "f")
    assert store.views == 6
    row = np.flatnonzero(store.bucket == store.bucket_names.index("64x64"))[:1]
    views = [store.read(row, views=np.array([view])) for view in range(6)]
    assert all(torch.equal(views[i].crop, views[i + 1].crop) for i in (0, 2, 4))
    assert not torch.equal(views[0].mean, views[1].mean)
    assert main(["data", "extract", str(photos), str(tmp_path / "g"), "--crops", "2"]) == 2


def test_label_columns_make_several_kinds_of_classes(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 10, style=lambda i: ("flat", "3D")[i % 2], group=lambda i: f"g{i // 4}")
    assert extract(photos, tmp_path / "f", tiny_model, "--labels-only", "--label", "group", "style") == 0
    store = open_features(tmp_path / "f")
    assert not store.has_text and store.unconditional is None
    assert {kind: set(names) for kind, names in store.manifest.labels.items()} == {
        "group": {"g0", "g1", "g2"},
        "style": {"flat", "3D"},
    }
    assert store.columns["label"].shape == (10, 2) and store.columns["label"].min() == 0


def test_broken_images_are_named_counted_and_bounded(tiny_model, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 20)
    (photos / "0004.jpg").write_bytes((photos / "0004.jpg").read_bytes()[:200])
    assert extract(photos, tmp_path / "f", tiny_model) == 1 and "0004.jpg" in capsys.readouterr().err
    assert extract(photos, tmp_path / "f", tiny_model, "--allow-dropped", "0.1") == 0
    store = open_features(tmp_path / "f")
    assert len(store) == 19 and store.dropped()[0] == 1 and "0004.jpg" in store.dropped()[1][0]


@pytest.mark.parametrize(
    "words",
    [
        ["--allow-dropped", "2"], ["--rows", "0"], ["--base-size", "100000"], ["--crop", "best"], ["--max-tokens", "0"],
        ["--precision", "float16"], ["--workers", "2"], ["--base-size", "60"], ["--encoded-pixels", "0"],
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(photos, tiny_model, tmp_path, words):
    command = ["data", "extract", str(photos), str(tmp_path / "f"), "--model", str(tiny_model), *words]
    assert main(command) == 2 and not (tmp_path / "f" / "features.json").exists()


def test_a_row_alone_and_in_company_is_the_same_to_rounding(photos, tiny_model):
    from dataclasses import replace

    from pixart.data.dataset import open_dataset
    from pixart.data.extract import Batches, Encoders
    from pixart.data.features import Origin
    from pixart.data.storage import Folder

    settings = Settings(base_size=64, max_tokens=120, rows=40)
    parts = Encoders(tiny_model / "vae", tiny_model / "text_encoder", tiny_model / "tokenizer")
    extractor = Extractor(Job(parts, Origin(settings, vae=weights_id(parts.vae)), Folder("none")))
    (batch,) = Batches(open_dataset(photos).pairs(), settings)
    _, together = extractor(batch)
    _, alone = extractor(replace(batch, pairs=batch.pairs[7:8], labels=batch.labels[7:8]))
    (one,) = [row for rows in alone.values() for row in rows]
    (other,) = [row for rows in together.values() for row in rows if row.key == one.key]
    assert isinstance(one, FeatureRow)
    for mine, theirs in zip(one.moments[0], other.moments[0], strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=2e-3)


def test_reading_pads_picks_and_survives_a_pickle(plain):
    import pickle

    store = open_features(plain)
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again, Features)
    rows = np.flatnonzero(store.bucket == store.bucket[0])[[3, 0, 2]]
    ours, theirs = store.read(rows), again.read(rows)
    assert ours.keys == theirs.keys and torch.equal(ours.mean, theirs.mean) and torch.equal(ours.text, theirs.text)
    assert store.read(rows, pad_to=40).text.shape[1] == 48
    padded, mask = pad([torch.ones(3, 2), torch.ones(17, 2)])
    assert padded.shape == (2, 32, 2) and mask.sum(1).tolist() == [3, 17] and padded[0, 3:].abs().max() == 0
    train, held = store.split(4)
    assert len(held) == 4 and len(train) == 36 and not set(train) & set(held)


def test_the_same_images_are_kept_apart_at_every_base_size(photos, plain, tiny_model, tmp_path):
    assert extract(photos, tmp_path / "f", tiny_model, "--base-size", "128") == 0

    def held(folder: Path) -> set[str]:
        store = open_features(folder)
        return {store.read(np.array([row])).keys[0] for row in store.split(4)[1]}

    assert held(plain) == held(tmp_path / "f") and len(held(plain)) == 4


def test_kohya_repeats_are_weights(tiny_model, tmp_path):
    for name, colour in (("10_dog", "red"), ("2_cat", "blue")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / "set" / name / "a.png")
        (tmp_path / "set" / name / "a.txt").write_text("a fox")
    assert extract(tmp_path / "set", tmp_path / "f", tiny_model, "--layout", "sidecars") == 0
    assert sorted(open_features(tmp_path / "f").columns["weight"].tolist()) == [2.0, 10.0]


def test_a_weight_that_is_no_number_is_refused(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 3, weight=lambda i: "often")
    assert extract(photos, tmp_path / "f", tiny_model) == 1


def test_without_a_text_encoder_or_encoders_there_is_one_sentence(photos, tmp_path, capsys):
    assert main(["data", "extract", str(photos), str(tmp_path / "f"), "--vae", str(photos)]) == 1
    assert main(["data", "extract", str(photos), str(tmp_path / "f"), "--text-encoder", str(photos)]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 2
