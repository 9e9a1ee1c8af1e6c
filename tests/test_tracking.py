"""Tracking: the real services, offline, read back; and services that are down, hang or raise: nobody waits for them."""

import dataclasses
import io
import json
import os
import pty
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pixart.tracking.energy import EnergyMeter
from pixart.training.optimizers.optimizer import OptimizerConfig
from pixart.training.planning.flops import training_flops
from pixart.training.progress import TrainingProgress
from pixart.training.receipt import Meter
from pixart.training.watch import Watch, loss_by_level
from tiny_data import emoji_recipe, write_tiny_data

import pixart
from pixart.checkpoints.folder import FLOW_SCHEDULER
from pixart.errors import UsageError
from pixart.model.pixart import PixArtConfig
from pixart.tracking.tracker import QUEUE_SIZE, Tracker, TrackingConfig
from pixart.training import command
from pixart.training.batches import Phase
from pixart.training.command import train_recipe
from pixart.training.loop import LoopConfig
from pixart.training.recipe import Denoiser, TextRecipe
from pixart.training.samples import Sampler, SamplesConfig


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "apple.png"
    Image.new("RGB", (8, 8), (220, 30, 30)).save(path)
    return path


def track(service: str, run: Path, picture: Path, *, steps: range = range(1, 4), offline: bool = True) -> list[str]:
    """Hand three steps and a picture to a service; what it reported."""
    said: list[str] = []
    config = TrackingConfig(to=service, project="tests", offline=offline, close_timeout=600)
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
        if record.WhichOneof("record_type") == "config":
            config |= {item.key: item.value_json for item in record.config.update}
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


@pytest.fixture(scope="module")
def watched(tmp_path_factory, tiny_model) -> tuple[TextRecipe, list[str]]:
    """A tiny text stage, trained by `pixart train`'s own function with all that can be looked at, and its lines."""
    home = tmp_path_factory.mktemp("watched")
    recipe = TextRecipe(
        run=home / "run",
        data=write_tiny_data(home / "data"),
        cache=home / "cache",
        autoencoder=tiny_model / "vae",
        text_encoder=tiny_model / "text_encoder",
        phases=(Phase(steps=4, size=64, batch_size=8), Phase(steps=2, size=128, batch_size=4)),
        model=Denoiser(width=32, depth=2, num_heads=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        loop=LoopConfig(save_every=3, evaluate_every=2, log_every=2),
        samples=SamplesConfig(prompts=("red circle, flat", "a green square, Noto"), every=2, seed=5, steps=3),
        tracking=TrackingConfig(to="tensorboard", close_timeout=600),
    )
    said: list[str] = []
    assert train_recipe(recipe, said.append) == 0
    return recipe, said


def test_a_run_tells_its_tracker_everything(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, _ = watched
    events = EventAccumulator(str(recipe.run / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train_loss", "lr", "grad_norm", "epoch", "images_per_second", "held_out_loss", "hours"} <= scalars
    assert {"energy_kwh", "co2_kg", "usd", "predicted_hours"} <= scalars
    assert any(name.startswith("held_out_loss_0.") for name in scalars)
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("epoch")] == [(2, 1.0), (4, 2.0), (6, 2.5)]
    lines = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert losses == [(e.step, pytest.approx(e.value)) for e in events.Scalars("train_loss")]
    assert [e.step for e in events.Images("validation/0")] == [4, 6]


def test_samples_are_what_the_finished_model_draws(watched):
    """Drawn while training with the moving average in fp32; drawn from the folder, whose weights are fp16."""
    recipe, said = watched
    names = sorted(path.name for path in (recipe.run / "samples").iterdir())
    assert names == ["00000004-0.png", "00000004-1.png", "00000006-0.png", "00000006-1.png"]
    assert any(line.startswith("step 4: 2 samples in") for line in said)
    sizes = [Image.open(recipe.run / "samples" / name).size for name in names]
    assert sizes == [(64, 64)] * 2 + [(128, 128)] * 2  # the size that was trained at that step
    pipeline = pixart.Pipeline.from_pretrained(recipe.run / "model")
    for number, prompt in enumerate(recipe.samples.prompts):
        ours = np.array(Image.open(recipe.run / "samples" / f"00000006-{number}.png")).astype(int)
        theirs = pipeline(prompt, seed=5, steps=3, guidance_scale=4.5, width=128, height=128).images[0]
        assert ours.std() > 1 and np.abs(ours - np.array(theirs).astype(int)).max() <= 4


def test_samples_that_cannot_be_drawn_do_not_stop_the_run(watched, tmp_path):
    recipe, _ = watched
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file where the folder should be")
    said: list[str] = []
    sampler = Sampler(
        recipe.samples, tmp_path / "run", vae=torch.nn.Identity(), scheduler=FLOW_SCHEDULER, text_encoder=lambda: None
    )
    broken = dataclasses.replace(recipe, run=tmp_path / "run")
    with Watch(broken, lambda ema, step: {"held_out_loss": 1.0}, settings={}, sampler=sampler, report=said.append) as w:
        assert w.evaluate(torch.nn.Linear(1, 1), 4) == {"held_out_loss": 1.0}
    assert said[0].startswith("step 4: no samples could be drawn: ")


def test_the_receipt_is_in_run_checkpoint_and_model_card(watched):
    recipe, said = watched
    receipt = json.loads((recipe.run / "receipt.json").read_text())
    config = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=32)
    flops = 32 * training_flops(config, 8, 32) + 8 * training_flops(config, 16, 32)
    assert (receipt["step"], receipt["images"], receipt["flops"]) == (6, 40, flops)
    assert receipt["hours"] > 0 and receipt["co2_kg"] == pytest.approx(receipt["energy_kwh"] * 0.481)
    assert "estimated from the power of the data sheet" in receipt["energy_source"] and receipt["machine"]
    assert receipt["predicted"]["at_step"] == 2 and receipt["predicted"]["hours"] > 0
    for step, images in ((3, 24), (6, 40)):
        state = json.loads((recipe.run / f"checkpoint-{step}" / "state.json").read_text())
        assert (state["receipt"]["step"], state["receipt"]["images"]) == (step, images)
    assert "predicted at step 2" in said[-1] and "40 pictures" in said[-1]
    card = (recipe.run / "model" / "README.md").read_text()
    for part in (
        "library_name: diffusers",
        "Width 32, 2 blocks",
        "| run | 40 |",
        "held out loss: ",
        receipt["machine"],
    ):
        assert part in card


def test_a_continued_run_adds_to_its_receipt(watched, tmp_path):
    recipe, _ = watched
    run = tmp_path / "run"
    run.mkdir()
    before = json.loads((recipe.run / "receipt.json").read_text()) | {"hours": 2.0, "energy_kwh": 0.5, "usd": 7.0}
    (run / "receipt.json").write_text(json.dumps(before))
    meter = Meter(dataclasses.replace(recipe, run=run))
    now = meter.receipt(5)
    assert 2.0 < now["hours"] < 2.1 and 0.5 < now["energy_kwh"] < 0.51
    assert 7.0 < now["usd"] < 7.01, "what was paid on another machine is not priced again"
    assert now["images"] == 36 and now["predicted"] == before["predicted"]


def test_a_prediction_is_made_from_the_phase_that_was_timed(watched, tmp_path, monkeypatch):
    recipe, _ = watched
    first, second = (Phase(steps=2, size=64, batch_size=4, mask_share=share) for share in (0.0, 0.5))
    meter = Meter(dataclasses.replace(recipe, run=tmp_path, phases=(first, second)))
    cheap = dataclasses.replace(meter.works[1], flops_per_image=meter.works[0].flops_per_image // 2)
    meter.works = [meter.works[0], cheap]
    meter.look(3, {"images_per_second": 10.0})
    assert meter.predicted["hours"] * 3600 == pytest.approx(4 * (2 * 2 + 2) / 10)


def test_what_a_run_without_a_receipt_took_is_read_from_its_figures(watched, tmp_path, monkeypatch, capsys):
    recipe, _ = watched
    (tmp_path / "old").mkdir()
    shutil.copy(recipe.run / "config.json", tmp_path / "old")
    speeds = [{"step": step, "loss": 1.0, "images_per_second": speed} for step, speed in ((2, 8), (4, 4), (6, 0.5))]
    lines = [*speeds[:1], {"step": 2, "held_out_loss": 1.0}, *speeds[1:]]
    (tmp_path / "old" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "training_cost.py"))
    monkeypatch.setattr("sys.argv", ["training_cost.py", str(recipe.run), str(tmp_path / "old")])
    script["main"]()
    with_receipt, without = capsys.readouterr().out.splitlines()[1:3]
    assert with_receipt.split()[1:4] == without.split()[1:4]  # steps, pictures and FLOPs
    assert with_receipt.endswith("receipt") and without.endswith("metrics")
    assert script["without_receipt"](tmp_path / "old")["hours"] == (16 / 8 + 16 / 4 + 8 / 0.5) / 3600


def test_another_tracker_does_not_make_it_another_run(watched, capsys):
    recipe, _ = watched
    other = dataclasses.replace(recipe, tracking=TrackingConfig(to="trackio"), samples=SamplesConfig())
    assert train_recipe(other, lambda line: None) == 0  # finished: reported, not refused
    assert capsys.readouterr().out.strip() == str(recipe.run / "model")


def test_track_is_short_for_the_recipes_key(capsys):
    for given in (["--track", "wandb"], ["--track=wandb"], ["--tracking.to", "wandb"]):
        assert command.run([emoji_recipe("stage2"), *given, "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["tracking"]["to"] == "wandb"
    with pytest.raises(UsageError, match="'none', 'wandb', 'trackio', 'tensorboard'"):
        command.run([emoji_recipe("stage2"), "--track", "mlflow", "--dry-run"])


def test_loss_by_noise_level_is_the_mean_of_each_band():
    levels, losses = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0]), torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0])
    assert loss_by_level(levels, losses) == {
        "held_out_loss_0.0_0.2": 2.0, "held_out_loss_0.4_0.6": 5.0, "held_out_loss_0.8_1.0": 8.0,
    }  # fmt: skip


def test_codecarbon_measures_or_says_that_it_guesses_and_asks_no_network(monkeypatch):
    def no_network(self, address):
        raise AssertionError(f"codecarbon wanted to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    meter = EnergyMeter("codecarbon", watts=20)
    time.sleep(1.2)
    kwh, source = meter.read()
    meter.close()
    assert kwh > 0 and source.startswith("codecarbon, ") and ("measured" in source or "no sensor readable" in source)


def test_an_energy_meter_without_sensors_multiplies_power_by_time():
    meter = EnergyMeter("tdp", watts=3600)
    kwh, source = meter.read()
    assert 0 < kwh < 0.01 and "3600 W" in source


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
    lines = ["run: PixArt, 4 steps", "step 2/4  loss 0.5000  3.0 images/s  0.1 min left", "step 4: held_out_loss 0.4"]
    plain = io.StringIO()
    progress = TrainingProgress(plain)
    for line in lines:
        progress.report(line)
    progress.close()
    assert plain.getvalue().splitlines() == lines
    pid, terminal = pty.fork()
    if pid == 0:
        code = f"from pixart.training.progress import TrainingProgress as P; p = P()\nfor l in {lines!r}: p.report(l)\n"
        os.execve(sys.executable, [sys.executable, "-c", code + "p.close()"], os.environ | {"TERM": "xterm"})
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other end of a terminal that is gone
        pass
    os.waitpid(pid, 0)
    assert lines[0].encode() in shown and lines[2].encode() in shown
    assert b"2/4" in shown and b"step 2/4" not in shown and b"3.0 images/s  0.1 min left" in shown
