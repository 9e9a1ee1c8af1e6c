"""Averages of several lengths side by side: each is what a run with that length alone has, and any can be chosen."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from pixart.training.optimizers.optimizer import OptimizerConfig
from tiny_data import emoji_recipe, write_tiny_data

from pixart.cli import main
from pixart.errors import UsageError
from pixart.training import checkpoint
from pixart.training.command import train_recipe
from pixart.training.ema import Ema
from pixart.training.loop import LoopConfig
from pixart.training.recipe import Denoiser, Phase, load


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model):
    """A text recipe on tiny data that keeps three averages; trained for seven steps, stopped and continued at four."""
    home = tmp_path_factory.mktemp("ema")
    base = load(emoji_recipe("stage2"))
    return dataclasses.replace(
        base,
        run=home / "run",
        data=write_tiny_data(home / "data"),
        cache=home / "cache",
        autoencoder=tiny_model / "vae",
        text_encoder=tiny_model / "text_encoder",
        init=None,
        phases=(Phase(7, 64, 4),),
        model=Denoiser(width=32, depth=2, num_heads=2),
        optimizer=OptimizerConfig(learning_rate=3e-2, warmup_steps=1, decay_share=0.0),
        loop=LoopConfig(ema_decay=0.9, ema_decays=(0.1, 0.3), save_every=4, log_every=7, evaluate_every=7),
    )


@pytest.fixture(scope="module")
def run(recipe):
    assert train_recipe(recipe, quiet) == 0
    return recipe.run


def quiet(line: str) -> None:
    pass


def test_each_average_follows_the_weights_at_its_own_pace():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.9, others=(0.2,))
    expected = {0.9: 0.0, 0.2: 0.0}
    for step in range(30):
        torch.nn.init.constant_(model.weight, step + 1.0)
        ema.update(model, step)
        for decay in expected:
            expected[decay] += (1 - min(decay, (1 + step) / (10 + step))) * (step + 1 - expected[decay])
    states = ema.states()
    assert sorted(states) == ["ema", "ema-0.2"]
    assert states["ema"]["weight"].item() == pytest.approx(expected[0.9], rel=1e-5)
    assert states["ema-0.2"]["weight"].item() == pytest.approx(expected[0.2], rel=1e-5)
    assert ema.whole().weight.item() == states["ema"]["weight"].item()


def test_a_further_average_is_what_a_run_with_that_length_alone_has(recipe, run, tmp_path):
    alone = dataclasses.replace(recipe, run=tmp_path / "alone", loop=LoopConfig(ema_decay=0.3, save_every=100))
    assert train_recipe(alone, quiet) == 0
    kept, only = checkpoint.newest(run).read("ema-0.3"), checkpoint.newest(alone.run).read("ema")
    assert sorted(kept) == sorted(only) and all(torch.equal(kept[name], only[name]) for name in only)
    assert not torch.equal(kept["t_block.1.weight"], checkpoint.newest(run).read("ema")["t_block.1.weight"])


def test_all_averages_survive_a_stop(recipe, run, tmp_path):
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 4/"):
            raise Stopped

    again = dataclasses.replace(
        recipe, run=tmp_path / "again", loop=dataclasses.replace(recipe.loop, log_every=1, save_every=2)
    )
    with pytest.raises(Stopped):
        train_recipe(again, stop)
    assert train_recipe(again, quiet) == 0
    for name in ("ema", "ema-0.1", "ema-0.3"):
        first, second = (checkpoint.newest(folder).read(name) for folder in (run, again.run))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_averages_of_a_run_are_compared(run, capsys):
    assert main(["ema", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["0.9", "held_out_loss"],
        ["0.1", "held_out_loss"],
        ["0.3", "held_out_loss"],
    ]
    assert len({line[2] for line in lines}) == 3
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert float(lines[0][2]) == pytest.approx(logged[-1]["held_out_loss"], abs=1e-5)


def test_the_chosen_average_becomes_a_model_folder(run, tmp_path, capsys):
    from pixart.checkpoints.diffusers import load_transformer

    dest = tmp_path / "chosen"
    assert main(["ema", str(run), "--decay", "0.1", "--dest", str(dest)]) == 0
    assert capsys.readouterr().out.strip() == str(dest)
    stored, kept = load_transformer(dest / "transformer").state_dict(), checkpoint.newest(run).read("ema-0.1")
    for name, value in stored.items():
        np.testing.assert_allclose(value.float(), kept[name], rtol=1e-3, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chosen"]
    assert (run / "model").is_dir() and (dest / "model_index.json").is_file()


def test_what_cannot_be_chosen_is_refused(run, tmp_path, capsys):
    for arguments, sentence in (
        (["--decay", "0.2", "--dest", str(tmp_path / "new")], "has kept the averages 0.9, 0.1, 0.3, not 0.2"),
        (["--decay", "0.1"], "--decay and --dest together"),
        (["--decay", "0.1", "--dest", str(tmp_path)], "is there already"),
    ):
        assert main(["ema", str(run), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["ema", str(tmp_path)]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="each another one"):
        LoopConfig(ema_decay=0.9, ema_decays=(0.9,))
