"""Recipes are read strictly, and `pixart train` says in one sentence what is wrong with a request."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_data import emoji_recipe

from pixart.errors import PixArtError, UsageError
from pixart.training import recipe as recipes
from pixart.training.command import run

STAGE1 = """
kind = "class"
run = "a-run"
data = "data"
cache = "cache"
autoencoder = "vae"
[[phases]]
steps = 5
size = 64
batch_size = 4
[sampling.style_weights]
3D = 3
"""


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Write a changed copy of STAGE1 and give its path; whatever a run makes lands in the temporary folder."""
    monkeypatch.chdir(tmp_path)

    def write(old: str = "", new: str = "") -> str:
        assert old in STAGE1
        (tmp_path / "my.toml").write_text(STAGE1.replace(old, new, 1) if old else STAGE1)
        return "my.toml"

    return write


@pytest.mark.parametrize("name", ["autoencoder", "stage1", "stage2", "stage3", "decoder", "fast"])
def test_recipes_load_and_survive_json(name, tmp_path):
    recipe = recipes.load(emoji_recipe(name))
    (tmp_path / "config.json").write_text(json.dumps(recipes.to_json(recipe)))
    assert recipes.from_run(tmp_path) == recipe


def test_shipped_stages_fit_each_other():
    stage1, stage2, stage3 = (recipes.load(emoji_recipe(f"stage{k}")) for k in (1, 2, 3))
    assert stage1.model == stage2.model == stage3.model
    assert (stage2.init, stage3.init) == (stage1.run, stage2.run)
    assert stage1.autoencoder == stage2.autoencoder == stage3.autoencoder
    assert stage1.autoencoder == recipes.load(emoji_recipe("autoencoder")).run / "vae"
    assert stage2.reparameterize_timestep == 775.0
    assert stage3.phases[-1].size == 256
    assert stage3.sampling.style_weights == {"3D": 3.0}


def test_a_file_of_ones_own(toml):
    recipe = recipes.load(toml())
    assert recipe.phases == (recipes.Phase(steps=5, size=64, batch_size=4),)
    assert recipe.run == Path("a-run")
    weight = recipe.sampling.style_weights["3D"]
    assert weight == 3.0 and type(weight) is float  # a whole number in TOML is a fine weight


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cache =", "cahce =", "no key 'cahce'. Did you mean 'cache'?"),
        ("batch_size = 4", "batchsize = 4", "no key 'batchsize'. Did you mean 'batch_size'?"),
        ("batch_size = 4", "batch_size = 4\nzzz = 1", "It knows steps, size, batch_size, crop"),
        ('data = "data"', "", "needs either data and cache"),
        ("steps = 5", 'steps = "5"', "steps is '5'; it must be a whole number"),
        ("steps = 5", "steps = 5.5", "steps is 5.5; it must be a whole number"),
        ("steps = 5", "steps = true", "steps is True; it must be a whole number"),
        ("steps = 5", "steps = 0", "steps of at least 1, not 0"),
        ("size = 64", "size = 60", "multiples of 16"),
        ("3D = 3", '3D = "often"', "style_weights.3D is 'often'; it must be a number"),
        ('autoencoder = "vae"', "autoencoder = 3", "autoencoder is 3; it must be a path"),
        ('autoencoder = "vae"', 'autoencoder = "vae"\nloop = 3', "loop must be a table, not 3"),
        (
            "[[phases]]",
            '[optimizer]\nname = "sgd"\n[[phases]]',
            "name is 'sgd'; it must be one of 'adamw', 'adamw8bit'",
        ),
        ("[[phases]]", "[optimizer]\nbetas = [0.9]\n[[phases]]", "betas needs 2 values, not 1"),
        ('kind = "class"', 'kind = "clas"', "it must be one of autoencoder, class, text"),
        ('kind = "class"', "kind = ", "is not valid TOML"),
        ('kind = "class"', 'kind = "text"\nguidance_scale = -1', "guidance_scale is -1.0; it must be from 0 to 50"),
    ],
)
def test_mistakes_in_a_recipe_are_named(toml, old, new, words):
    with pytest.raises(UsageError) as caught:
        recipes.load(toml(old, new))
    assert words in str(caught.value)
    assert "my.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("[optimizer]\nlearning_rate = -1.0", "learning_rate -1.0 must be between 0 and 1"),
        ("[optimizer]\nbetas = [0.9, 1.0]", "betas (0.9, 1.0)"),
        ("[loop]\nsave_every = 0", "save_every 0 must be at least 1"),
        ("[loop]\nseed = -1", "seed -1 must not be negative"),
        ("[model]\ndepth = 0", "depth 0"),
        ("[timesteps]\nuniform_share = 2.0", "uniform_share 2.0 must be from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(toml, new, words):
    with pytest.raises(UsageError) as caught:
        recipes.load(toml("[sampling.style_weights]", new + "\n[sampling.style_weights]"))
    assert words in str(caught.value)


def test_a_recipe_needs_phases_and_a_dropout_below_one(toml):
    phases = "[[phases]]\nsteps = 5\nsize = 64\nbatch_size = 4\n"
    with pytest.raises(UsageError, match="at least one"):
        recipes.load(toml(phases, "phases = []\n"))
    with pytest.raises(UsageError, match=r"dropout of the condition is 7\.0"):
        recipes.load(toml("[[phases]]", "class_dropout = 7\n[[phases]]"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("paper/stage2_align_255", "Did you mean paper/stage2_align_256?"),
        ("coco", "recipes are: paper/all, paper/stage1"),
        ("no.toml", ""),
    ],
)
def test_unknown_recipes(name, words):
    with pytest.raises(UsageError, match=r"No recipe") as caught:
        run([name])
    assert words in str(caught.value)


def test_dry_run_prints_the_resolved_recipe_and_makes_nothing(toml, tmp_path, capsys):
    words = "--optimizer.learning-rate 0.002 --optimizer.name muon --phases.0.steps 7 --run other --dry-run"
    assert run([toml(), *words.split()]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "class" and shown["run"] == "other"
    assert shown["optimizer"]["learning_rate"] == 0.002 and shown["optimizer"]["name"] == "muon"
    plain = {"crop": None, "route_share": 0.0, "mask_share": 0.0}
    assert shown["phases"] == [{"steps": 7, "size": 64, "batch_size": 4, **plain}]
    assert shown["sampling"]["style_weights"] == {"3D": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_every_shipped_recipe_can_be_overridden(capsys):
    for name in recipes.names():
        assert run([name, "--loop.seed", "5", "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["loop"]["seed"] == 5


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--optimizer.learning-rte 1", "my.toml has no option --optimizer.learning-rte. Did you mean --optimizer.lea"),
        ("--phases.1.steps 3", "Did you mean --phases.0.steps?"),
        ("--zzz 3", "has no option --zzz. pixart train my.toml --help lists them."),
        ("--phases.0.steps many", "steps is 'many'; it must be a whole number"),
        ("--phases.0.steps", "--phases.0.steps takes one value, and none was given"),
        ("--loop.seed 1 2", "--loop.seed takes one value, not 2: 1 2"),
        ("--loop.compile maybe", "compile is 'maybe'; it must be true or false"),
        ("--optimizer.betas 0.9", "betas needs 2 values, not 1"),
        ("--optimizer 3", "--optimizer is a table"),
        ("--phases.0 3", "--phases.0 is a table"),
        ("--run.deeper 3", "has no option --run.deeper"),
        ("seed 3", "'seed' stands alone"),
        ("--optimizer.learning-rate 0", "learning_rate 0.0 must be between 0 and 1"),
        ("--optimizer.learning-rate nan", "learning_rate nan must be between 0 and 1"),
        ("--phases.0.batch-size 0", "batch_size of at least 1, not 0"),
        ("--sampling.style-weights.3D -1", "the weight 3D is -1.0; it must be 0 or more"),
        ("--model.width 30", "width 30 must be a multiple of 4 and of num_heads"),
        ("--model.sample-size 48", "sample_size 48 must be one of 32, 64 and 128"),
        ("--min-snr-gamma 5", "for objective 'ddpm' only"),
        ("--features somewhere", "needs either data and cache"),
    ],
)
def test_bad_overrides_are_one_sentence(toml, words, complaint):
    with pytest.raises(UsageError) as caught:
        run([toml(), *words.split(), "--dry-run"])
    assert complaint in str(caught.value) and caught.value.exit_code == 2


def test_overrides_of_every_kind(toml, capsys):
    words = (
        "--optimizer.betas 0.5 0.6 --loop.compile --sampling.style-weights.Noto=2 --sampling.style_weights.3D 1.5 "
        "--timesteps.sampler uniform --model.width=64 --phases.0.crop none --init ../earlier --objective ddpm "
        "--min-snr-gamma 5 --classes style"
    )
    assert run([toml(), *words.split(), "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["optimizer"]["betas"] == [0.5, 0.6] and shown["loop"]["compile"] is True
    assert shown["sampling"]["style_weights"] == {"3D": 1.5, "Noto": 2.0}
    assert (shown["model"]["width"], shown["init"], shown["classes"]) == (64, "../earlier", ["style"])
    assert (shown["objective"], shown["min_snr_gamma"], shown["phases"][0]["crop"]) == ("ddpm", 5.0, None)
    assert run([toml(), "--loop.compile", "true", "--loop.no-compile", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["loop"]["compile"] is False


def test_an_older_run_is_still_read(tmp_path):
    table = recipes.to_json(recipes.load(emoji_recipe("stage2")))
    table["denoiser"] = {name: table["model"][name] for name in ("width", "depth", "num_heads")}  # session 1
    table["loop"]["bf16"] = table["loop"].pop("precision") == "bf16"
    for key in ("model", "objective", "min_snr_gamma", "expected", "features"):
        del table[key]
    (tmp_path / "config.json").write_text(json.dumps(table))
    assert recipes.from_run(tmp_path) == recipes.load(emoji_recipe("stage2"))


def test_help_lists_the_recipes(capsys):
    assert run(["--help"]) == 0
    assert run([]) == 2
    assert capsys.readouterr().out.count("paper/stage2") == 2


def test_resume_wants_a_run(toml, tmp_path, capsys):
    with pytest.raises(UsageError, match="--resume nowhere: there is no run"):
        run([toml(), "--resume", "nowhere"])
    with pytest.raises(UsageError, match="--resume needs a run folder"):
        run([toml(), "--resume"])
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "config.json").write_text("{}")
    assert run([toml(), "--resume=earlier", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "earlier"
    assert run([toml(), "--resume", "auto", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "a-run"


def test_a_folder_that_is_no_run_is_left_alone(toml, tmp_path):
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="a-run is not empty and not a run folder"):
        run([toml()])
    with pytest.raises(UsageError, match="is not empty and not a run folder"):
        run([toml(), "--run", "my.toml"])
    assert [path.name for path in (tmp_path / "a-run").iterdir()] == ["thesis.txt"]


def test_missing_data_is_named(toml):
    with pytest.raises(PixArtError, match="data") as caught:
        run([toml()])
    assert caught.value.exit_code == 1
    assert not Path("a-run").exists()  # so that the corrected recipe is not "another recipe"


def test_a_run_folder_without_a_readable_config(tmp_path):
    with pytest.raises(PixArtError, match="is not a run folder"):
        recipes.from_run(tmp_path)
    (tmp_path / "config.json").write_text('{"data": "x"}')
    with pytest.raises(PixArtError, match="is not a run folder"):
        recipes.from_run(tmp_path)


def test_recipes_are_plain_frozen_data():
    recipe = recipes.load(emoji_recipe("stage1"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.run = Path("elsewhere")
