"""The loop: two processes train as one, kill it anywhere and run it again, damage and other data are noticed."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import (
    BATCH,
    STEPS,
    TinyBatches,
    metrics,
    predictions,
    start,
    tiny_loss,
    tiny_model,
    tiny_train,
    together,
)

from pixart.errors import PixArtError, UsageError
from pixart.training import checkpoints
from pixart.training.distribution import World
from pixart.training.loop import LoopConfig, check
from pixart.training.optimizers import OptimizerConfig
from pixart.training.rows import ALL_ROWS, MicrobatchSlice, RowStreams

CPU = torch.device("cpu")
# Sums in another order round differently, and AdamW makes steps of a gradient's sign: after six steps the losses
# differ by some 1e-6. Other noise for one row would change them by 1e-2.
TOLERANCE = 2e-5
WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run that nobody disturbed, with what its network then predicts beside it. Do not change it; copy it."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    np.save(run.with_suffix(".npy"), predictions(tiny_train(run)).numpy())
    return run


def train_here(world: World, run: Path, steps: int, loop: dict) -> None:
    # Every rank starts from other weights, as another kind of processor might: those of the first must count.
    ema = tiny_train(run, steps=steps, world=world, model=tiny_model(world.rank), **loop)
    if world.main:
        np.save(run.with_suffix(".npy"), predictions(ema).numpy())


def exit_codes(processes: list) -> list[int]:
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def assert_same_steps(run: Path, other: Path) -> None:
    """The same steps with the same losses and norms, and networks that predict the same, to `TOLERANCE`."""
    for name in ("loss", "grad_norm"):
        ours, theirs = (dict(metrics(folder, name)) for folder in (run, other))
        assert ours.keys() == theirs.keys() and list(ours.values()) == pytest.approx(
            list(theirs.values()), rel=TOLERANCE
        )
    ours, theirs = (np.load(folder.with_suffix(".npy")) for folder in (run, other))
    assert np.abs(ours - theirs).max() < 20 * TOLERANCE and np.abs(theirs).max() > 0.5


@pytest.mark.parametrize(
    "loop",
    [
        {"parallel": "ddp"},
        {"parallel": "auto", "accumulate": 2},
        {"parallel": "fsdp", "accumulate": 2, "checkpoint_activations": True},
    ],
    ids=lambda loop: "-".join(str(value) for value in loop.values()),
)
def test_two_processes_take_the_steps_of_one(unbroken, tmp_path, loop):
    assert exit_codes(together(train_here, 2, tmp_path / "run", STEPS, loop)) == [0, 0]
    assert_same_steps(tmp_path / "run", unbroken)


@pytest.mark.parametrize("loop", [{"accumulate": 4}, {"checkpoint_activations": True}, {"workers": 2}])
def test_less_memory_or_workers_take_the_same_steps(unbroken, tmp_path, loop):
    run = tmp_path / "run"
    np.save(run.with_suffix(".npy"), predictions(tiny_train(run, **loop)).numpy())
    assert_same_steps(run, unbroken)
    if "workers" in loop:
        assert metrics(run) == metrics(unbroken)


def test_out_of_memory_halves_the_batch_once_and_remembers(unbroken, tmp_path):
    run, seen = tmp_path / "run", []

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        seen.append(batch["count"])
        if batch["count"] > 4 and len(seen) > 2:
            raise torch.OutOfMemoryError("full")
        return tiny_loss(model, batch)

    np.save(run.with_suffix(".npy"), predictions(tiny_train(run, loss=loss, steps=STEPS)).numpy())
    assert_same_steps(run, unbroken)
    assert seen == [8, 8, 8, *[4] * 8] and json.loads((run / "memory.json").read_text()) == {"accumulate": 2}
    for folder in checkpoints.found(run)[1:]:
        shutil.rmtree(folder)
    seen.clear()
    tiny_train(run, loss=loss, steps=STEPS)
    assert seen == [4, 4]
    with pytest.raises(PixArtError):
        tiny_train(tmp_path / "never", loss=lambda model, batch: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))


def test_other_noise_for_one_row_would_be_noticed(unbroken, tmp_path):
    def other_row(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        batch["rng"].rows = range(1, BATCH + 1)
        return tiny_loss(model, batch)

    tiny_train(tmp_path / "run", steps=2, loss=other_row)
    for (_, loss), (_, expected) in zip(metrics(tmp_path / "run"), metrics(unbroken), strict=False):
        assert abs(loss - expected) > 100 * TOLERANCE


def test_gradients_are_clipped_to_the_norm_of_the_recipe(tmp_path):
    def gradient_norm(model: torch.nn.Module) -> float:
        return sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None) ** 0.5

    for clip in (1e-3, 1e9):
        model = tiny_model()
        tiny_train(tmp_path / f"run-{clip}", steps=1, model=model, optimizer={"clip": clip})
        (_, reported), *_ = metrics(tmp_path / f"run-{clip}", "grad_norm")
        assert gradient_norm(model) == pytest.approx(min(clip, reported), rel=1e-3) and reported > 1e-2


@pytest.mark.parametrize("first, second", [("fsdp", None), (None, "fsdp")])
def test_a_checkpoint_of_one_world_is_continued_in_another(unbroken, tmp_path, first, second):
    run = tmp_path / "run"
    for parallel, steps in ((first, 3), (second, STEPS)):
        if parallel:
            assert exit_codes(together(train_here, 2, run, steps, {"parallel": parallel})) == [0, 0]
        else:
            train_here(World(CPU), run, steps, {})
    assert_same_steps_after(run, unbroken)
    for name in ("model", "ema", "optimizer"):  # full tensors of the same names, whoever wrote them
        ours, theirs = (load_file(checkpoints.found(f)[-1] / f"{name}.safetensors") for f in (run, unbroken))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def assert_same_steps_after(run: Path, other: Path) -> None:
    """As `assert_same_steps`, for a run whose first part was to have three steps, with its learning rates."""
    ours, theirs = dict(metrics(run)), dict(metrics(other))
    assert ours.keys() == theirs.keys()
    assert ours[1] == pytest.approx(theirs[1], rel=TOLERANCE) and ours[6] == pytest.approx(theirs[6], rel=0.05)


def die_at(world: World, run: Path) -> None:
    def at(step: int, part: MicrobatchSlice) -> None:
        if step == 4 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    tiny_train(run, batches=TinyBatches(at), world=world)


def test_a_process_that_dies_ends_the_others_with_one_sentence(tmp_path):
    run = tmp_path / "run"
    assert exit_codes(together(die_at, 2, run)) == [1, -signal.SIGKILL]
    assert run.with_suffix(".0.txt").is_file()
    assert checkpoints.newest(run).state.step == 4


def poisoned(world: World, run: Path) -> None:
    tiny_train(run, batches=TinyBatches(poisoned=3), world=world)


def test_all_stop_where_one_process_has_a_loss_that_is_not_finite(tmp_path):
    run = tmp_path / "run"
    assert exit_codes(together(poisoned, 2, run)) == [1, 1]
    assert "image-3-6.png" in run.with_suffix(".0.txt").read_text()
    assert "image-3-5.png" not in run.with_suffix(".0.txt").read_text()
    assert checkpoints.newest(run).state.step == 3


def interrupted(world: World, run: Path) -> None:
    def at(step: int, part: MicrobatchSlice) -> None:
        if step == 2 and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)

    tiny_train(run, batches=TinyBatches(at), world=world, save_every=100)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    assert exit_codes(together(interrupted, 2, tmp_path / "run")) == [75, 75]
    assert checkpoints.newest(tmp_path / "run").state.step in (3, 4)


def main_fails(world: World, seen: Path) -> None:
    def act() -> None:
        seen.mkdir(exist_ok=True)
        (seen / str(world.rank)).touch()
        if world.main:
            raise UsageError("the first one says why")

    world.main_first(act)


def test_what_the_first_process_refuses_the_others_do_not_begin(tmp_path):
    assert exit_codes(together(main_fails, 2, tmp_path / "seen")) == [2, 1]
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["0"]


def test_what_cannot_be_trained_together_is_refused(monkeypatch):
    world = World(CPU, rank=0, size=3)
    with pytest.raises(UsageError):
        world.slices(2)[0].rows(8)
    assert [list(part.rows(12)) for part in World(CPU, rank=1, size=3).slices(2)] == [[4, 5], [6, 7]]
    for loop, optimizer, model, where in (
        ({"parallel": "fsdp"}, {"name": "came"}, tiny_model(), world),
        ({"checkpoint_activations": True}, {}, torch.nn.Linear(1, 1), World(CPU)),
        ({"precision": "float16"}, {}, tiny_model(), World(CPU)),
    ):
        with pytest.raises(UsageError):
            check(LoopConfig(**loop), OptimizerConfig(**optimizer), model, where)
    monkeypatch.setattr("pixart.runtime.device._processor_flags", lambda: {"avx2"})
    with pytest.raises(UsageError):
        check(LoopConfig(precision="bfloat16"), OptimizerConfig(), tiny_model(), World(CPU))


def test_a_row_has_its_stream_whoever_holds_it():
    whole, part = RowStreams(3, 7, range(6)), RowStreams(3, 7, range(2, 5))
    for numbers in (lambda rng, rows: rng.standard_normal((rows, 5)), lambda rng, rows: rng.random(rows)):
        assert np.array_equal(numbers(whole, 6)[2:5], numbers(part, 3))
    for other in (RowStreams(4, 7, range(6)), RowStreams(3, 8, range(6)), RowStreams(3, 7, range(6), purpose=1)):
        again = RowStreams(3, 7, range(6))
        first, second = again.random(6), again.random(6)
        assert not np.intersect1d(other.random(6), first).size and not np.intersect1d(first, second).size
    many = RowStreams(0, 0, range(64)).standard_normal((64, 1000))
    assert many.dtype == np.float32 and abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert np.abs(np.corrcoef(many) - np.eye(64)).max() < 0.2
    with pytest.raises(ValueError):
        whole.random(5)
    assert list(ALL_ROWS.rows(4)) == [0, 1, 2, 3]


def assert_same_bytes(run: Path, other: Path) -> None:
    """The same checkpoints, bit by bit, the same metrics, and nothing left over."""
    names = [path.name for path in checkpoints.found(other)]
    assert [path.name for path in checkpoints.found(run)] == names and len(names) == checkpoints.KEEP
    for name in names:
        for file in WEIGHTS:
            assert (run / name / file).read_bytes() == (other / name / file).read_bytes(), (name, file)
    for name in ("loss", "lr", "grad_norm", "size"):
        assert metrics(run, name) == metrics(other, name)
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


def interrupt_last_step(step: int, part: MicrobatchSlice) -> None:
    if step == STEPS - 1:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_before_any_single_thing_that_it_does_to_a_file(unbroken, tmp_path):
    """Resuming, logging, saving and rotating, cut short at every place, one after the other."""
    nearly = tmp_path / "nearly"
    with pytest.raises(KeyboardInterrupt):
        tiny_train(nearly, batches=TinyBatches(interrupt_last_step))
    saved_at, kills = set(), 0
    while True:
        run = shutil.copytree(nearly, tmp_path / f"killed-{kills}")
        process = start(train_until, run, kills + 1)
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        saved_at.add(checkpoints.newest(run).state.step)  # which compares every byte with its checksum
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
    while kills < 6 or not finished:
        run = tmp_path / f"run-{finished}"
        process = start(train_for, run, chance.uniform(0.01, 0.25))
        process.join(120)
        if process.exitcode == 0:
            assert_same_bytes(run, unbroken)
            finished += 1
        else:
            assert process.exitcode == -signal.SIGPROF
            kills += 1


@pytest.mark.parametrize("file", [*WEIGHTS, "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent", "unreadable"])
def test_a_damaged_checkpoint_is_noticed_and_an_older_one_offered(unbroken, tmp_path, file, damage):
    run = shutil.copytree(unbroken, tmp_path / "run")
    path = run / f"checkpoint-{STEPS}" / file
    content = path.read_bytes()
    match damage:
        case "flipped":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "truncated":
            path.write_bytes(content[:-3])
        case "absent":
            path.unlink()
        case "unreadable":  # also for root, whom permissions do not stop
            path.unlink()
            path.mkdir()
    if file == "state.json" and damage in ("absent", "unreadable"):  # then it is no checkpoint, as before its renaming
        assert checkpoints.newest(run).state.step == STEPS - 1
        return
    with pytest.raises(PixArtError) as caught:
        tiny_train(run)
    assert str(path) in str(caught.value) and f"checkpoint-{STEPS - 1}" in str(caught.value)
    shutil.rmtree(path.parent)
    (run / f"checkpoint-{STEPS - 1}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(PixArtError):
        tiny_train(run)


def test_other_data_and_other_networks_are_refused(unbroken, tmp_path):
    run = tmp_path / "run"
    tiny_train(run, steps=2, data="one")
    with pytest.raises(PixArtError):
        tiny_train(run, data="another")
    tiny_train(run, steps=3, data="one")
    copied = shutil.copytree(unbroken, tmp_path / "copied")
    with pytest.raises(PixArtError):
        tiny_train(copied, steps=7, model=torch.nn.Linear(2, 2))


def test_a_full_disk_keeps_the_older_checkpoints(tmp_path, monkeypatch):
    run = tmp_path / "run"
    tiny_train(run, steps=2)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(PixArtError):
        tiny_train(run, steps=4)
    assert checkpoints.newest(run).state.step == 2 and not list(run.glob(".checkpoint*"))


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.02), ("float16", 0.004)])
def test_half_precision_follows_full_precision(unbroken, tmp_path, monkeypatch, precision, tolerance):
    monkeypatch.setattr("pixart.training.loop.check", lambda *arguments: None)  # a processor may do without fp16
    dtypes = set()

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        dtypes.add(model.blocks[0].mlp.fc1(torch.ones(1, 32)).dtype)
        return tiny_loss(model, batch)

    ema = tiny_train(tmp_path / "half", precision=precision, loss=loss)
    assert dtypes == {getattr(torch, precision)} and {p.dtype for p in ema.parameters()} == {torch.float32}
    half, full = ([loss for _, loss in metrics(run)] for run in (tmp_path / "half", unbroken))
    assert half == pytest.approx(full, rel=tolerance) and half != full


def test_an_overflow_in_fp16_costs_one_update_and_a_nan_the_run(tmp_path, monkeypatch):
    """A loss a hundred times as large overflows at first; the run goes on, also after a stop in between."""
    monkeypatch.setattr("pixart.training.loop.check", lambda *arguments: None)

    def large(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        return 100 * tiny_loss(model, batch)

    run = tmp_path / "run"
    tiny_train(run, precision="float16", loss=large, steps=12)
    scale = checkpoints.newest(run).state.scaler["scale"]
    norms = [norm for _, norm in metrics(run, "grad_norm")]
    assert scale < 2**16 and not np.isfinite(norms[0]) and np.isfinite(norms[-1])
    tiny_train(run, precision="float16", loss=large, steps=13)
    assert checkpoints.newest(run).state.scaler["scale"] <= scale
    with pytest.raises(PixArtError):
        tiny_train(tmp_path / "nan", loss=lambda model, batch: tiny_loss(model, batch) * torch.inf)
    with pytest.raises(PixArtError):  # a loss of one's own may be one number for all images
        tiny_train(tmp_path / "scalar", loss=lambda model, batch: tiny_loss(model, batch).mean() * torch.inf)


@pytest.mark.slow
def test_blocks_compile_without_a_graph_break_and_once_for_each_shape(unbroken, tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    run = tmp_path / "run"
    np.save(run.with_suffix(".npy"), predictions(tiny_train(run, compile=True)).numpy())
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 2, counters
    for (_, ours), (_, theirs) in zip(metrics(run), metrics(unbroken), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
