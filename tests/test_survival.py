"""Kill it anywhere, run it again: the same bytes. Damage, full disks, other data and second trainers are noticed."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny_data
from tiny_run import STEPS, figures, start, tiny_batches, tiny_train

from pixart.errors import PixArtError, UsageError
from pixart.training import checkpoint, lock
from pixart.training.command import train_recipe
from pixart.training.files import write_whole
from pixart.training.recipe import from_run, load
from pixart.training.rows import Share

WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
FILES = (*WEIGHTS, "state.json")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run that nobody disturbed. Do not change it; copy it."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    tiny_train(run)
    return run


def assert_same_bytes(run: Path, other: Path) -> None:
    """The same checkpoints, bit by bit, the same figures, and nothing left over."""
    names = [path.name for path in checkpoint.found(other)]
    assert [path.name for path in checkpoint.found(run)] == names and len(names) == checkpoint.KEEP
    for name in names:
        for file in FILES:
            assert (run / name / file).read_bytes() == (other / name / file).read_bytes(), (name, file)
    for name in ("loss", "lr", "grad_norm", "size"):
        assert figures(run, name) == figures(other, name)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in other.iterdir())


def train_until(run: Path, number: int) -> None:
    """Train, and be killed before the `number`-th thing that is done to a file or folder of the run."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        inside = event in ("os.remove", "os.rmdir") or any(str(run) in str(part) for part in arguments)
        if event.startswith(("open", "os.", "shutil.")) and inside:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    tiny_train(run)


def test_killed_before_any_single_thing_that_it_does_to_a_file(unbroken, tmp_path):
    """Resuming, logging, saving and rotating, cut short at every place, one after the other."""
    nearly = tmp_path / "nearly"

    def batches(step: int, share: Share) -> dict:
        if step == STEPS - 1:
            raise KeyboardInterrupt
        return tiny_batches(step, share)

    with pytest.raises(KeyboardInterrupt):
        tiny_train(nearly, batches=batches)
    saved_at, kills = set(), 0
    while True:
        run = shutil.copytree(nearly, tmp_path / f"killed-{kills}")
        process = start(train_until, run, kills + 1)
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        saved_at.add(checkpoint.newest(run).step)  # which compares every byte with its checksum
        tiny_train(run)
        assert_same_bytes(run, unbroken)
    assert kills > 20 and saved_at == {STEPS - 1, STEPS}


def train_for(run: Path, seconds: float) -> None:
    """Train, and end without a word after so much processor time (SIGPROF, which nobody handles)."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    tiny_train(run)
    signal.setitimer(signal.ITIMER_PROF, 0)


def test_killed_at_random_moments(unbroken, tmp_path):
    chance, kills, finished = random.Random(2), 0, 0
    while kills < 20 or not finished:
        run = tmp_path / f"run-{finished}"
        process = start(train_for, run, chance.uniform(0.01, 0.25))
        process.join(120)
        if process.exitcode == 0:
            assert_same_bytes(run, unbroken)
            finished += 1
        else:
            assert process.exitcode == -signal.SIGPROF
            kills += 1


RECIPE = """
kind = "autoencoder"
run = "run"
data = "data"
cache = "cache"
[[phases]]
steps = 30
size = 64
crop = 32
batch_size = 4
[autoencoder]
block_out_channels = [8, 8, 8, 8]
norm_num_groups = 4
[optimizer]
warmup_steps = 2
[loop]
log_every = 1
save_every = 1
evaluate_every = 10
"""


def command(folder: Path, *arguments: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "pixart", "train", "recipe.toml", *arguments]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen, path: Path) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_command_killed_and_given_again_ends_with_the_same_weights(tmp_path, monkeypatch):
    write_tiny_data(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    first = command(tmp_path)
    wait_for(first, tmp_path / "run" / "checkpoint-4" / "state.json")
    first.send_signal(signal.SIGSTOP)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PixArtError, match=f"Process {first.pid} on .* trains in run already"):
        train_recipe(load("recipe.toml"), print)
    first.kill()
    first.wait(60)
    again = command(tmp_path)
    wait_for(again, tmp_path / "run" / "checkpoint-12" / "state.json")
    again.send_signal(signal.SIGTERM)
    assert again.wait(240) == 75 and "run the same command again" in again.stderr.read()
    last = command(tmp_path)
    out, said = last.communicate(timeout=240)
    assert last.returncode == 0 and out.strip() == "run/vae" and "continuing run at step" in said, said

    straight = tmp_path / "straight"
    straight.mkdir()
    (straight / "recipe.toml").write_text(RECIPE)
    (straight / "data").symlink_to(tmp_path / "data")
    monkeypatch.chdir(straight)
    assert train_recipe(load("recipe.toml"), print) == 0
    for file in (*(f"checkpoint-30/{name}" for name in WEIGHTS), "vae/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (straight / "run" / file).read_bytes(), file
    assert not (tmp_path / "run" / lock.NAME).exists()
    assert_no_pickle(tmp_path / "run")


def assert_no_pickle(run: Path) -> None:
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else json.loads(
                path.read_text()
            )
        elif path.is_file():
            assert path.suffix == ".safetensors" and load_file(path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent", "unreadable"])
def test_a_damaged_checkpoint_is_noticed_and_an_older_one_offered(unbroken, tmp_path, file, damage):
    run = shutil.copytree(unbroken, tmp_path / "run")
    path = run / f"checkpoint-{STEPS}" / file
    whole = path.read_bytes()
    match damage:
        case "flipped":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "truncated":
            path.write_bytes(whole[:-1])
        case "absent":
            path.unlink()
        case "unreadable":  # also for root, whom permissions do not stop
            path.unlink()
            path.mkdir()
    if file == "state.json" and damage in ("absent", "unreadable"):  # then it is no checkpoint, as before its renaming
        assert checkpoint.newest(run).step == STEPS - 1
        return
    with pytest.raises(PixArtError) as caught:
        tiny_train(run)
    advice = f"Remove checkpoint-{STEPS} to continue from checkpoint-{STEPS - 1}, which is whole."
    assert str(path) in str(caught.value) and advice in str(caught.value)
    shutil.rmtree(path.parent)
    (run / f"checkpoint-{STEPS - 1}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(PixArtError, match=r"No older one is whole: remove .* to begin again"):
        tiny_train(run)


def test_a_checkpoint_of_the_first_format_can_still_be_read(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    for folder in checkpoint.found(run):
        step = json.loads((folder / "state.json").read_text())["step"]
        (folder / "state.json").write_text(json.dumps({"step": step}))
    assert checkpoint.newest(run).step == STEPS
    tiny_train(run, steps=STEPS + 1)
    assert checkpoint.newest(run).step == STEPS + 1


def test_a_checkpoint_of_another_network_is_refused(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    saved = checkpoint.newest(run)
    from pixart.training.ema import Ema

    other = torch.nn.Linear(2, 2)
    with pytest.raises(PixArtError, match=r"holds another network or optimiser than this recipe: .*another --run"):
        saved.load_weights(other, Ema(other, decay=0.9))


def test_changed_data_are_refused(tmp_path):
    run = tmp_path / "run"
    tiny_train(run, steps=2, data="a hash")
    tiny_train(run, steps=3, data="a hash")
    with pytest.raises(PixArtError, match=r"data of this run has changed since .*checkpoint-3 was written"):
        tiny_train(run, data="another hash")
    assert checkpoint.newest(run).step == 3


def test_a_loss_that_is_not_finite_names_step_noise_levels_and_pictures(tmp_path):
    def batches(step: int, share: Share) -> dict:
        batch = tiny_batches(step, share)
        if step == 3:
            batch["latent"][5, 0, 0, 0] = torch.inf
        return batch

    with pytest.raises(PixArtError) as caught:
        tiny_train(tmp_path, batches=batches)
    said = str(caught.value)
    assert "Step 3: loss nan" in said or "Step 3: loss inf" in said
    assert "Pictures whose loss is not finite: picture-3-5.png at noise level 0." in said
    assert checkpoint.newest(tmp_path).step == 3
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["step"] == 3 and [picture["key"] for picture in report["pictures"]] == ["picture-3-5.png"]
    assert 0 < report["pictures"][0]["noise_level"] < 1


def test_a_gradient_that_is_not_finite_names_all_pictures_of_the_step(tmp_path):
    def endless_slope(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        p = next(model.parameters())
        return (p - p.detach()).abs().sum().sqrt()  # 0, with a slope of 0 / 0

    with pytest.raises(PixArtError, match=r"Step 0: loss 0.0, gradient norm nan.* picture-0-0.png, .* \(all in"):
        tiny_train(tmp_path, loss=endless_slope)
    assert len(json.loads((tmp_path / "nonfinite.json").read_text())["pictures"]) == 8


def test_a_full_disk_stops_with_a_sentence_and_older_checkpoints(tmp_path):
    tiny_train(tmp_path, steps=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for most, words in (
        (20_000, "Could not write .*checkpoint-3"),
        (len(before) + 1, "metrics.jsonl cannot be written"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))  # no file may grow past this
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with pytest.raises(PixArtError, match=words):
                tiny_train(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, old)
        assert checkpoint.newest(tmp_path).step == 2
    tiny_train(tmp_path, steps=3)
    assert checkpoint.newest(tmp_path).step == 3


def hold(run: Path) -> None:
    with lock.held(run):
        (run / "held").touch()
        time.sleep(300)


def test_a_run_folder_has_one_trainer_and_a_dead_one_does_not_keep_it(tmp_path):
    process = start(hold, tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "held").exists() and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(PixArtError, match=f"Process {process.pid} on .* trains in .* already"), lock.held(tmp_path):
        pass
    process.kill()
    process.join(60)
    assert (tmp_path / lock.NAME).exists()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not (tmp_path / lock.NAME).exists()


def test_a_trainer_on_another_machine_is_refused_while_it_touches_its_lock(tmp_path):
    file = tmp_path / lock.NAME
    file.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(PixArtError, match="Process 7 on elsewhere trains in"), lock.held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    long_ago = time.time() - lock.STALE_S - 60
    os.utime(file, (long_ago, long_ago))
    with lock.held(tmp_path):
        assert json.loads(file.read_text())["host"] == socket.gethostname()


def test_what_may_change_may_change_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny_data(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("steps = 30", "steps = 2"))
    recipe, said = load("recipe.toml"), []
    assert train_recipe(recipe, said.append) == 0
    table = json.loads(Path("run/config.json").read_text())
    Path("run/finished.json").unlink()
    table["loop"]["accumulate"] = 2
    table["loop"]["bf16"] = table["loop"].pop("precision") == "bf16"  # as runs before there was fp16 had it
    Path("run/config.json").write_text(json.dumps(table))
    assert from_run(Path("run")).loop.precision == "bf16"
    assert train_recipe(recipe, said.append) == 0
    assert "continuing with loop.accumulate 1 instead of 2" in said
    assert json.loads(Path("run/config.json").read_text())["loop"]["accumulate"] == 1
    table["loop"]["seed"] = 4
    Path("run/config.json").write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"different: loop\)"):
        train_recipe(recipe, said.append)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "receipt.json"
    path.write_text("before")
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(PixArtError, match=r"receipt\.json cannot be written: File too large"):
            write_whole(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.name for file in tmp_path.iterdir()] == ["receipt.json"] and path.read_text() == "before"
