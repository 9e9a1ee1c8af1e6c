"""Faults of training that were found from outside, by the command line alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from photos import write_photos

pytestmark = pytest.mark.slow  # each starts trainers and ends them

RECIPE = """
task = "autoencoder"
output = "run"
[autoencoder]
data = "photos"
validation = 2
[autoencoder.network]
block_out_channels = [8, 8, 8, 8]
norm_num_groups = 4
[[phases]]
steps = 12
batch_size = 4
size = 64
crop = 32
[loop]
precision = "float32"
log_every = 1
save_every = 1
validate_every = 6
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a finished run. Do not change it; copy it."""
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos", 12)
    (home / "recipe.toml").write_text(RECIPE)
    assert train(home).returncode == 0
    return home


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """The same without the run's result: its last steps are to be done again."""
    copy = shutil.copytree(home, tmp_path / "home")
    (copy / "run" / "finished.json").unlink()
    shutil.rmtree(copy / "run" / "vae")
    return copy


def begin(folder: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [*before, sys.executable, "-m", "pixart", "train", "recipe.toml", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(folder: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    process = begin(folder, *words, before=before)
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess([], process.returncode, out, err)


def wait_for(process: subprocess.Popen, path: Path) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def weights(run: Path) -> dict[str, bytes]:
    files = [*run.glob("checkpoint-12/*.safetensors"), *run.glob("vae/*.safetensors")]
    return {file.name: file.read_bytes() for file in files}


def test_two_trainers_of_one_new_run_folder_are_one_trainer(home, tmp_path):
    folder = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("run"))
    both = [begin(folder), begin(folder)]
    codes = sorted(process.wait(240) for process in both)
    outputs = [process.communicate() for process in both]
    # The later one is refused, or finds the run finished; it never trains beside the other.
    assert codes == [0, 1] or (codes == [0, 0] and "is finished" in "".join(err for _, err in outputs)), outputs
    steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([step for step in steps if step not in (6, 12)]) == 10
    assert weights(folder / "run") == weights(home / "run")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000, "[]", "null", '{"step": 3}', '{"step": 1e30}', '{"step": 12, "files": []}', '{"step": NaN}',
        '{"step": -1, "files": {}}', '{"step": "12", "files": {}, "sha256": ""}',
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused_and_nothing_is_trained(copy, content):
    (copy / "run" / "checkpoint-12" / "state.json").write_text(content)
    before = sorted(path.name for path in (copy / "run").iterdir())
    done = train(copy)
    assert done.returncode == 1 and "state.json" in done.stderr
    assert sorted(path.name for path in (copy / "run").iterdir()) == before


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", '{"task": {"a": 1}}', '{"task": "autoencoder", "loop": 3}'])
def test_a_config_that_is_none_is_refused(copy, content):
    (copy / "run" / "config.json").write_text(content)
    assert train(copy).returncode in (1, 2)


def test_what_kills_have_left_goes_with_the_next_run(copy):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = __import__("socket").gethostname()
    for name in ("vae", "checkpoint-13", "config.json", "finished.json"):
        (copy / "run" / f".{name}.{host}.{dead.pid}.0a1b2c3d.part").mkdir()
    assert train(copy).returncode == 0
    assert not list((copy / "run").glob(".*.part"))


def test_a_signal_while_the_result_is_written_ends_with_75_and_the_result_is_there(copy, home):
    process = begin(copy)
    end = time.monotonic() + 240
    while not list((copy / "run").glob("*vae*")) and not list((copy / "run").glob(".vae*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=240)
    assert process.returncode == 75 and "Traceback" not in err
    assert weights(copy / "run") == weights(home / "run")
    assert train(copy).returncode == 0


def test_a_signal_stops_after_the_step_and_the_same_command_ends_with_the_same_weights(home, tmp_path):
    folder = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("run"))
    first = begin(folder)
    wait_for(first, folder / "run" / "checkpoint-2" / "state.json")
    first.kill()
    first.wait()
    again = begin(folder)
    wait_for(again, folder / "run" / "checkpoint-5" / "state.json")
    again.send_signal(signal.SIGTERM)
    assert again.wait(240) == 75
    assert train(folder).returncode == 0
    assert weights(folder / "run") == weights(home / "run")


def test_a_moved_folder_is_the_same_run(copy, home, tmp_path):
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    (copy / "run").rename(moved)
    (copy / "photos").rename(tmp_path / "photos")
    done = train(copy, "--output", str(moved), "--autoencoder.data", str(tmp_path / "photos"))
    assert done.returncode == 0, done.stderr
    assert weights(moved) == weights(home / "run")


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def test_a_finished_run_that_cannot_be_written_says_that_it_is_finished(home, tmp_path):
    folder = shutil.copytree(home, tmp_path / "home")
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root may write whatever the modes are, but not on a disk that is mounted read-only
        before = ("unshare", "-m", "sh", "-c", READ_ONLY, str(folder / "run"))
        if subprocess.run([*before, "true"], capture_output=True).returncode:
            pytest.skip("root writes anywhere, and this container lets nobody mount a folder read-only")
    else:
        for path in [folder / "run", *(folder / "run").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    done = train(folder, before=before)
    assert done.returncode == 0 and done.stdout.strip().endswith("vae"), done.stderr


def test_torchrun_takes_our_options(home, tmp_path):
    folder = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("run"))
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, "-m", "pixart", "train"]
    command = [
        sys.executable,
        *words,
        "recipe.toml",
        "--output",
        "other",
        "--phases.0.steps",
        "2",
        "--loop.device",
        "cpu",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / "other" / "finished.json").is_file() and not (folder / "run").exists()
