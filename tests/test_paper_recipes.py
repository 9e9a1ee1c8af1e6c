"""The paper's recipes say what the paper says, and run here, tiny, from the very same files."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_features import write_features

import pixart
from pixart.checkpoints.diffusers import load_transformer, save_transformer
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.sampling.noise import initial_noise
from pixart.training import checkpoint
from pixart.training import recipe as recipes
from pixart.training.batches import Phase
from pixart.training.command import run
from pixart.training.feature_batches import FeatureBatches, Rows, held_out_batches, open_for
from pixart.training.recipe import TextRecipe
from pixart.training.rows import Share
from pixart.training.stages import build
from pixart.training.start import start_from

STAGES = recipes.chain("paper/all")
# 2310.00426, table of training stages in the appendix: resolution, steps, batch, V100 days.
PUBLISHED = {
    "stage1_pixels_256": (256, 300_000, 128 * 8, 88),
    "stage2_align_256": (256, 150_000, 178 * 64, 672),
    "stage3_aesthetic_256": (256, 90_000, 178 * 64, 416),
    "stage3_aesthetic_512": (512, 100_000, 40 * 64, 320),
    "stage3_aesthetic_1024": (1024, 16_000, 12 * 32, 160),
}
TINY_SIZES = {"stage3_aesthetic_512": 96, "stage3_aesthetic_1024": 128}  # all others are 64 px


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_figures_are_the_papers(name):
    recipe, (size, steps, batch, days) = recipes.load(f"paper/{name}"), PUBLISHED[name]
    assert recipe.phases == (Phase(steps, size, batch),)
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 2e-5, 0.03)
    assert (optimizer.clip, optimizer.eps, optimizer.warmup_steps, optimizer.decay_share) == (0.01, 1e-10, 1000, 0.0)
    assert (recipe.loop.ema_decay, recipe.objective, recipe.timesteps.sampler) == (0.9999, "ddpm", "uniform")
    assert (recipe.model.width, recipe.model.depth, recipe.model.num_heads) == (1152, 28, 16)
    assert recipe.model.sample_size == size // 8 and recipe.model.micro_conditions == (size == 1024)
    assert getattr(recipe, "caption_dropout", 0.1) == getattr(recipe, "class_dropout", 0.1) == 0.1
    text = (recipes.RECIPES / "paper" / f"{name}.toml").read_text()
    assert f"pixart train paper/{name}" in text and "2310.00426" in text and f"Published cost: {days} V100 days" in text


def test_the_chain_is_linked():
    loaded = [recipes.load(name) for name in STAGES]
    assert [Path(name).name for name in STAGES] == list(PUBLISHED)
    assert [r.init for r in loaded] == [None, *[r.run for r in loaded[:-1]]]
    assert loaded[1].reparameterize_timestep == 500
    assert sum(days for *_, days in PUBLISHED.values()) == 1656


def test_dry_run_shows_configuration_parts_counts_and_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["paper/all", "--dry-run"]) == 0
    shown = capsys.readouterr()
    stages = json.loads(shown.out)["stages"]
    assert [stage["name"] for stage in stages] == STAGES and stages[4]["model"]["micro_conditions"] is True
    # The parameters of the published checkpoints: 256 and 512, and 1024-MS with its two embedders.
    assert shown.err.count("610,856,096 parameters") == 3 and shown.err.count("611,349,152 parameters") == 1
    assert "150,000 steps of 11,392 pictures at 256 px, 256 tokens each: 1,708,800,000 pictures" in shown.err
    assert "170.9 times over 10,000,000" in shown.err
    assert shown.err.count("features      runs/paper-features/") == 5 and "(not there yet)" in shown.err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_model) -> Path:
    """Five tiny feature folders by the names of the stages."""
    home = tmp_path_factory.mktemp("features")
    write_features(home / "stage1_pixels_256", tiny_model, 64, {"64x64": 24}, classes=True)
    write_features(home / "stage2_align_256", tiny_model, 64, {"64x64": 20})
    write_features(home / "stage3_aesthetic_256", tiny_model, 64, {"64x64": 20})
    write_features(home / "stage3_aesthetic_512", tiny_model, 96, {"96x96": 12, "64x128": 8, "128x64": 6})
    write_features(home / "stage3_aesthetic_1024", tiny_model, 128, {"128x128": 10, "96x160": 9})
    return home


def words(parts: Path, model: Path, root: Path) -> list[str]:
    """The command that trains paper/all tiny."""
    given = f"paper/all --run {root} --model.width 48 --model.depth 2 --model.num-heads 4 --phases.0.steps 4 "
    given += f"--phases.0.batch-size 4 --autoencoder {model / 'vae'} --text-encoder {model / 'text_encoder'} "
    given += "--optimizer.learning-rate 1e-2 --optimizer.warmup-steps 1 --loop.ema-decay 0.5"
    for name in PUBLISHED:
        stage = f" --{name.replace('_', '-')}"
        given += f"{stage}.features {parts / name}{stage}.phases.0.size {TINY_SIZES.get(name, 64)}"
    return given.split()


@pytest.fixture(scope="module")
def trained(parts, tiny_model, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("paper") / "runs"
    assert run(words(parts, tiny_model, root)) == 0
    return root


def test_the_stages_run_in_turn_and_each_model_draws_in_stock_diffusers(trained):
    from diffusers import PixArtAlphaPipeline

    for name in list(PUBLISHED)[1:]:
        folder = trained / name / "model"
        pipe = PixArtAlphaPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.scheduler.config.prediction_type == "epsilon" and pipe.transformer.config.out_channels == 16
        micro = pipe.transformer.config.use_additional_conditions
        assert micro == (pipe.transformer.config.sample_size == 128) == name.endswith("1024")
        settings = {"width": 64, "height": 96, "num_inference_steps": 3, "clean_caption": False}
        latents = torch.from_numpy(initial_noise(7, (8, 12, 8)))[None]
        theirs = pipe("red apple", latents=latents, use_resolution_binning=False, **settings).images[0]
        draw = pixart.Pipeline.from_pretrained(folder)
        ours = draw("red apple", seed=7, width=64, height=96, steps=3, binning=False).images[0]
        first, second = np.asarray(theirs).astype(int), np.asarray(ours).astype(int)
        assert first.std() > 1 and np.abs(first - second).max() <= 2, name


def test_each_stage_begins_with_the_averages_of_the_one_before(trained):
    runs = [trained / name for name in PUBLISHED]
    for before, after in itertools.pairwise(runs[1:-1]):
        start = build(recipes.from_run(after), quiet).model.state_dict()
        assert all(torch.equal(start[name], tensor) for name, tensor in checkpoint.ema_state(before).items())
    # Stage 2 is the class-free DiT at t = 500, and the last stage has two embedders that say nothing yet.
    align = build(recipes.from_run(runs[1]), quiet).model
    source = build(recipes.from_run(runs[0]), quiet)
    source.model.load_state_dict(checkpoint.ema_state(runs[0]))
    assert isinstance(source.model, DiT)
    x_t, when = torch.randn(2, 8, 8, 8), torch.full((2,), 500.0)
    with torch.no_grad():
        theirs = source.model(x_t, when, torch.full((2, 1), 3))
        ours = align(x_t, when, torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm() and theirs.norm() > 0
    last = build(recipes.from_run(runs[4]), quiet).model.state_dict()
    earlier = checkpoint.ema_state(runs[3])
    added = last.keys() - earlier.keys()
    assert len(added) == 8 and all(torch.equal(last[name], tensor) for name, tensor in earlier.items())
    assert all(not last[name].any() for name in added if ".mlp.2." in name)
    assert all(last[name].any() for name in added if name.endswith(".mlp.0.weight"))


def test_a_network_that_gets_micro_conditions_predicts_as_before(tmp_path):
    sizes = {"width": 48, "depth": 1, "num_heads": 4, "text_dim": 12, "sample_size": 128}
    plain = PixArt(PixArtConfig(**sizes))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_transformer(plain.state_dict(), plain.config, tmp_path / "transformer", torch.float32)
    (tmp_path / "model_index.json").write_text("{}")
    model = PixArt(PixArtConfig(**sizes, micro_conditions=True))
    start_from(model, dataclasses.replace(recipes.load("paper/stage3_aesthetic_1024"), init=tmp_path))
    x_t, when = torch.randn(2, 8, 8, 8), torch.tensor([3.0, 700.0])
    text, mask, size = torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool), torch.rand(2, 3) * 1000
    with torch.no_grad():
        assert torch.equal(model(x_t, when, text, mask, size), plain(x_t, when, text, mask))
    assert load_transformer(tmp_path / "transformer").config == plain.config


def test_the_same_command_again_finds_everything_finished(trained, parts, tiny_model, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    assert run(words(parts, tiny_model, trained)) == 0
    shown = capsys.readouterr()
    assert shown.err.count("is finished") == 5
    assert shown.out.splitlines()[1:] == [str(trained / name / "model") for name in list(PUBLISHED)[1:]]
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}


@pytest.fixture
def recipe(parts, tiny_model, tmp_path) -> TextRecipe:
    """Stage 3 at 1024 px, tiny, on two buckets."""
    return dataclasses.replace(
        recipes.load("paper/stage3_aesthetic_1024"),
        run=tmp_path / "run",
        init=None,
        features=parts / "stage3_aesthetic_1024",
        autoencoder=tiny_model / "vae",
        text_encoder=tiny_model / "text_encoder",
        phases=(Phase(20, 128, 4),),
        model=recipes.Denoiser(width=48, depth=1, num_heads=4, sample_size=128, micro_conditions=True),
    )


def test_batches_have_one_shape_each_and_every_picture_that_is_not_held_out(recipe):
    rows = Rows(open_for(recipe), recipe)
    batches, held_out = FeatureBatches(rows, dropout=0.5), held_out_batches(rows)
    away = [key for batch in held_out for key in batch["keys"]]
    assert len(away) == 1  # a tenth of 19 at most
    seen, dropped = [], 0
    for step in range(9):  # 18 pictures, twice
        batch = batches(step)
        height, width = batch["latent"].shape[2:]
        numbers = [int(key.split(".")[0]) for key in batch["keys"]]
        assert (height, width) == ((16, 16) if numbers[0] < 10 else (20, 12))
        assert all((n < 10) == (numbers[0] < 10) for n in numbers)
        expected = torch.tensor([[2 * 8 * height + n, 2 * 8 * width, height / width] for n in numbers])
        assert torch.equal(batch["size"], expected)
        means = batch["latent"].mean(dim=(1, 2, 3))
        assert torch.allclose(means, torch.tensor(numbers) / 100, atol=0.02)  # a sample of the posterior
        assert batch["latent"].std(dim=(1, 2, 3)).sub(0.1).abs().max() < 0.02
        dropped += int((batch["text_mask"].sum(1) == 2).sum())
        seen += batch["keys"]
        again, halves = batches(step), [batches(step, Share(part, 2)) for part in (0, 1)]
        assert torch.equal(batch["latent"], again["latent"]) and torch.equal(batch["text"], again["text"])
        assert torch.equal(batch["latent"], torch.cat([half["latent"] for half in halves]))
        assert batch["keys"] == [key for half in halves for key in half["keys"]]
    assert set(seen) == {f"{n}.png" for n in range(19)} - set(away)
    assert max(map(seen.count, seen)) <= 3 and 8 <= dropped <= 28  # about half of 36


def test_latents_are_scaled_as_the_autoencoder_says(tiny_model, tmp_path, recipe):
    write_features(tmp_path / "f", tiny_model, 128, {"128x128": 12}, scaling_factor=0.5)
    here = dataclasses.replace(recipe, features=tmp_path / "f")
    batch = FeatureBatches(Rows(open_for(here), here), dropout=0.0)(0)
    numbers = torch.tensor([int(key.split(".")[0]) for key in batch["keys"]])
    assert torch.allclose(batch["latent"].mean(dim=(1, 2, 3)), 0.5 * numbers / 100, atol=0.01)
    assert batch["latent"].std(dim=(1, 2, 3)).sub(0.05).abs().max() < 0.01


def refusal(recipe) -> PixArtError:
    with pytest.raises(PixArtError) as caught:
        build(recipe, quiet)
    assert not recipe.run.exists()
    return caught.value


def test_features_that_do_not_fit_are_refused_with_the_fix(recipe, parts, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    path = other / "text_encoder" / "config.json"
    path.write_text(path.read_text() + "\n")
    changed = dataclasses.replace(recipe, text_encoder=other / "text_encoder")
    assert "another text encoder" in str(refusal(changed))
    path = other / "vae" / "config.json"
    path.write_text(path.read_text() + "\n")
    assert "another VAE" in str(refusal(dataclasses.replace(recipe, autoencoder=other / "vae")))
    assert "another text encoder" in str(refusal(dataclasses.replace(recipe, text_encoder=None)))
    at_96 = dataclasses.replace(recipe, features=parts / "stage3_aesthetic_512")
    assert "was made at 96 px, and the phases ask for 128 px" in str(refusal(at_96))
    classes = dataclasses.replace(recipe, features=parts / "stage1_pixels_256", phases=(Phase(1, 64, 4),))
    assert "has no captions in it" in str(refusal(classes))
    assert "has no features" in str(refusal(dataclasses.replace(recipe, features=tmp_path)))
    stage1 = dataclasses.replace(
        recipes.load("paper/stage1_pixels_256"), run=tmp_path / "run", autoencoder=tiny_model / "vae",
        features=parts / "stage2_align_256", phases=(Phase(1, 64, 4),), model=recipes.Denoiser(32, 1, 2),
    )  # fmt: skip
    assert "has no classes" in str(refusal(stage1))


def test_too_little_data_is_refused_with_the_fix(recipe):
    error = refusal(dataclasses.replace(recipe, phases=(Phase(20, 128, 64),)))
    assert "A batch of 64 is larger than the data set" in str(error) and "--phases.0.batch-size 18" in str(error)
    everything = dataclasses.replace(recipe.sampling, held_out=0)
    error = refusal(dataclasses.replace(recipe, phases=(Phase(20, 128, 10),), sampling=everything))
    assert isinstance(error, UsageError) and "1 of 2 buckets" in str(error) and "96x160 (9)" in str(error)
    assert "--sampling.small-buckets drop" in str(error)

    def shapes(small_buckets: str, batch_size: int) -> set[tuple[int, ...]]:
        sampling = dataclasses.replace(recipe.sampling, small_buckets=small_buckets, held_out=0)
        here = dataclasses.replace(recipe, sampling=sampling, phases=(Phase(20, 128, batch_size),))
        batches = FeatureBatches(Rows(open_for(here), here), dropout=0.0)
        return {tuple(batches(step)["latent"].shape) for step in range(8)}

    assert shapes("drop", 10) == {(10, 8, 16, 16)}
    assert shapes("repeat", 10) == {(10, 8, 16, 16), (10, 8, 20, 12)}


def test_a_start_that_cannot_be_one_is_refused(recipe, trained, tmp_path):
    stage2 = trained / "stage2_align_256"
    assert "its model.depth is 2, not 1" in str(refusal(dataclasses.replace(recipe, init=stage2)))
    fits = dataclasses.replace(recipe, init=stage2, model=dataclasses.replace(recipe.model, depth=2))
    assert "objective 'ddpm' and this recipe has 'flow'" in str(refusal(dataclasses.replace(fits, objective="flow")))
    assert "is not there" in str(refusal(dataclasses.replace(fits, init=tmp_path / "nowhere")))
    begun = shutil.copytree(stage2, tmp_path / "begun")
    (begun / "finished.json").unlink()
    said = str(refusal(dataclasses.replace(fits, init=begun)))
    assert "begun is not finished: it stands at step 4 of 4" in said and "Give its own pixart train command" in said
    stage1 = recipes.from_run(trained / "stage1_pixels_256")
    backwards = dataclasses.replace(stage1, run=tmp_path / "run", init=stage2)
    assert "a class-conditional DiT cannot start from it" in str(refusal(backwards))


def test_features_that_lost_too_many_pictures_are_refused_unless_told_otherwise(recipe, tmp_path):
    folder = shutil.copytree(recipe.features, tmp_path / "features")
    manifest = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps({**manifest, "skipped": {"truncated": 1}}))
    (folder / "skipped.jsonl").write_text(json.dumps({"key": "a.png", "reason": "truncated: ends early"}) + "\n")
    lossy = dataclasses.replace(recipe, features=folder)
    with pytest.raises(
        PixArtError, match=r"1 of 20 images were dropped \(a.png: truncated: ends early\): 5%.*--allow"
    ):
        open_for(lossy)
    assert len(open_for(dataclasses.replace(lossy, allow_dropped=0.05))) == 19
    with pytest.raises(UsageError, match=r"allow_dropped is 1\.5"):
        dataclasses.replace(lossy, allow_dropped=1.5)
