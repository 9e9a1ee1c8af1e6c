"""`pixart data extract`: features are those of the encoders whatever happens on the way; stale ones are refused."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from photo_folder import write_photos
from PIL import Image

from pixart.cli import main
from pixart.data.buckets import fit
from pixart.data.dataset import open_dataset
from pixart.data.extract import extract
from pixart.data.extract_batch import ExtractSettings
from pixart.data.extract_workers import here, runner
from pixart.data.feature_shards import Features, open_features
from pixart.data.pairs import InFile
from pixart.encoders import autoencoder
from pixart.encoders.text import TextEncoder
from pixart.errors import PixArtError, UsageError


def settings_of(model: Path, **others) -> ExtractSettings:
    parts = model / "vae", model / "text_encoder", model / "tokenizer"
    return ExtractSettings(*parts, base_size=64, step=16, rows=8, precision="fp32", **others)


@pytest.fixture
def settings(tiny_model) -> ExtractSettings:
    return settings_of(tiny_model)


def run(data: Path, dest: Path, settings: ExtractSettings, **how) -> Features:
    extract(open_dataset(data), dest, settings, run=how.pop("run", here), **how)
    return open_features(dest)


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a finished feature folder by its name; the path of the data is not part of it."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(files.pop("features.json"))
    for name in ("data", "batches"):  # the batches' entries hold times of change
        manifest.pop(name)
    return files | {"features.json": json.dumps(manifest).encode()}


@torch.no_grad()
def test_features_are_those_of_the_encoders(tmp_path, tiny_model, settings):
    from diffusers import AutoencoderKL

    data = write_photos(tmp_path / "data", 20)
    features = run(data, tmp_path / "features", replace(settings, flip=True))
    assert len(features.buckets) == 3 and len(features) == 20
    vae = AutoencoderKL.from_pretrained(tiny_model / "vae", low_cpu_mem_usage=False)
    encoder = TextEncoder(tiny_model / "text_encoder", tiny_model / "tokenizer", "BertModel")
    captions = {row["file_name"]: row["text"] for row in map(json.loads, (data / "metadata.jsonl").open())}
    seen = []
    for bucket, count in features.buckets.items():
        width, height = map(int, bucket.split("x"))
        batch = features.read(bucket, range(count))
        turned = features.read(bucket, range(count), flipped=[True] * count)
        for i, key in enumerate(batch.keys):
            with Image.open(data / key) as image:
                fitted = fit(image.convert("RGB"), settings.table())
            assert batch.original_size[i].tolist() == [image.height, image.width]
            assert batch.crop[i].tolist() == list(fitted.crop_corner)
            picture = fitted.image
            assert picture.size == (width, height)
            pixels = torch.tensor(list(picture.tobytes())).view(1, height, width, 3).permute(0, 3, 1, 2) / 127.5 - 1
            mean, std = autoencoder.moments(vae, pixels)
            assert torch.allclose(batch.mean[i].float(), mean[0], atol=2e-2), key
            assert torch.allclose(batch.std[i].float(), std[0], rtol=2e-2), key
            mean, _ = autoencoder.moments(vae, pixels.flip(-1))
            assert torch.allclose(turned.mean[i].float(), mean[0], atol=2e-2)
            states = encoder.encode(captions[key])
            expected = states.states[0][states.mask[0]]
            assert torch.allclose(batch.text[i][batch.text_mask[i]].float(), expected, atol=1e-2)
        seen += batch.keys
    assert sorted(seen) == sorted(captions)
    empty = encoder.encode("")
    assert torch.allclose(features.null_text.float(), empty.states[0][empty.mask[0]], atol=1e-2)


def test_a_folder_does_not_depend_on_the_number_of_processes(tmp_path, settings):
    data = write_photos(tmp_path / "data", 30, broken=(7,))
    one = run(data, tmp_path / "one", settings, allow_dropped=0.1)
    two = run(data, tmp_path / "two", settings, allow_dropped=0.1, run=runner(2, ["cpu"]))
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert len(one) == len(two) == 29


def child(data: Path, dest: Path, settings: ExtractSettings, at: int | None) -> None:
    """Extract in a process of its own, killed as it is about to bring its `at`th file to its name, or just after."""
    torch.set_num_threads(1)
    real, count = os.rename, 0

    def rename(source, target):
        nonlocal count
        count += 1
        if at is not None and count == at // 2 + 1 and at % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if at is not None and count == at // 2 + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = rename
    extract(open_dataset(data), dest, settings, run=here, allow_dropped=0.1)


def in_child(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=child, args=arguments)
    process.start()
    return process


def test_killed_at_any_file_it_goes_on_and_loses_and_doubles_nothing(tmp_path, settings):
    data = write_photos(tmp_path / "data", 20, broken=(3,))
    run(data, tmp_path / "whole", settings, allow_dropped=0.1)
    kills = 0
    while not (tmp_path / "killed" / "features.json").exists():
        process = in_child(data, tmp_path / "killed", settings, kills % 11)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if kills == 2:
            with pytest.raises(PixArtError, match="is not finished"):
                open_features(tmp_path / "killed")
    assert kills >= 10
    run(data, tmp_path / "killed", settings, allow_dropped=0.1)
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_killed_at_random_times_it_goes_on(tmp_path, settings):
    data = write_photos(tmp_path / "data", 40)
    started = time.monotonic()
    run(data, tmp_path / "whole", settings)
    took = time.monotonic() - started
    dice = random.Random(1)
    for _ in range(6):
        process = in_child(data, tmp_path / "killed", settings, None)
        time.sleep(dice.uniform(0.05, 0.6) * took)
        process.kill()
        process.join()
    run(data, tmp_path / "killed", settings)
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_broken_pictures_are_named_and_too_many_stop_the_run(tmp_path, settings):
    data = write_photos(tmp_path / "data", 20, broken=(4, 11))
    with pytest.raises(PixArtError, match=r"1 of 8 images were dropped \(0004\.png: .*, and 1% is allowed"):
        run(data, tmp_path / "features", settings)
    with pytest.raises(PixArtError, match="is not finished"):
        open_features(tmp_path / "features")
    done = sorted((tmp_path / "features").glob("*/*.safetensors"))
    times = [path.stat().st_mtime_ns for path in done]
    features = run(data, tmp_path / "features", settings, allow_dropped=0.2)
    assert [path.stat().st_mtime_ns for path in done] == times  # nothing was computed again
    assert len(features) == 18
    named = [json.loads(line) for line in (tmp_path / "features" / "skipped.jsonl").open()]
    assert [row["key"] for row in named] == ["0004.png", "0011.png"] and all(row["reason"] for row in named)
    assert sum(features.manifest["skipped"].values()) == 2


def test_a_finished_folder_is_left_alone_and_a_stale_one_refused(tmp_path, tiny_model, settings):
    data = write_photos(tmp_path / "data", 20)
    dest = tmp_path / "features"
    run(data, dest, settings)
    before = everything(dest)
    _, account = extract(open_dataset(data), dest, settings, run=here)
    assert account.found_done == 20 and everything(dest) == before

    os.utime(data / "0003.png")  # touched, and still the same picture
    run(data, dest, settings)
    for others, said in (
        ({"base_size": 128}, "base size 64 instead of 128"),
        ({"crop": "clever"}, "crop centre instead of clever"),
        ({"flip": True}, "flip False instead of True"),
        ({"text_encoder": None, "tokenizer": None}, "another text encoder; another tokenizer"),
    ):
        with pytest.raises(PixArtError, match=said):
            run(data, dest, replace(settings, **others))
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PixArtError, match=r"made with another VAE\."):
        run(data, dest, replace(settings, vae=model / "vae"))

    Image.new("RGB", (64, 64), "purple").save(data / "0010.png")
    with pytest.raises(PixArtError, match=r"data has changed .* among 0008\.png to 0015\.png is not what it was"):
        run(data, dest, settings)
    assert everything(dest) == before


def test_more_or_fewer_pictures_and_other_captions_are_noticed(tmp_path, settings):
    data = write_photos(tmp_path / "data", 20)
    run(data, tmp_path / "features", settings)
    metadata = data / "metadata.jsonl"
    lines = metadata.read_text().splitlines(keepends=True)
    shutil.copy(data / "0019.png", data / "0020.png")
    for now, said in (
        ([*lines, lines[-1].replace("0019", "0020")], r"among 0016\.png to 0020\.png"),
        (lines[:8], "it has fewer pictures now"),
        ([lines[0].replace('"text": "', '"text": "no '), *lines[1:]], r"among 0000\.png to 0007\.png"),
    ):
        metadata.write_text("".join(now))
        with pytest.raises(PixArtError, match=f"data has changed .* {said}"):
            run(data, tmp_path / "features", settings)


def test_shards_that_went_missing_are_made_again_before_the_end_and_refused_after(tmp_path, settings):
    data = write_photos(tmp_path / "data", 20, broken=(3,))
    dest = tmp_path / "features"
    with pytest.raises(PixArtError, match="dropped"):  # all is extracted, and there is no manifest yet
        run(data, dest, settings)
    shutil.rmtree(dest / "64x64")
    whole = run(data, tmp_path / "whole", settings, allow_dropped=0.1)
    assert len(run(data, dest, settings, allow_dropped=0.1)) == len(whole)
    assert everything(dest) == everything(tmp_path / "whole")
    shutil.rmtree(dest / "64x64")
    with pytest.raises(PixArtError, match="is missing"):
        run(data, dest, settings)


def test_other_peoples_folders_are_not_written_into(tmp_path, settings):
    data = write_photos(tmp_path / "data", 3)
    with pytest.raises(UsageError, match="is not empty and holds no features"):
        run(data, data, settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        run(data, tmp_path / "file", settings)


def test_a_batch_that_always_fails_is_put_into_quarantine(tmp_path, settings, monkeypatch):
    data = write_photos(tmp_path / "data", 20)
    whole = run(data, tmp_path / "whole", settings)
    from pixart.data import extract_batch

    real, tries = extract_batch.open_image, []

    def out_of_memory(content: bytes):
        if content == (data / "0010.png").read_bytes():
            tries.append(1)
            raise MemoryError("of the device")
        return real(content)

    monkeypatch.setattr(extract_batch, "open_image", out_of_memory)
    monkeypatch.setattr(extract_batch.time, "sleep", lambda seconds: None)
    with pytest.raises(PixArtError, match=r"1 batches \(1\) with 8 pictures failed every time.*of the device"):
        run(data, tmp_path / "features", settings)
    assert len(tries) == 3
    shutil.copytree(tmp_path / "features", tmp_path / "without")
    features = run(data, tmp_path / "without", settings, leave_out_failed=True, allow_dropped=0.5)
    assert len(features) == 12 and features.manifest["skipped"] == {"quarantined": 8}
    monkeypatch.setattr(extract_batch, "open_image", real)
    assert len(run(data, tmp_path / "features", settings)) == len(whole)
    assert everything(tmp_path / "features") == everything(tmp_path / "whole")
    assert len(run(data, tmp_path / "without", settings)) == 12  # it says of itself that it does without


def test_the_command_says_what_it_did(tmp_path, tiny_model, capsys):
    data = write_photos(tmp_path / "data", 20, broken=(3,))
    dest = tmp_path / "features"
    line = ["data", "extract", str(data), str(dest), "--model", str(tiny_model), "--base-size", "64", "--step", "16"]
    line += ["--workers", "1"]
    assert main([*line]) == 1
    assert "1 of 20 images were dropped (0003.png: truncated" in capsys.readouterr().err
    assert main([*line, "--allow-dropped", "0.1"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{dest}\n" and "Skipped: 0003.png: truncated" in said.err
    assert "19 pictures extracted; 20 pictures were done before; 1 skipped" in said.err
    assert main([*line, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["skipped"] == 1 and "holds the features of 19 of 20 pictures already" in said.err
    assert main([*line, "--flip"]) == 1
    assert "made with flip False instead of True" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, code, said",
    [
        (["--crop", "left"], 2, "no crop 'left'"),
        (["--precision", "fp8"], 2, "no precision 'fp8'"),
        (["--rows", "0"], 2, "--rows from 1"),
        (["--workers", "0"], 2, "--workers is 0"),
        (["--allow-dropped", "2"], 2, "--allow-dropped is 2"),
        (["--base-size", "100"], 2, "multiple of their step"),
        (["--base-size", "-16"], 2, "multiple of their step"),
        (["--gpus-per-worker", "1"], 2, "goes with --ray"),
        (["--vae", "nowhere"], 1, "nowhere holds no config.json"),
        (["--caption-source", "llava"], 2, "none of the first 3 pictures has a caption of llava; they have: original"),
    ],
)
def test_what_cannot_be_done_as_asked_is_one_sentence(tmp_path, tiny_model, capsys, options, code, said):
    data = write_photos(tmp_path / "data", 3)
    line = ["data", "extract", str(data), str(tmp_path / "features"), "--model", str(tiny_model), "--workers", "1"]
    assert main([*line, *options]) == code
    error = capsys.readouterr().err
    assert said.lower() in error.lower() and "Traceback" not in error


def test_a_full_disk_is_said_and_what_was_done_stays(tmp_path, settings, monkeypatch):
    data = write_photos(tmp_path / "data", 20)
    from pixart.data import storage

    real, count = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    with pytest.raises(PixArtError, match=r"no room left to write .* run the same command again"):
        run(data, tmp_path / "features", settings)
    monkeypatch.setattr(storage.os, "fsync", real)
    assert list((tmp_path / "features" / "progress").iterdir())
    run(data, tmp_path / "features", settings)
    run(data, tmp_path / "whole", settings)
    assert everything(tmp_path / "features") == everything(tmp_path / "whole")


def test_classes_travel_as_labels_without_captions(tmp_path, settings):
    for name in ("fox", "apple"):
        write_photos(tmp_path / "data" / name, 5).joinpath("metadata.jsonl").unlink()
    features = run(tmp_path / "data", tmp_path / "features", replace(settings, text_encoder=None, tokenizer=None))
    assert features.class_names == ("apple", "fox") and features.null_text is None and len(features) == 10
    for bucket, count in features.buckets.items():
        batch = features.read(bucket, range(count))
        assert batch.text is None
        assert [features.class_names[i] for i in batch.label.tolist()] == [key.split("/")[0] for key in batch.keys]


class Deadly:
    """A place for a picture whose reading ends the process, as the system does when memory runs out."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):  # it strikes where it is unpacked, in another process
        return _strike, (self.path, os.getpid())


def _strike(path: str, parent: int) -> InFile:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return InFile(path)


def test_a_process_that_dies_harms_only_its_batch(tmp_path, settings):
    data = write_photos(tmp_path / "data", 20)
    whole = run(data, tmp_path / "whole", settings)
    dataset = open_dataset(data)

    class WithDeadly:
        path, count_hint = dataset.path, dataset.count_hint

        def pairs(self):
            for pair in dataset.pairs():
                yield replace(pair, image=Deadly(pair.image.path)) if pair.key == "0010.png" else pair

    with pytest.raises(PixArtError, match=r"1 batches \(1\) with 8 pictures .* ended by the system"):
        extract(WithDeadly(), tmp_path / "features", settings, run=runner(2, ["cpu"]))
    run(data, tmp_path / "features", settings)
    assert everything(tmp_path / "features") == everything(tmp_path / "whole") and len(whole) == 20
