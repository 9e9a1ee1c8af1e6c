"""Tracking: the real services, offline, read back; and services that are down, hang or raise: nobody waits for them."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pixart.tracking.tracker import QUEUE_SIZE, Tracker, TrackingConfig


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "apple.png"
    Image.new("RGB", (8, 8), (220, 30, 30)).save(path)
    return path


def track(service: str, run: Path, picture: Path, *, steps: range = range(1, 4), offline: bool = True) -> list[str]:
    """Hand three steps and a picture to a service; what it reported."""
    said: list[str] = []
    config = TrackingConfig(to=service, project="tests", offline=offline, close_timeout=90)
    with Tracker(config, run, settings={"width": 32}, report=said.append) as tracker:
        for step in steps:
            tracker.figures(step, {"train_loss": 1 / step, "lr": 1e-3, "grad_norm": 0.5, "epoch": step / 4})
        tracker.pictures(steps[-1], "validation", [(picture, "a red apple")])
    return said


def test_wandb_offline_writes_all_figures_and_pictures_into_the_run_folder(tmp_path, picture):
    run = tmp_path / "run"
    run.mkdir()
    assert track("wandb", run, picture) == []
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    history, config = read_wandb(file)
    losses = [(row["step"], row["train_loss"]) for row in history if "train_loss" in row]
    assert losses == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert {"lr", "grad_norm", "epoch"} <= set(history[0])
    (drawn,) = [row for row in history if "validation.captions" in row]
    assert (drawn["step"], drawn["validation.captions"]) == (3, ["a red apple"])
    assert (file.parent / "files" / drawn["validation.filenames"][0]).is_file()
    assert config["width"] == "32"


def read_wandb(file: Path) -> tuple[list[dict], dict]:
    """The rows and the settings in a .wandb file: a LevelDB log of protobuf records in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""  # seven bytes say what file it is
    history: list[dict] = []
    config: dict = {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for another head: padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # 1 is a whole record, 4 the last part of one
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        whole = b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in items})
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: item.value_json for item in record.run.config.update}
    return history, config


def test_trackio_keeps_figures_and_pictures_on_this_machine(tmp_path, picture, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    run.mkdir()
    assert track("trackio", run, picture) == []
    assert track("trackio", run, picture, steps=range(4, 6)) == []  # the run is continued: one run, five steps
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; (run,) = S.get_runs('tests');"
        "print(json.dumps([run, S.get_logs('tests', run)]))"
    )
    name, rows = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert name == "run-" + json.loads((run / "tracking.json").read_text())["id"]
    losses = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    assert losses == [(1, 1), (2, 0.5), (3, 1 / 3), (4, 0.25), (5, 0.2)]
    drawn = [row["validation/0"] for row in rows if "validation/0" in row]
    assert [image["caption"] for image in drawn] == ["a red apple"] * 2
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 2


def test_tensorboard_reads_back_what_was_written(tmp_path, picture):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    run.mkdir()
    assert track("tensorboard", run, picture) == []
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch", "grad_norm", "lr", "train_loss"]
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train_loss")] == [(1, 1), (2, 0.5), (3, 0.3333)]
    (image,) = events.Images("validation/0")
    assert (image.width, image.height, image.encoded_image_string) == (8, 8, picture.read_bytes())


def test_no_service_means_no_process_and_no_files(tmp_path, picture):
    assert track("none", tmp_path / "absent", picture) == []
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("answers", [False, True], ids=["down", "hangs"])
def test_a_server_that_is_down_or_hangs_costs_nothing_but_its_records(tmp_path, picture, monkeypatch, answers):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()  # and never reads
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    if not answers:
        server.close()
    run = tmp_path / "run"
    run.mkdir()
    said: list[str] = []
    tracker = Tracker(TrackingConfig(to="wandb", close_timeout=1), run, report=said.append)
    for step in range(QUEUE_SIZE + 100):  # more than may wait
        tracker.figures(step, {"train_loss": 1.0})
    tracker.close()
    server.close()
    assert f"wandb did not get {QUEUE_SIZE + 100} of {QUEUE_SIZE + 100} records" in said[-1]
    assert tracker.process.returncode is not None and not tracker.writer.is_alive()


def broken_library(folder: Path, name: str, body: str) -> None:
    """A library of that name that does `body` where it is imported."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(body, encoding="utf-8")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit('no quota left.\\nsecond line')", "no quota left"),
        ("import os; os._exit(3)", None),
        ("raise ModuleNotFoundError('gone', name='wandb')", r"pip install 'pixart[track]'"),
    ],
)
def test_a_service_that_raises_is_named_once_and_left_alone(tmp_path, picture, monkeypatch, body, why):
    broken_library(tmp_path / "broken", "wandb", body)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", "")]))
    run = tmp_path / "run"
    run.mkdir()
    said = track("wandb", run, picture)
    assert len(said) == (2 if why else 1)
    assert why is None or why in said[0]
    assert "wandb did not get 4 of 4 records" in said[-1]


def test_what_a_service_prints_does_not_reach_stdout(tmp_path, picture, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    run.mkdir()
    track("trackio", run, picture)
    assert capfd.readouterr().out == ""
    assert "Trackio project initialized" in (run / "tracking.log").read_text()


def test_the_service_gets_its_last_figures_when_the_run_is_killed(tmp_path, picture):
    """The trainer dies without a word; the service sees the end of its input and finishes what it has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code = (
        "import os, sys, time; from pathlib import Path; from pixart.tracking.tracker import Tracker, TrackingConfig;"
        "t = Tracker(TrackingConfig(to='tensorboard'), Path(sys.argv[1]));"
        "t.figures(7, {'train_loss': 0.5});"
        "[time.sleep(0.05) for _ in range(1000) if not t.delivered]; t.figures(8, {'train_loss': 0.25});"
        "[time.sleep(0.01) for _ in range(100) if not t.queue.empty()]; time.sleep(0.2); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    deadline = time.monotonic() + 60
    found: list[int] = []
    while found != [7, 8] and time.monotonic() < deadline:
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        found = [e.step for e in events.Scalars("train_loss")] if "train_loss" in events.Tags()["scalars"] else []
        time.sleep(0.1)
    assert found == [7, 8]
