"""Tracking: the real services, offline, read back; and services that are down, hang or raise: nobody waits for them."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from pixart.errors import UsageError
from pixart.tracking.tracker import QUEUE_SIZE, Images, Tracker, TrackingConfig


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "apple.png"
    Image.new("RGB", (8, 8), (220, 30, 30)).save(path)
    return path


def track(service: str, run: Path, image: Path, *, steps: range = range(1, 4)) -> list[str]:
    """Hand three steps and an image to a service; what it reported."""
    lines: list[str] = []
    config = TrackingConfig(to=service, project="tests", offline=True, close_timeout=600)
    with Tracker(config, run, settings={"width": 32}, say=lines.append) as tracker:
        for step in steps:
            tracker.log(step, {"train_loss": 1 / step, "lr": 1e-3, "grad_norm": 0.5, "epoch": step / 4})
        tracker.log(steps[-1], {"validation": Images([(image, "a red apple")])})
    return lines


def test_wandb_offline_writes_all_metrics_and_images_into_the_run_folder(tmp_path, image):
    run = tmp_path / "run"
    run.mkdir()
    assert track("wandb", run, image) == []
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    history, config = read_wandb(file)
    losses = [(row["step"], row["train_loss"]) for row in history if "train_loss" in row]
    assert losses == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert {"lr", "grad_norm", "epoch"} <= set(history[0])
    (found,) = [row for row in history if "validation.captions" in row]
    assert (found["step"], found["validation.captions"]) == (3, ["a red apple"])
    assert (file.parent / "files" / found["validation.filenames"][0]).is_file()
    assert config["width"] == "32"


def read_wandb(file: Path) -> tuple[list[dict], dict]:
    """The rows and the settings in a .wandb file, whose last record comes a moment after the run has finished."""
    end = time.monotonic() + 60
    while True:
        history, config, complete = read_records(file)
        if complete or time.monotonic() > end:
            return history, config
        time.sleep(0.1)


def read_records(file: Path) -> tuple[list[dict], dict, bool]:
    """Those that are there, and whether the last is: a LevelDB log of protobuf records in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    complete = False
    data, at, whole = file.read_bytes(), 7, b""  # seven bytes say what file it is
    history: list[dict] = []
    config: dict = {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for another head: padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):
            break
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
        if record.WhichOneof("record_type") == "config":
            config |= {item.key: item.value_json for item in record.config.update}
        complete = complete or record.WhichOneof("record_type") == "exit"
    return history, config, complete


def test_trackio_keeps_metrics_and_images_on_this_machine_and_stdout_clean(tmp_path, image, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path; from test_tracking import track;"
        "[track('trackio', Path(sys.argv[1]), Path(sys.argv[2]), steps=steps) for steps in (range(1, 4), range(4, 6))]"
    )  # continued: one run, five steps
    words = [sys.executable, "-c", code, str(run), str(image), str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; (run,) = S.get_runs('tests');"
        "print(json.dumps([run, S.get_logs('tests', run)]))"
    )
    name, rows = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert name == "run-" + json.loads((run / "tracking.json").read_text())["id"]
    losses = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    assert losses == [(1, 1), (2, 0.5), (3, 1 / 3), (4, 0.25), (5, 0.2)]
    assert [row["validation/0"]["caption"] for row in rows if "validation/0" in row] == ["a red apple"] * 2


def test_tensorboard_reads_back_what_was_written(tmp_path, image):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    run.mkdir()
    assert track("tensorboard", run, image) == []
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch", "grad_norm", "lr", "train_loss"]
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train_loss")] == [(1, 1), (2, 0.5), (3, 0.3333)]
    (found,) = events.Images("validation/0")
    assert (found.width, found.height) == (8, 8)


def test_no_service_means_no_files(tmp_path, image):
    assert track("none", tmp_path / "absent", image) == []
    assert not (tmp_path / "absent").exists()


def fake_wandb(monkeypatch, init) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **settings: None))


def test_a_service_that_hangs_costs_nothing_but_its_records(tmp_path, monkeypatch):
    fake_wandb(monkeypatch, lambda **settings: time.sleep(20))
    lines: list[str] = []
    tracker = Tracker(TrackingConfig(to="wandb", close_timeout=1), tmp_path, say=lines.append)
    for step in range(QUEUE_SIZE + 100):  # more than may wait
        tracker.log(step, {"train_loss": 1.0})
    tracker.close()
    assert len(lines) == 1 and str(QUEUE_SIZE + 100) in lines[0]


@pytest.mark.parametrize("error", [SystemExit("no quota\nleft"), ModuleNotFoundError("gone", name="wandb"), OSError()])
def test_a_service_that_raises_is_named_once_and_left_alone(tmp_path, image, monkeypatch, error):
    def init(**settings):
        raise error

    fake_wandb(monkeypatch, init)
    lines = track("wandb", tmp_path, image)
    assert len(lines) == 1 and lines[0].startswith("wandb: ") and "\n" not in lines[0]


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"close_timeout": -1.0}, {"close_timeout": float("nan")}, {"project": " "}):
        with pytest.raises(UsageError):
            TrackingConfig(**wrong)
