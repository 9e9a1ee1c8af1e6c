"""Every task trains on forty images with captions, and something can be made with the result."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from photos import CLASSES, write_photos
from safetensors.torch import load_file

import pixart
from pixart.cli import main
from pixart.data.features import open_features
from pixart.diffusion import ddpm
from pixart.diffusion.objective import Objective
from pixart.diffusion.schedule import make_schedule
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.training import train
from pixart.training.batches import Batches, Phase, Source
from pixart.training.ema import EmaConfig
from pixart.training.latents import LatentRows
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe
from pixart.training.rows import RowStreams
from pixart.training.run import export
from pixart.training.samples import SamplesConfig, trajectory
from pixart.training.start import read_start
from pixart.training.tasks.autoencoder import Autoencoder, AutoencoderSizes, transformed
from pixart.training.tasks.class_dit import ClassDiT
from pixart.training.tasks.decoder import DecoderTuning
from pixart.training.tasks.distillation import Distillation
from pixart.training.tasks.text_to_image import Network, TextToImage

SMALL = Network(width=32, depth=2, num_heads=2)
GENERATED = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def features(photos, tiny_model, tmp_path_factory) -> Path:
    """Features of the photos by the encoders of the tiny model, with mirrored latents and classes."""
    folder = tmp_path_factory.mktemp("features") / "f"
    words = ["data", "extract", str(photos), str(folder), "--model", str(tiny_model), "--base-size", "64", "--flip"]
    assert main(words) == 0
    return folder


def recipe(output: Path, phase: Phase, **settings) -> Recipe:
    common = {
        "loop": LoopConfig(precision="float32", log_every=1, save_every=2, validate_every=2, device="cpu"),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        "ema": EmaConfig((0.5,)),
    }
    return Recipe(output=output, phases=(phase,), **(common | settings))


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def generated(folder: Path, **options) -> np.ndarray:
    pipe = pixart.Pipeline.from_pretrained(folder, engine="torch")
    return np.asarray(pipe("a red fox", seed=1, **(GENERATED | options)).images[0])


def test_autoencoder(photos, tmp_path):
    sizes = AutoencoderSizes(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    task = Autoencoder(data=photos, network=sizes, equivariance=0.5, validation=4)
    phases = (Phase(3, 4, size=64, crop=32), Phase(2, 4, size=64))
    result = train(task, replace(recipe(tmp_path / "run", phases[0]), phases=phases))
    assert result == tmp_path / "run" / "vae" and "validation_psnr" in metrics(tmp_path / "run")[-1]
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(result)
    with torch.no_grad():
        assert vae.decode(vae.encode(torch.zeros(1, 3, 64, 80)).latent_dist.mean).sample.shape == (1, 3, 64, 80)
    # Another training from it, held near its latents: sizes are its own, nothing is said again.
    again = Autoencoder(data=photos, init=tmp_path / "run", anchor=0.3, validation=4)
    assert train(again, recipe(tmp_path / "again", Phase(2, 4, size=64))).is_dir()


def test_the_latents_of_a_fresh_autoencoder_get_mean_0_and_deviation_1(photos, tmp_path):
    from diffusers import AutoencoderKL

    from pixart.data.image_rows import ImageRows, to_unit
    from pixart.encoders.autoencoder import moments

    sizes = AutoencoderSizes(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    folder = train(Autoencoder(data=photos, network=sizes), recipe(tmp_path / "run", Phase(2, 4, size=64)))
    vae, images = AutoencoderKL.from_pretrained(folder), ImageRows(photos)
    means = [moments(vae, to_unit(images.read(np.array([i]), 64)))[0] for i in range(len(images))]
    flat = torch.cat([mean.transpose(0, 1).flatten(1) for mean in means], dim=1)
    assert torch.allclose(flat.mean(1), torch.zeros(8), atol=1e-2) and torch.allclose(
        flat.std(1), torch.ones(8), atol=2e-2
    )


def test_turned_latents_belong_to_turned_images():
    for shape in ((8, 8), (6, 8)):
        pixels = torch.randn(64, 3, 8 * shape[0], 8 * shape[1])
        latent = torch.nn.functional.avg_pool2d(pixels, 8)
        groups = transformed(latent, pixels, 1.0, RowStreams(0, 0, range(64)))
        assert sorted(torch.cat([rows for rows, _, _ in groups]).tolist()) == list(range(64)) and len(groups) == 3
        for _, small, true in groups:
            assert torch.allclose(torch.nn.functional.avg_pool2d(true, 8), small, atol=0.6)
        (whole,) = [group for group in groups if group[1].shape[-1] == shape[1]]
        assert torch.allclose(torch.nn.functional.avg_pool2d(whole[2], 8), whole[1], atol=1e-5)


def test_class_dit_then_text_to_image_then_both_kinds_of_polish(photos, features, tiny_model, tmp_path):
    """The three stages, distillation and the decoder, each from the one before."""
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    dit = train(ClassDiT(network=SMALL, validation=4), recipe(stage1, Phase(4, 4, features=features)))
    assert {"validation_loss"} <= metrics(stage1)[-1].keys()
    about = json.loads((dit / "config.json").read_text())
    assert set(about["classes"]["class"]) == set(CLASSES) and about["network"]["class_counts"] == [3]
    model = DiT(DiTConfig(**about["network"] | {"class_counts": (3,)}))
    model.load_state_dict(load_file(dit / "model.safetensors"))

    task = TextToImage(init=str(stage1), validation=4, guidance_scale=3.0)
    samples = SamplesConfig(prompts=("a red fox", "a house"), steps=2, size=64)
    folder = train(task, recipe(stage2, Phase(4, 4, features=features), samples=samples))
    assert folder == stage2 / "model" and task.config.width == 32 and task.config.depth == 2
    assert (
        len(list((stage2 / "samples").iterdir())) == 4 and "Task: text_to_image" in (folder / "README.md").read_text()
    )
    assert json.loads((folder / "pixart.json").read_text()) == {"guidance_scale": 3.0}
    from diffusers import PixArtAlphaPipeline

    stock = PixArtAlphaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    drawn = stock("a red fox", height=256, width=256, num_inference_steps=2, output_type="np", clean_caption=False)
    assert drawn.images.shape == (1, 256, 256, 3) and generated(folder).shape == (64, 64, 3)

    few = train(
        Distillation(teacher=str(stage2), steps=2, teacher_steps=4, validation=4),
        recipe(tmp_path / "few", Phase(2, 4, features=features)),
    )
    assert {"validation_distance", "teacher_distance"} <= metrics(tmp_path / "few")[-1].keys()
    assert (
        few == tmp_path / "few" / "fast" and main(["convert", str(tmp_path / "few"), str(folder), "--to", "fast"]) == 0
    )
    fast = pixart.Pipeline.from_pretrained(folder, fast=True, engine="torch")
    assert fast("a red fox", seed=1, width=64, height=64).images[0].size == (64, 64)

    task = DecoderTuning(data=photos, model=str(stage2), validation=4, steps=1)
    decoded = train(task, recipe(tmp_path / "decoder", Phase(2, 4, size=64)))
    assert {"validation_psnr", "validation_generated_psnr"} <= metrics(tmp_path / "decoder")[-1].keys()
    before, after = generated(folder), generated(decoded)
    assert before.shape == after.shape and (before != after).any()
    for part in ("transformer", "text_encoder"):
        name = next((folder / part).glob("*.safetensors")).name
        assert (folder / part / name).read_bytes() == (decoded / part / name).read_bytes()
    theirs, ours = (load_file(each / "vae" / "diffusion_pytorch_model.safetensors") for each in (folder, decoded))
    changed = {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_fine_tuning_takes_sizes_and_objective_from_what_it_starts_from(features, tmp_path):
    """An eps model with a learned variance, as the published ones are: nothing of it is typed again."""
    published = tmp_path / "published"
    write_tiny_model(published, eps=True)
    run = tmp_path / "run"
    samples = SamplesConfig(prompts=("a red fox",), steps=2, size=64)
    task = TextToImage(init=str(published), validation=4)
    folder = train(task, recipe(run, Phase(2, 4, features=features), samples=samples, optimizer=OptimizerConfig()))
    assert task.objective.name == "ddpm" and task.config.out_channels == 16
    assert json.loads((run / "config.json").read_text())["optimizer"]["learning_rate"] == 2e-5
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"
    assert list((run / "samples").iterdir()) and generated(folder).shape == (64, 64, 3)
    with pytest.raises(UsageError):
        train(
            TextToImage(init=str(published), objective=Objective("flow")),
            recipe(tmp_path / "b", Phase(1, 4, features=features)),
        )
    with pytest.raises(UsageError):
        train(
            TextToImage(init=str(published), network=Network(width=64)),
            recipe(tmp_path / "c", Phase(1, 4, features=features)),
        )
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_any_checkpoint_and_average_can_be_exported(features, tiny_model, tmp_path):
    run = tmp_path / "run"
    settings = {"ema": EmaConfig((0.5, 0.0, 0.15)), "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=1)}
    folder = train(
        TextToImage(init=str(tiny_model), validation=4), recipe(run, Phase(4, 4, features=features), **settings)
    )
    names = ("ema", "ema-0", "ema-0.15")
    weights = []
    for name in names:
        made = export(run, tmp_path / name, step=4, average=name)
        weights.append(load_file(made / "transformer" / "diffusion_pytorch_model.safetensors"))
    theirs = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[0][key], theirs[key]) for key in theirs)
    key = "proj_out.weight"
    assert len({tuple(each[key].flatten()[:9].tolist()) for each in weights}) == 3
    assert main(["export", str(run), str(tmp_path / "cli"), "--step", "2"]) == 0
    for wrong in ({"step": 3}, {"average": "ema-0.7"}):
        with pytest.raises(UsageError):
            export(run, tmp_path / "none", **wrong)


def test_a_run_goes_on_where_it_was_stopped_and_is_bit_equal(features, tiny_model, tmp_path):
    def settings(steps: int, run: str) -> Recipe:
        return recipe(tmp_path / run, Phase(steps, 4, features=features))

    stopped, straight = TextToImage(init=str(tiny_model), validation=4), TextToImage(init=str(tiny_model), validation=4)

    class Stop(Exception):
        pass

    seen = []

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        seen.append(batch["keys"])
        if len(seen) == 4:
            raise Stop
        return stopped.loss(model, batch)

    with pytest.raises(Stop):
        train(stopped, settings(5, "stopped"), loss)
    moved = tmp_path / "elsewhere"
    (tmp_path / "stopped").rename(moved)  # a moved folder is the same run
    train(TextToImage(init=str(tiny_model), validation=4), replace(settings(5, "stopped"), output=moved))
    train(straight, settings(5, "straight"))
    for name in ("model", "ema", "optimizer"):
        ours, theirs = (folder / "checkpoint-5" / f"{name}.safetensors" for folder in (moved, tmp_path / "straight"))
        assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(UsageError):
        train(straight, replace(settings(5, "straight"), optimizer=OptimizerConfig(learning_rate=1e-4)))
    with pytest.raises(UsageError):
        train(straight, settings(6, "straight"))


# What batches are made of.


def rows_of(features: Path, **settings) -> LatentRows:
    return LatentRows(**({"condition": "text", "validation": 4, "allow_dropped": 0.0} | settings))


def test_dropped_captions_become_the_empty_prompt_and_the_others_stay(features):
    store = open_features(features)
    chosen = np.flatnonzero(store.bucket == store.bucket[0])[:8]
    null = store.unconditional.float()
    for dropout, expected in ((0.0, 0), (1.0, len(chosen))):
        batch = rows_of(features, dropout=dropout).read(store, chosen, RowStreams(0, 0, range(len(chosen))))
        empty = [
            torch.equal(text[: len(null)], null) and int(mask.sum()) == len(null)
            for text, mask in zip(batch["text"], batch["text_mask"], strict=True)
        ]
        assert sum(empty) == expected
    many = rows_of(features, dropout=0.25)
    counts = [
        int(mask.sum()) == len(null)
        for step in range(60)
        for mask in many.read(store, chosen, RowStreams(0, step, range(len(chosen))))["text_mask"]
    ]
    alone = np.mean(
        [
            int(m.sum()) == len(null)
            for m in rows_of(features).read(store, chosen, RowStreams(0, 0, range(len(chosen))))["text_mask"]
        ]
    )
    assert np.mean(counts) == pytest.approx(alone + 0.25 * (1 - alone), abs=0.08)


def test_mirrored_latents_are_used_half_of_the_time(features):
    store = open_features(features)
    chosen = np.flatnonzero(store.bucket == store.bucket[0])[:4]
    plain = store.read(chosen).mean.float()
    mirrored = store.read(chosen, views=np.ones(len(chosen), dtype=int)).mean.float()
    assert (plain - mirrored).abs().mean() > 0.01
    nearer = []
    for step in range(100):
        latent = rows_of(features).read(store, chosen, RowStreams(1, step, range(len(chosen))))["latent"]
        gap = [(latent - each).square().mean((1, 2, 3)) for each in (plain, mirrored)]
        nearer += (gap[0] < gap[1]).tolist()
    assert np.mean(nearer) == pytest.approx(0.5, abs=0.15)


def test_latents_are_scaled_as_the_autoencoder_says(features, monkeypatch):
    store = open_features(features)
    chosen = np.flatnonzero(store.bucket == store.bucket[0])[:4]
    plain = rows_of(features).read(store, chosen, RowStreams(0, 0, range(len(chosen))))["latent"]
    store.manifest = replace(store.manifest, scaling_factor=0.18215)
    scaled = rows_of(features).read(store, chosen, RowStreams(0, 0, range(len(chosen))))["latent"]
    assert torch.allclose(scaled, plain * 0.18215, rtol=1e-5)


def counting(weights: np.ndarray, phases: list[Phase], seed: int = 0) -> Batches:
    rows = np.arange(len(weights))
    sources = [
        Source(rows + 100 * n, rows * 0, weights, lambda chosen, rng: {"rows": chosen}, "") for n in range(len(phases))
    ]
    return Batches(phases, sources, seed)


def test_weights_decide_how_often_a_row_is_drawn_and_each_epoch_has_another_order():
    batches = counting(np.array([1.0] * 8 + [5.0] * 8), [Phase(500, 4)])
    drawn = np.bincount(np.concatenate([batches(step)["rows"] for step in range(500)]), minlength=16)
    assert drawn[8:].sum() / drawn[:8].sum() == pytest.approx(5, rel=0.15)
    even = counting(np.ones(8), [Phase(100, 4)])
    epochs = [np.concatenate([even(step)["rows"] for step in (2 * epoch, 2 * epoch + 1)]) for epoch in range(6)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({tuple(counting(np.ones(8), [Phase(1, 8)], seed)(0)["rows"]) for seed in range(5)}) > 1


def test_a_second_phase_starts_at_its_own_step_0():
    alone = counting(np.ones(12), [Phase(10, 4)])
    both = counting(np.ones(12), [Phase(7, 4), Phase(10, 4)])
    for step in range(10):
        assert np.array_equal(both(7 + step)["rows"], alone(step)["rows"] + 100)
    assert (both(6)["rows"] < 100).all()


# Loss and sampler are of one process.


class Oracle(torch.nn.Module):
    """Knows the image: the perfect prediction for any x_t at the timestep it is given."""

    def __init__(self, x_0: torch.Tensor, objective: str):
        super().__init__()
        self.x_0, self.objective = x_0, objective

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        timestep = torch.as_tensor(timestep)
        if self.objective == "flow":
            return (x_t - self.x_0) / (timestep.float() / 1000).view(-1, 1, 1, 1)
        abar = ddpm.process().abar[timestep.long()].float().view(-1, 1, 1, 1)
        return (x_t - abar.sqrt() * self.x_0) / (1 - abar).sqrt()


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_what_the_loss_calls_perfect_the_sampler_follows_to_the_image(name):
    from pixart.checkpoints.folder import DDPM_SCHEDULER, FLOW_SCHEDULER

    x_0 = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    objective, oracle = Objective(name), Oracle(x_0, name)
    noised = objective.add_noise(x_0, np.random.default_rng(0))
    prediction = oracle(noised.x_t, noised.timestep)
    assert objective.losses(prediction, noised).max() < 1e-6
    assert torch.allclose(prediction, noised.target, atol=1e-2)
    schedule = make_schedule(FLOW_SCHEDULER if name == "flow" else DDPM_SCHEDULER, 10)
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for first_order in (True, False):
        *_, last = trajectory(
            lambda x_t, t: oracle(x_t, torch.tensor([t] * 4)), noise, schedule, first_order=first_order
        )
        assert torch.allclose(last, x_0, atol=0.06)


def test_the_shift_of_noise_levels_follows_the_size_of_the_image_in_pixels():
    from pixart.diffusion.objective import Timesteps

    settings = {"sampler": "uniform"}
    for side in (2, 4):
        cells, levels = torch.zeros(4000, 1, side, side), []
        for timesteps in (Timesteps(**settings), Timesteps(**settings, shift_base=256)):
            levels.append(Objective("flow", timesteps=timesteps).add_noise(cells, np.random.default_rng(0)).levels)
        shift = 8 * side / 256  # a cell is 8 pixels wide
        assert torch.allclose(levels[1], shift * levels[0] / (1 + (shift - 1) * levels[0]), atol=1e-5)


# What cannot be trained.


def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(photos, features, tiny_model, tmp_path):
    labels = tmp_path / "labels"
    words = ["data", "extract", str(photos), str(labels), "--model", str(tiny_model), "--base-size", "64"]
    assert main([*words, "--labels-only"]) == 0
    other = tmp_path / "other"
    write_tiny_model(other)
    run, latent, pixels = tmp_path / "run", Phase(1, 4, features=features), Phase(1, 4, size=64)
    for error, task, phase in (
        (UsageError, TextToImage(network=SMALL), Phase(1, 4, features=labels)),
        (UsageError, TextToImage(network=SMALL), pixels),
        (UsageError, Autoencoder(data=photos), latent),
        (UsageError, Autoencoder(), pixels),
        (UsageError, DecoderTuning(data=photos), pixels),
        (PixArtError, TextToImage(network=SMALL), Phase(1, 4, features=tmp_path / "missing")),
        (PixArtError, TextToImage(init=str(tmp_path / "missing")), latent),
        (PixArtError, TextToImage(network=SMALL, autoencoder=photos), latent),
        (PixArtError, Distillation(teacher=str(photos)), latent),
        (UsageError, Distillation(teacher=str(published(tmp_path))), latent),
        (PixArtError, Autoencoder(data=photos, init=photos), pixels),
    ):
        with pytest.raises(error):
            train(task, recipe(run, phase))
        assert not run.exists(), (task, list(run.iterdir()))
    for wrong in (
        lambda: TextToImage(caption_dropout=1.5),
        lambda: TextToImage(flow_shift=0.0),
        lambda: ClassDiT(network=Network(micro_conditions=True)),
        lambda: Autoencoder(anchor=1.0),
        lambda: Distillation(steps=3, teacher_steps=4),
        lambda: DecoderTuning(steps=0),
        lambda: Phase(0, 4),
        lambda: Phase(1, 4, size=60),
        lambda: AutoencoderSizes(norm_num_groups=3),
        lambda: EmaConfig((1.0,)),
        lambda: OptimizerConfig(learning_rate=float("nan")),
    ):
        with pytest.raises(UsageError):
            wrong()


def published(tmp_path: Path) -> Path:
    if not (tmp_path / "eps").exists():
        write_tiny_model(tmp_path / "eps", eps=True)
    return tmp_path / "eps"


def test_a_start_knows_its_sizes_and_objective(tiny_model, tmp_path):
    start = read_start(str(tiny_model))
    assert (start.objective, start.config.width, start.config.depth) == ("flow", 32, 2)
    assert read_start(str(published(tmp_path))).objective == "ddpm"
    file = tmp_path / "official.pth"
    assert main(["convert", str(published(tmp_path)), str(file), "--to", "official"]) == 0


def test_the_example_trains_with_a_loss_of_its_own(features, tiny_model, tmp_path, monkeypatch):
    import runpy

    file = Path(__file__).parent.parent / "examples" / "custom_loss.py"
    assert len(file.read_text().splitlines()) <= 60
    words = [features, tmp_path / "run", "--init", tiny_model, "--steps", "2", "--batch-size", "4"]
    monkeypatch.setattr("sys.argv", [str(file), *map(str, words)])
    runpy.run_path(str(file), run_name="__main__")
    assert generated(tmp_path / "run" / "model").shape == (64, 64, 3)
    with pytest.raises(UsageError):  # the same folder is another training with other settings
        train(
            TextToImage(init=str(tiny_model), caption_dropout=0.5),
            recipe(tmp_path / "run", Phase(2, 4, features=features)),
        )
