"""Two processes train as one: DDP, FSDP, accumulation, checkpoints across them, and what happens when one is lost."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import BATCH, STEPS, figures, predictions, tiny_batches, tiny_loss, tiny_model, tiny_train, together

from pixart.errors import UsageError
from pixart.training import checkpoint
from pixart.training.distributed import World
from pixart.training.loop import LoopConfig, check
from pixart.training.optimizers.optimizer import OptimizerConfig
from pixart.training.rows import WHOLE, RowStreams, Share

CPU = torch.device("cpu")
# Sums in another order round differently, and AdamW makes steps of a gradient's sign: after six steps the losses
# differ by some 1e-6. Other noise for one row would change them by 1e-2.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process, with what its network then predicts beside it. Do not change it; copy it."""
    run = tmp_path_factory.mktemp("alone") / "run"
    np.save(run.with_suffix(".npy"), predictions(tiny_train(run, save_every=3)).numpy())
    return run


def train_here(world: World, run: Path, steps: int, loop: dict) -> None:
    ema = tiny_train(run, steps=steps, world=world, **({"save_every": 3} | loop))
    if world.main:
        np.save(run.with_suffix(".npy"), predictions(ema).numpy())


def exit_codes(processes: list) -> list[int]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def assert_same(run: Path, other: Path) -> None:
    """The same steps with the same losses and norms, and networks that predict the same, to `TOLERANCE`."""
    for name in ("loss", "grad_norm"):
        (steps, values), (expected_steps, expected) = (
            zip(*figures(folder, name), strict=True) for folder in (run, other)
        )
        assert steps == expected_steps and values == pytest.approx(expected, rel=TOLERANCE)
    ours, theirs = (np.load(folder.with_suffix(".npy")) for folder in (run, other))
    assert np.abs(ours - theirs).max() < 20 * TOLERANCE and np.abs(theirs).max() > 0.5


@pytest.mark.parametrize(
    "loop",
    [
        {"parallel": "ddp"},
        {"parallel": "fsdp"},
        {"parallel": "auto", "accumulate": 2},
        {"parallel": "fsdp", "accumulate": 2, "checkpoint_activations": True},
    ],
    ids=lambda loop: "-".join(str(value) for value in loop.values()),
)
def test_two_processes_take_the_steps_of_one(alone, tmp_path, loop):
    assert exit_codes(together(train_here, 2, tmp_path / "run", STEPS, loop)) == [0, 0]
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize("loop", [{"accumulate": 4}, {"checkpoint_activations": True}])
def test_less_memory_takes_the_same_steps(alone, tmp_path, loop):
    run = tmp_path / "run"
    np.save(run.with_suffix(".npy"), predictions(tiny_train(run, save_every=3, **loop)).numpy())
    assert_same(run, alone)


def test_other_noise_for_one_row_would_be_noticed(alone, tmp_path):
    def other_row(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        batch["rng"].rows = range(1, BATCH + 1)
        return tiny_loss(model, batch)

    tiny_train(tmp_path / "run", steps=2, loss=other_row)
    for (_, loss), (_, expected) in zip(figures(tmp_path / "run"), figures(alone), strict=False):
        assert abs(loss - expected) > 100 * TOLERANCE


@pytest.mark.parametrize("first, second", [("fsdp", None), (None, "fsdp"), ("fsdp", "ddp")])
def test_a_checkpoint_of_one_world_is_continued_in_another(alone, tmp_path, first, second):
    run = tmp_path / "run"
    for parallel, steps in ((first, 3), (second, STEPS)):
        if parallel:
            assert exit_codes(together(train_here, 2, run, steps, {"parallel": parallel})) == [0, 0]
        else:
            train_here(World(CPU), run, steps, {})
        assert checkpoint.found(run)[-1].name == f"checkpoint-{steps}"
    assert_same(run, alone)
    names = [sorted(path.name for path in checkpoint.found(folder)[-1].iterdir()) for folder in (run, alone)]
    assert names[0] == names[1]
    for name in ("model", "ema", "optimizer"):  # whole tensors of the same names, whoever wrote them
        ours, theirs = (load_file(checkpoint.found(f)[-1] / f"{name}.safetensors") for f in (run, alone))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def die_at(world: World, run: Path) -> None:
    def batches(step: int, share: Share) -> dict:
        if step == 4 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny_batches(step, share)

    tiny_train(run, batches=batches, world=world)


def test_a_process_that_dies_ends_the_others_with_one_sentence(tmp_path):
    run = tmp_path / "run"
    assert exit_codes(together(die_at, 2, run)) == [1, -signal.SIGKILL]
    assert "Process 0 of 2 has lost another one" in run.with_suffix(".0.txt").read_text()
    assert checkpoint.newest(run).step == 4


def poisoned(world: World, run: Path) -> None:
    def batches(step: int, share: Share) -> dict:
        batch = tiny_batches(step, share)
        if step == 3 and world.rank == 1:
            batch["latent"][2] = torch.nan  # row 6 of 8
        return batch

    tiny_train(run, batches=batches, world=world)


def test_all_stop_where_one_process_has_a_loss_that_is_not_finite(tmp_path):
    run = tmp_path / "run"
    assert exit_codes(together(poisoned, 2, run)) == [1, 1]
    said = run.with_suffix(".0.txt").read_text()
    assert "Step 3: loss nan" in said and "not finite: picture-3-6.png at noise level 0." in said
    report = json.loads((run / "nonfinite.json").read_text())
    assert [picture["key"] for picture in report["pictures"]] == ["picture-3-6.png"]
    assert checkpoint.newest(run).step == 3


def interrupted(world: World, run: Path) -> None:
    def batches(step: int, share: Share) -> dict:
        if step == 2 and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return tiny_batches(step, share)

    tiny_train(run, batches=batches, world=world, save_every=100)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    assert exit_codes(together(interrupted, 2, tmp_path / "run")) == [75, 75]
    assert checkpoint.newest(tmp_path / "run").step == 3


def main_fails(world: World, seen: Path) -> None:
    def act() -> None:
        seen.mkdir(exist_ok=True)
        (seen / str(world.rank)).touch()
        if world.main:
            raise UsageError("the first one says why")

    world.main_first(act)


def test_what_the_first_process_refuses_the_others_do_not_begin(tmp_path):
    assert exit_codes(together(main_fails, 2, tmp_path / "seen")) == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seen", "seen.0.txt"]
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["0"]


def test_what_cannot_be_shared_is_refused():
    world = World(CPU, rank=0, size=3)
    with pytest.raises(UsageError, match="A batch of 8 cannot be cut into 6 equal parts"):
        world.shares(2)[0].rows(8)
    assert [list(share.rows(12)) for share in World(CPU, rank=1, size=3).shares(2)] == [[4, 5], [6, 7]]
    with pytest.raises(UsageError, match="fsdp, but muon needs whole matrices"):
        check(LoopConfig(parallel="fsdp"), OptimizerConfig(name="muon"), tiny_model(), world)
    with pytest.raises(UsageError, match="has no blocks to compute again"):
        check(LoopConfig(checkpoint_activations=True), OptimizerConfig(), torch.nn.Linear(1, 1), World(CPU))


def test_a_row_has_its_stream_whoever_holds_it():
    whole, part = RowStreams(3, 7, range(6)), RowStreams(3, 7, range(2, 5))
    for draw in (lambda rng, rows: rng.standard_normal((rows, 5)), lambda rng, rows: rng.random(rows)):
        assert np.array_equal(draw(whole, 6)[2:5], draw(part, 3))
    for other in (RowStreams(4, 7, range(6)), RowStreams(3, 8, range(6)), RowStreams(3, 7, range(6), purpose=1)):
        again = RowStreams(3, 7, range(6))
        first, second = again.random(6), again.random(6)
        assert not np.intersect1d(other.random(6), first).size and not np.intersect1d(first, second).size
    many = RowStreams(0, 0, range(64)).standard_normal((64, 1000))
    assert many.dtype == np.float32 and abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert np.abs(np.corrcoef(many) - np.eye(64)).max() < 0.2
    with pytest.raises(ValueError, match="random numbers for 5 rows were asked of a batch of 6"):
        whole.random(5)
    assert list(WHOLE.rows(4)) == [0, 1, 2, 3]
