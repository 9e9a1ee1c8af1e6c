"""Captioning and extraction on Ray: what comes out is what one process makes, whatever happens to a worker."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import write_photos
from safetensors.torch import save_file

from pixart.cli import main
from pixart.data.captioner import Item, TemplateCaptioner
from pixart.data.dataset import captions_folder, open_dataset
from pixart.data.extract import Encoders, extract
from pixart.data.features import Settings, open_features
from pixart.data.layouts.layout import Columns
from pixart.data.on_ray import CaptionTask, open_cloud, runner, start
from pixart.errors import PixArtError, UsageError

WORKERS = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, shared by all tests of this module."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A task of this file is unpacked in the workers, which do not look into the folder of the tests by themselves.
    here_too = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    monkey = pytest.MonkeyPatch()
    monkey.setenv("PYTHONPATH", here_too)
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield start("local", workers=WORKERS)
    ray.shutdown()
    monkey.undo()


@pytest.fixture
def settings(tiny_model) -> tuple[Encoders, Settings]:
    parts = Encoders(tiny_model / "vae", tiny_model / "text_encoder", tiny_model / "tokenizer")
    return parts, Settings(base_size=64, max_tokens=120, step=16, rows=8)


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a finished feature folder; of the manifest what does not say where and when it was made."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(".lock", None)
    manifest = json.loads(files.pop("features.json"))
    batches = [{name: value for name, value in batch.items() if name != "stat"} for batch in manifest.pop("batches")]
    manifest.pop("data")
    return files | {"features.json": json.dumps([manifest, batches]).encode()}


def as_shards(photos: Path, folder: Path, per_shard: int) -> Path:
    """The photos as webdataset shards."""
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").open()]
    for first in range(0, len(rows), per_shard):
        with tarfile.open(folder / f"{first // per_shard:05d}.tar", "w") as tar:
            for row in rows[first : first + per_shard]:
                stem = row["file_name"].removesuffix(".jpg")
                content = (photos / row["file_name"]).read_bytes()
                for name, data in ((f"{stem}.jpg", content), (f"{stem}.txt", row["text"].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def test_features_are_those_of_one_process(tmp_path, settings, cluster):
    data = write_photos(tmp_path / "data", 30, broken=(7,))
    extract(open_dataset(data), tmp_path / "one", *settings, allow_dropped=0.1)
    extract(open_dataset(data), tmp_path / "ray", *settings, run=runner(cluster), allow_dropped=0.1)
    assert everything(tmp_path / "one") == everything(tmp_path / "ray")
    assert len(open_features(tmp_path / "ray")) == 29


def test_shards_in_the_cloud_give_the_features_of_a_local_copy(tmp_path, settings, cluster):
    """A place that is reached by fsspec only; that it is another folder of this machine, nobody here knows."""
    shards = as_shards(write_photos(tmp_path / "photos", 30), tmp_path / "shards", 12)
    extract(open_dataset(shards), tmp_path / "one", *settings)
    there = open_cloud(f"local://{shards}", cluster, Columns())
    assert len(there.shards) == 3
    extract(there, f"local://{tmp_path / 'cloud'}", *settings, run=runner(cluster))
    assert everything(tmp_path / "one") == everything(tmp_path / "cloud")
    store = open_features(tmp_path / "cloud")
    keys = [key for row in range(len(store)) for key in store.read(np.array([row])).keys]
    assert "00000.tar/0000" in keys and len(set(keys)) == 30
    with pytest.raises(UsageError, match=r"no \.tar or \.parquet shards"):
        open_cloud(f"local://{tmp_path / 'photos'}", cluster, Columns())


def test_captions_are_those_of_one_process(tmp_path, cluster, capsys):
    for name in ("one", "ray"):
        data = write_photos(tmp_path / name, 25, broken=(3,))
        how = ["--ray", "local", "--workers", "2"] if name == "ray" else []
        line = ["data", "caption", str(data), "--template", "an image: {caption}", *how]
        assert main(line) == 0
    one, ray = (captions_folder(tmp_path / name) / "template.jsonl" for name in ("one", "ray"))
    assert one.read_text() == ray.read_text() and len(ray.read_text().splitlines()) == 25


class DiesAt:
    """A task that squares numbers, and whose process ends at some of them: always, or the first time only."""

    def __init__(self, always: int, once: int, mark: Path):
        self.always, self.once, self.mark = always, once, mark

    def __call__(self, number: int) -> int:
        if number == self.always or (number == self.once and not self.mark.exists()):
            if number == self.once:
                self.mark.touch()
            os._exit(1)
        return number**2

    def given_up(self, number: int) -> str:
        return f"gave {number} up"


def test_a_worker_that_dies_is_replaced_and_its_item_given_up_at_last(tmp_path, cluster):
    results = list(cluster.each(DiesAt(5, 9, tmp_path / "mark"), ((n, n) for n in range(12))))
    assert results == [0, 1, 4, 9, 16, "gave 5 up", 36, 49, 64, 81, 100, 121]


def test_what_no_other_try_would_mend_ends_the_run(tmp_path, settings, cluster):
    data = write_photos(tmp_path / "data", 10)
    encoders = replace(settings[0], vae=tmp_path / "vae")
    (tmp_path / "vae").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "vae" / "model.safetensors")
    with pytest.raises(PixArtError, match="autoencoder"):
        extract(open_dataset(data), tmp_path / "features", encoders, settings[1], run=runner(cluster))


def test_images_that_a_worker_could_not_caption_are_named():
    rows = CaptionTask(TemplateCaptioner("a {label}")).given_up([Item("a.png"), Item("b.png")])
    assert [(row["key"], row["caption"], row["rejected"]) for row in rows] == [
        ("a.png", None, "failed"),
        ("b.png", None, "failed"),
    ]


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path, capsys, tiny_model):
    for line in (
        ["data", "extract", "s3://bucket/shards", str(tmp_path / "f"), "--model", str(tiny_model)],
        ["data", "caption", "s3://bucket/shards", "--template", "a {label}"],
    ):
        assert main(line) == 2
        assert "on Ray: add --ray local" in capsys.readouterr().err
