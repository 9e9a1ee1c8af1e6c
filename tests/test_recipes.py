"""Recipes: what a TOML file may hold, how flags change it, and the shipped ones."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pixart.cli import main
from pixart.config import plain
from pixart.errors import PixArtError, UsageError
from pixart.training.batches import Phase
from pixart.training.recipe import TASKS, differences, from_run, load, names, task_class, to_json
from pixart.training.tasks.text_to_image import TextToImage

RECIPE = """
task = "text_to_image"
output = "run"
[text_to_image]
init = "somewhere"
[[phases]]
steps = 10
batch_size = 4
features = "f"
[loop]
seed = 3
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_a_file_is_a_task_and_its_recipe_and_flags_change_both(file):
    task, recipe = load(str(file))
    assert task == TextToImage(init="somewhere") and recipe.phases == (Phase(10, 4, features=Path("f")),)
    assert (recipe.output, recipe.loop.seed, recipe.steps) == (Path("run"), 3, 10)
    flags = "--output other --loop.seed 5 --phases.0.steps 7 --text_to_image.caption-dropout 0.3 --loop.compile"
    task, recipe = load(str(file), flags.split())
    assert (recipe.output, recipe.loop.seed, recipe.loop.compile) == (Path("other"), 5, True)
    assert (recipe.phases[0].steps, task.caption_dropout, task.init) == (7, 0.3, "somewhere")


@pytest.mark.parametrize(
    "change",
    [
        ("seed = 3", "sead = 3"), ("seed = 3", 'seed = "3"'), ("seed = 3", "seed = -1"), ("steps = 10", "steps = 0"),
        ("steps = 10", "steps = 1e30"), ("steps = 10", ""), ('task = "text_to_image"', 'task = "text"'),
        ('task = "text_to_image"', "task = 3"), ('task = "text_to_image"', ""), ("[[phases]]", "[phases]"),
        ("[text_to_image]", "[decoder]"), ("[loop]", "[trainable]"), ("seed = 3", "seed = nan"), ("[loop]", "loop = ["),
        ('init = "somewhere"', "init = 3"), ('init = "somewhere"', 'optimizer = "adamw"'),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_hold_is_refused(file, change, capsys):
    file.write_text(RECIPE.replace(*change))
    assert main(["train", str(file)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.startswith("pixart: ")


@pytest.mark.parametrize(
    "words",
    [
        ["nothing/here"], ["missing.toml"], ["--loop.seed", "3"], ["FILE", "--loop.sead", "3"],
        ["FILE", "--loop.seed", "x"],
        ["FILE", "FILE", "--output", "x"], ["FILE", "--phases.0.steps", "0"], ["FILE", "--loop.precision", "int8"], [],
    ],
)  # fmt: skip
def test_commands_that_cannot_be_are_refused(file, words, capsys):
    assert main(["train", *(str(file) if word == "FILE" else word for word in words)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_lists_the_recipes_and_what_one_sets(file, capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names())
    assert main(["train", str(file), "--help"]) == 0
    out = capsys.readouterr().out
    assert "--loop.seed" in out and "caption-dropout" in out


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("paper/")])
def test_shipped_recipes_are_whole_and_say_what_they_lack(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _task, recipe = load(name)
    assert recipe.optimizer.clip == 0.01 and recipe.optimizer.eps == 1e-10 and recipe.ema.decays == (0.9999,)
    assert main(["train", name, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["phases"] == plain(recipe.phases) and err and not list(tmp_path.iterdir())
    assert main(["train", name]) == 1 and not list(tmp_path.glob("runs/*"))


def test_the_papers_stages_are_those_of_its_table():
    found = {name: load(name) for name in names() if name.startswith("paper/")}
    sizes = {name: (r.phases[0].steps, r.phases[0].batch_size) for name, (_, r) in found.items()}
    assert sizes == {
        "paper/stage1_pixels_256": (300_000, 1024),
        "paper/stage2_align_256": (150_000, 11_392),
        "paper/stage3_aesthetic_256": (90_000, 11_392),
        "paper/stage3_aesthetic_512": (100_000, 2_560),
        "paper/stage3_aesthetic_1024": (16_000, 384),
    }
    chain = ["stage1_pixels_256", "stage2_align_256", *(f"stage3_aesthetic_{size}" for size in (256, 512, 1024))]
    for before, after in itertools.pairwise(chain):
        assert found[f"paper/{after}"][0].init == str(found[f"paper/{before}"][1].output)
    assert found["paper/stage1_pixels_256"][0].network.width == 1152
    assert found["paper/stage3_aesthetic_1024"][0].network.micro_conditions


def test_every_task_has_defaults_and_a_round_trip(tmp_path):
    for name in TASKS:
        task = task_class(name)()
        _, recipe = load("paper/stage2_align_256")
        recipe = replace(recipe, output=tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(to_json(task, recipe)))
        assert from_run(tmp_path) == (task, recipe) or to_json(*from_run(tmp_path)) == to_json(task, recipe)


def test_where_things_lie_does_not_make_another_training(file):
    task, recipe = load(str(file))
    there = to_json(task, recipe)
    moved = replace(recipe, output=Path("/mnt/b"), phases=(replace(recipe.phases[0], features=Path("/mnt/a/f")),))
    moved = replace(moved, loop=replace(recipe.loop, accumulate=2))
    assert differences(there, to_json(replace(task, init="/mnt/somewhere"), moved)) == (
        [],
        ["loop.accumulate 2 instead of 1"],
    )
    assert differences(there, to_json(replace(task, caption_dropout=0.2), recipe))[0] == ["text_to_image"]
    assert differences(there, to_json(task, replace(recipe, loop=replace(recipe.loop, seed=4))))[0] == ["loop"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"task": "text"}', "[" * 200_000, '{"task": 1e999}', "\0"])
def test_a_damaged_run_folder_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PixArtError):
        from_run(tmp_path)
    with pytest.raises(UsageError):
        task_class("text")
