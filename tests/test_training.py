"""The one loop, from autoencoder and three stages to a picture; a stopped run goes on as if nothing had been."""

import dataclasses
import json
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny_data

import pixart
from pixart.data import features
from pixart.data.encode import load_vae
from pixart.diffusion.noise import initial_noise
from pixart.encoders.autoencoder import moments
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training import checkpoint
from pixart.training.command import train_recipe
from pixart.training.ema import Ema
from pixart.training.loop import LoopConfig, Preempted, train
from pixart.training.objective import denoising_loss
from pixart.training.optimizers.optimizer import Optimizer, OptimizerConfig, learning_rate
from pixart.training.recipe import (
    AutoencoderConfig,
    AutoencoderRecipe,
    ClassRecipe,
    Denoiser,
    Phase,
    Sampling,
    TextRecipe,
    Timesteps,
)
from pixart.training.rows import Share
from pixart.training.stages import build

SIZE = Denoiser(width=32, depth=2, num_heads=2)
FAST = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
CALM = LoopConfig(save_every=3, evaluate_every=4, log_every=2)


def quiet(line: str) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Chain:
    """The recipes of a whole training, done, on a tiny data set."""

    autoencoder: AutoencoderRecipe
    stage1: ClassRecipe
    stage2: TextRecipe
    stage3: TextRecipe


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny_model) -> Chain:
    """Four runs of a few steps each, every one through `pixart train`'s own function. Do not change them; copy them."""
    home = tmp_path_factory.mktemp("chain")
    where = {"data": write_tiny_data(home / "data"), "cache": home / "cache", "loop": CALM}
    autoencoder = AutoencoderRecipe(
        run=home / "autoencoder",
        phases=(Phase(steps=8, size=64, crop=32, batch_size=4), Phase(steps=2, size=64, batch_size=2)),
        autoencoder=AutoencoderConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4),
        optimizer=FAST,
        **where,
    )
    where |= {"autoencoder": autoencoder.run / "vae", "model": SIZE, "optimizer": FAST}
    low, high = Phase(steps=8, size=64, batch_size=8), Phase(steps=4, size=128, batch_size=4)
    stage1 = ClassRecipe(run=home / "stage1", phases=(low,), **where)
    where |= {"text_encoder": tiny_model / "text_encoder"}
    shutil.copytree(home / "data" / "test_cells", home / "data" / "more")
    more = Sampling(extra_splits={"more": 0.3})
    stage2 = TextRecipe(run=home / "stage2", init=stage1.run, phases=(low,), sampling=more, **where)
    sampling = Sampling(style_weights={"Noto": 3.0}, skin_tone_weight=0.5, short_caption_share=0.5)
    where |= {"sampling": sampling, "guidance_scale": 2.5}
    stage3 = TextRecipe(run=home / "stage3", init=stage2.run, phases=(low, high), **where)
    for recipe in (autoencoder, stage1, stage2, stage3):
        assert train_recipe(recipe, quiet) == 0
    return Chain(autoencoder, stage1, stage2, stage3)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_last_folder_of_the_chain_draws_here_and_in_stock_diffusers(chain):
    from diffusers import PixArtAlphaPipeline

    folder = chain.stage3.run / "model"
    ours = pixart.Pipeline.from_pretrained(folder)("red circle", style="Noto", seed=7, width=64, height=64, steps=4)
    assert ours.settings[0]["resolved_prompt"] == "red circle, Noto"
    assert ours.settings[0]["guidance_scale"] == 2.5  # the recipe's, without a word
    assert not (chain.stage2.run / "model" / "pixart.json").exists()
    stock = PixArtAlphaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "red circle, Noto",
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=2.5,
        latents=torch.from_numpy(initial_noise(7, (8, 8, 8)))[None],
        clean_caption=False,
        use_resolution_binning=False,
    )
    first, second = (np.asarray(result.images[0]).astype(int) for result in (ours, theirs))
    assert first.std() > 1 and np.abs(first - second).max() <= 2


def test_the_model_holds_the_ema_weights_and_its_styles(chain):
    from pixart.checkpoints.diffusers import load_transformer

    folder = chain.stage3.run / "model"
    assert sorted(json.loads((folder / "styles.json").read_text())) == ["Noto", "flat"]
    stored = load_transformer(folder / "transformer").state_dict()
    for name, tensor in checkpoint.ema_state(chain.stage3.run).items():
        if name in stored:
            assert torch.allclose(stored[name].float(), tensor, rtol=1e-3, atol=1e-6), name


def test_latents_of_the_trained_autoencoder_have_unit_scale(chain):
    from pixart.data import features

    folder = chain.autoencoder.run / "vae"
    mean, _ = features.latents(chain.stage1.data, "train", 64, folder, chain.stage1.cache, quiet)
    assert mean.float().mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (mean.float().std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


def test_every_run_leaves_its_recipe_figures_and_two_checkpoints(chain):
    for recipe, figure in (
        (chain.autoencoder, "held_out_psnr_128"),
        (chain.stage1, "held_out_loss"),
        (chain.stage3, "held_out_loss"),
    ):
        steps = sum(phase.steps for phase in recipe.phases)
        assert json.loads((recipe.run / "finished.json").read_text())["steps"] == steps
        assert [path.name for path in checkpoint.found(recipe.run)][-1] == f"checkpoint-{steps}"
        assert len(checkpoint.found(recipe.run)) == checkpoint.KEEP
        lines = metrics(recipe.run)
        assert [line["step"] for line in lines if figure in line][-1] == steps
        assert {"step", "loss", "lr", "grad_norm", "images_per_second"} <= set(lines[0])
    classes = json.loads((chain.stage1.run / "classes.json").read_text())
    assert classes == {"subgroup": ["circle", "square", "triangle"], "style": ["Noto", "flat"]}


def test_stage_2_starts_as_the_class_free_dit_of_stage_1(chain):
    state = checkpoint.ema_state(chain.stage1.run)
    sizes = {"width": 32, "depth": 2, "num_heads": 2}
    dit = DiT(DiTConfig(class_counts=(3, 2), **sizes))
    dit.load_state_dict(state)
    first = build(dataclasses.replace(chain.stage2, run=Path("unused")), quiet).model
    generator = torch.Generator().manual_seed(0)
    x_t, text = torch.randn(2, 8, 8, 8, generator=generator), torch.randn(2, 16, 32, generator=generator)
    mask, null = torch.ones(2, 16, dtype=torch.bool), torch.tensor([[3, 2], [3, 2]])

    @torch.no_grad()
    def gap(timestep: float, classes: torch.Tensor) -> float:
        when = torch.full((2,), timestep)
        theirs = dit(x_t, when, classes)
        return ((first(x_t, when, text, mask) - theirs).norm() / theirs.norm()).item()

    assert gap(775.0, null) < 1e-5
    assert gap(775.0, torch.tensor([[0, 0], [1, 1]])) > 1e-4  # stage 1 has learnt to heed its classes


def test_stage_3_starts_from_the_weights_of_stage_2(chain):
    first = build(dataclasses.replace(chain.stage3, run=Path("unused")), quiet).model.state_dict()
    for name, tensor in checkpoint.ema_state(chain.stage2.run).items():
        assert torch.equal(first[name], tensor)


def test_a_start_from_another_network_is_refused(chain, tmp_path):
    wider = dataclasses.replace(chain.stage3, run=tmp_path / "wider", model=Denoiser(48, 2, 2))
    with pytest.raises(
        PixArtError, match=r"stage2 holds another network than this recipe: its model.width is 32, not 48"
    ):
        train_recipe(wider, quiet)
    nowhere = dataclasses.replace(chain.stage3, run=tmp_path / "new", init=tmp_path)
    with pytest.raises(PixArtError, match="is no run and no model folder"):
        train_recipe(nowhere, quiet)


def test_a_finished_run_is_reported_and_not_trained_again(chain, capsys):
    before = (chain.stage1.run / "metrics.jsonl").read_bytes()
    said: list[str] = []
    assert train_recipe(chain.stage1, said.append) == 0
    assert "stage1 is finished" in said[0]
    assert capsys.readouterr().out.strip() == str(chain.stage1.run / "checkpoint-8")
    assert (chain.stage1.run / "metrics.jsonl").read_bytes() == before


def test_another_recipe_in_the_same_run_folder_is_refused(chain):
    other = dataclasses.replace(chain.stage1, class_dropout=0.2, optimizer=OptimizerConfig())
    with pytest.raises(UsageError, match=r"different: class_dropout, optimizer\).*another --run"):
        train_recipe(other, quiet)


def test_a_run_killed_while_it_wrote_its_model_can_be_finished(chain, tmp_path):
    recipe = dataclasses.replace(chain.stage3, run=tmp_path / "run")
    shutil.copytree(chain.stage3.run, recipe.run)
    (recipe.run / "finished.json").unlink()
    config = json.loads((recipe.run / "config.json").read_text())
    (recipe.run / "config.json").write_text(json.dumps(config | {"run": str(recipe.run)}))
    assert train_recipe(recipe, quiet) == 0
    first, second = (r.run / "model" / "transformer" / "config.json" for r in (chain.stage3, recipe))
    assert first.read_bytes() == second.read_bytes()


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def kill_at(step: int, batches):
    def batch(k: int, share: Share) -> dict:
        if k == step:
            raise Killed
        return batches(k, share)

    return batch


def run_of(recipe, run: Path, batches=None) -> Path:
    """Train the model of `recipe` in `run`, with its batches or others, and give the folder of the last checkpoint."""
    stage = build(recipe, quiet)
    train(
        stage.model, stage.loss, batches(stage.batches) if batches else stage.batches, 8, run,
        loop=recipe.loop, optimizer=recipe.optimizer, evaluate=stage.evaluate, report=quiet,
    )  # fmt: skip
    return checkpoint.found(run)[-1]


@pytest.mark.parametrize("stage", ["autoencoder", "stage1", "stage2"])
def test_a_killed_and_continued_run_ends_with_the_same_bytes(chain, tmp_path, stage):
    recipe = getattr(chain, stage)
    if stage == "stage2":
        muon = OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=2)
        recipe = dataclasses.replace(recipe, optimizer=muon)
    unbroken = run_of(recipe, tmp_path / "unbroken")
    with pytest.raises(Killed):
        run_of(recipe, tmp_path / "killed", lambda batches: kill_at(5, batches))
    assert [path.name for path in checkpoint.found(tmp_path / "killed")] == ["checkpoint-3"]
    asked = []
    continued = run_of(
        recipe, tmp_path / "killed", lambda batches: lambda k, share: asked.append(k) or batches(k, share)
    )
    assert asked == [3, 4, 5, 6, 7]
    assert unbroken.name == continued.name == "checkpoint-8"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
        assert (unbroken / name).read_bytes() == (continued / name).read_bytes(), name
    figures = [(line["step"], line.get("loss")) for line in metrics(tmp_path / "killed")]
    assert figures == [(line["step"], line.get("loss")) for line in metrics(tmp_path / "unbroken")]


class Toy(torch.nn.Module):
    """A line to be fitted: y = w x."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))


def toy_run(run: Path, steps: int = 8, batches=None, every: int = 2, model: Toy | None = None, evaluate=None) -> Toy:
    model = model or Toy()
    train(
        model,
        lambda model, batch: ((model.w * batch["x"] - 3 * batch["x"]) ** 2).mean(),
        batches or toy_batch,
        steps,
        run,
        loop=LoopConfig(save_every=every, log_every=1, evaluate_every=100, precision="fp32"),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=1),
        evaluate=evaluate or (lambda ema, step: {"w": ema.w.item()}),
        report=quiet,
    )
    return model


def toy_batch(step: int, share: Share) -> dict:
    return {"x": torch.full((4,), 1.0 + step % 3), "count": 4}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path, number):
    def batch(step: int, share: Share) -> dict:
        if step == 4:
            signal.raise_signal(number)
        return toy_batch(step, share)

    before = signal.getsignal(number)
    with pytest.raises(Preempted, match="Stopped by a signal at step 5") as caught:
        toy_run(tmp_path / "stopped", batches=batch)
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) == before
    assert checkpoint.found(tmp_path / "stopped")[-1].name == "checkpoint-5"
    assert torch.equal(toy_run(tmp_path / "stopped").w, toy_run(tmp_path / "unbroken").w)


@pytest.mark.parametrize("when", ["step", "evaluation"])
def test_a_signal_in_the_last_step_is_not_lost(tmp_path, when):
    def batch(step: int, share: Share) -> dict:
        if when == "step" and step == 7:
            signal.raise_signal(signal.SIGINT)
        return toy_batch(step, share)

    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        if when == "evaluation" and step == 8:
            signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(Preempted, match="Stopped by a signal with all 8 steps done"):
        toy_run(tmp_path / "stopped", batches=batch, evaluate=evaluate)
    assert checkpoint.found(tmp_path / "stopped")[-1].name == "checkpoint-8"
    assert torch.equal(toy_run(tmp_path / "stopped").w, toy_run(tmp_path / "unbroken").w)


def test_a_second_interrupt_acts_at_once(tmp_path):
    def batch(step: int, share: Share) -> dict:
        signal.raise_signal(signal.SIGINT)  # os.kill may be delivered late, and two become one
        signal.raise_signal(signal.SIGINT)
        return toy_batch(step, share)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, batches=batch)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, bad):
    def batch(step: int, share: Share) -> dict:
        return toy_batch(step, share) if step < 5 else {"x": torch.tensor([bad]), "count": 1}

    model, before = Toy(), signal.getsignal(signal.SIGINT)
    with pytest.raises(PixArtError, match=r"Step 5: loss nan|Step 5: loss inf") as caught:
        toy_run(tmp_path, batches=batch, every=5, model=model)
    assert "checkpoint" in str(caught.value) and "learning-rate" in str(caught.value)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-5"]
    assert torch.equal(load_file(tmp_path / "checkpoint-5" / "model.safetensors")["w"], model.w)
    assert torch.isfinite(model.w) and model.w > 0
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_names_the_file_and_the_way_out(tmp_path, name):
    toy_run(tmp_path, steps=4)
    file = tmp_path / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(PixArtError) as caught:
        toy_run(tmp_path)
    assert str(file) in str(caught.value)
    assert "Remove checkpoint-4 to continue from checkpoint-2, which is whole." in str(caught.value)
    shutil.rmtree(tmp_path / "checkpoint-4")
    toy_run(tmp_path)
    assert checkpoint.found(tmp_path)[-1].name == "checkpoint-8"
    if name == "ema.safetensors":
        (tmp_path / "checkpoint-8" / name).write_bytes(b"")
        with pytest.raises(PixArtError, match=r"checkpoint-8.ema\.safetensors cannot be loaded: it has 0 bytes"):
            checkpoint.ema_state(tmp_path)


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    toy_run(tmp_path, steps=2)
    big = torch.nn.Linear(100, 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file may grow past 10 kB
    try:
        with pytest.raises(PixArtError, match=r"Could not write .*checkpoint-3.*Older checkpoints are kept"):
            checkpoint.save(tmp_path, 3, big, Ema(big, decay=0.9), Optimizer(big, OptimizerConfig()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "metrics.jsonl"]


def test_figures_of_steps_taken_again_are_not_kept_twice(tmp_path):
    with pytest.raises(Killed):
        toy_run(tmp_path, batches=kill_at(5, toy_batch))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    toy_run(tmp_path)
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == list(range(1, 9))


def test_the_ema_follows_the_weights(tmp_path):
    model, weights = Toy(), []
    toy_run(tmp_path, batches=lambda step, share: weights.append(model.w.item()) or toy_batch(step, share), model=model)
    weights.append(model.w.item())
    expected = weights[0]
    for step, weight in enumerate(weights[1:]):
        expected += (1 - (1 + step) / (10 + step)) * (weight - expected)
    assert checkpoint.ema_state(tmp_path)["w"].item() == pytest.approx(expected, rel=1e-5)
    assert metrics(tmp_path)[-1]["w"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - weights[-1]) > 0.01


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_denoiser_learns_what_its_classes_look_like(tmp_path, name):
    """Two classes, each with one latent: a network that heeds class and noise can get almost everything right."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(class_counts=(2,), in_channels=2, out_channels=2, width=32, depth=2, num_heads=2))
    pictures = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4)

    def batch(step: int, share: Share) -> dict:
        classes = torch.arange(32).view(32, 1) % 2
        return {"latent": pictures[classes[:, 0]], "classes": classes, "count": 32}

    train(
        model, partial(denoising_loss, condition=("classes",), timesteps=Timesteps()), batch, 120, tmp_path,
        loop=LoopConfig(log_every=1, ema_decay=0.9), optimizer=OptimizerConfig(name, 5e-3, warmup_steps=10),
        evaluate=lambda ema, step: {}, report=quiet,
    )  # fmt: skip
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert 1.5 < np.mean(losses[:3]) < 2.5  # it begins with zero velocity: the variance of noise and picture
    assert np.mean(losses[-10:]) < 0.3
    with torch.no_grad():
        x_t, when = torch.zeros(2, 2, 4, 4), torch.full((2,), 999.0)
        velocity = model(x_t, when, torch.tensor([[0], [1]])).mean(dim=(1, 2, 3))
    assert velocity[0] < -0.5 and velocity[1] > 0.5  # towards each class's own picture


def tiny_denoiser() -> PixArt:
    torch.manual_seed(0)
    return PixArt(PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16))


def some_gradients(model: torch.nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimiser_restored_from_its_state_takes_the_same_steps(name):
    config = OptimizerConfig(name=name)
    model = tiny_denoiser()
    optimizer = Optimizer(model, config)
    for step in range(3):
        some_gradients(model, step)
        optimizer.step(1e-2)
    twin = tiny_denoiser()
    twin.load_state_dict(model.state_dict())
    restored, forgetful = Optimizer(twin, config), tiny_denoiser()
    forgetful.load_state_dict(model.state_dict())
    restored.load_state(optimizer.state())
    for other, its_optimizer in ((model, optimizer), (twin, restored), (forgetful, Optimizer(forgetful, config))):
        some_gradients(other, 3)
        its_optimizer.step(1e-2)
    for (key, tensor), same, different in zip(
        model.named_parameters(), twin.parameters(), forgetful.parameters(), strict=True
    ):
        assert torch.equal(tensor, same), key
        assert not torch.equal(tensor, different), key
    with pytest.raises(KeyError):
        restored.load_state({"no.such.weight|exp_avg": torch.zeros(1)})


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else():
    model = tiny_denoiser()
    optimizer = Optimizer(model, OptimizerConfig(name="muon"))
    some_gradients(model, 0)
    optimizer.step(1e-3)
    with_momentum = {key.split("|")[0] for key in optimizer.state() if key.endswith("|momentum_buffer")}
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "blocks.0.cross_attn.proj.weight"} <= with_momentum
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in with_momentum)
    with_adam = {key.split("|")[0] for key in optimizer.state() if key.endswith("|exp_avg")}
    assert {"x_embedder.proj.weight", "blocks.0.scale_shift_table", "final_layer.linear.bias"} <= with_adam
    assert with_adam | with_momentum == {name for name, _ in model.named_parameters()}
    assert not with_adam & with_momentum


def test_vectors_are_not_decayed():
    model = tiny_denoiser()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    after = dict(model.named_parameters())
    assert torch.allclose(after["blocks.0.attn.qkv.weight"], 0.95 * before["blocks.0.attn.qkv.weight"])
    torch.nn.init.ones_(after["blocks.0.attn.qkv.bias"])
    optimizer.step(0.1)
    assert torch.equal(after["blocks.0.attn.qkv.bias"], torch.ones(96))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    config = OptimizerConfig(learning_rate=0.02, warmup_steps=10, decay_share=0.4)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.002, 0.004, 0.006])
    assert rates[9:61] == [0.02] * 52
    assert rates[80] == pytest.approx(0.01) and rates[99] == pytest.approx(0.02 / 40)
    assert learning_rate(0, 10, OptimizerConfig(learning_rate=0.1, warmup_steps=0, decay_share=0.0)) == 0.1
    short = [learning_rate(step, 4, config) for step in range(4)]  # shorter than its warm-up
    assert max(short) <= 0.008 and min(short) > 0


def test_only_weights_of_layers_decay():
    model = DiT(DiTConfig(width=32, depth=1, num_heads=2, class_counts=(3,)))
    optim = Optimizer(model, OptimizerConfig(weight_decay=0.1))
    decayed = {id(p) for group in optim.parts[0].param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "blocks.0.attn.qkv.weight" in names and "x_embedder.proj.weight" in names
    assert not any(name.endswith(("bias", "embedding_table.weight")) for name in names)


def test_only_numbered_folders_are_checkpoints(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_nothing_starts_from_an_autoencoder(chain, tmp_path):
    recipe = dataclasses.replace(chain.stage3, run=tmp_path / "run", init=chain.autoencoder.run)
    with pytest.raises(PixArtError, match="neither a run of stage 1 nor of a text stage"):
        build(recipe, quiet)


def test_an_autoencoder_goes_on_from_a_finished_one(chain, tmp_path):
    earlier = load_file(chain.autoencoder.run / "vae" / "diffusion_pytorch_model.safetensors")
    for init in (chain.autoencoder.run, chain.autoencoder.run / "vae"):
        recipe = dataclasses.replace(chain.autoencoder, run=tmp_path / "run", init=init)
        state = build(recipe, quiet).model.vae.state_dict()
        assert state.keys() == earlier.keys() and all(torch.equal(state[name], earlier[name]) for name in state)
    turned = dataclasses.replace(recipe.autoencoder, equivariance=0.5)
    recipe = dataclasses.replace(recipe, autoencoder=turned, phases=(Phase(steps=2, size=64, batch_size=4),))
    assert train_recipe(recipe, quiet) == 0 and (recipe.run / "vae" / "config.json").is_file()
    assert {"held_out_psnr_128", "held_out_turned_psnr_128"} < metrics(recipe.run)[-1].keys()

    def said(error: type[Exception], **changes) -> str:
        with pytest.raises(error) as caught:
            build(dataclasses.replace(recipe, run=tmp_path / "other", **changes), quiet)
        return str(caught.value)

    assert "is not there" in said(PixArtError, init=tmp_path / "none")
    assert "neither a finished run of an autoencoder" in said(PixArtError, init=chain.stage1.run)
    wider = dataclasses.replace(turned, block_out_channels=(16, 8, 8, 8))
    assert "has other sizes than this recipe" in said(UsageError, autoencoder=wider)


def test_an_anchor_keeps_the_latents_where_they_were(chain, tmp_path):
    def trained(weight: float) -> Path:
        recipe = dataclasses.replace(
            chain.autoencoder,
            run=tmp_path / f"anchored-{weight}",
            init=chain.autoencoder.run,
            autoencoder=dataclasses.replace(chain.autoencoder.autoencoder, anchor_weight=weight),
            phases=(Phase(steps=6, size=64, batch_size=4),),
        )
        assert train_recipe(recipe, quiet) == 0
        return recipe.run

    def latents(run: Path) -> torch.Tensor:
        return moments(load_vae(run / "vae"), pixels)[0]

    pixels = features.to_unit(features.pixels(chain.autoencoder.data, "train", 64, chain.autoencoder.cache, quiet)[:16])
    before = latents(chain.autoencoder.run)
    loose, held = ((latents(trained(weight)) - before).square().mean().item() for weight in (1e-9, 100.0))
    assert held < loose / 4  # and in place: nothing is folded, which would move them
    assert metrics(tmp_path / "anchored-100.0")[-1]["held_out_anchor_distance"] < 4 * held
    with pytest.raises(UsageError, match="give it with init"):
        dataclasses.replace(chain.autoencoder, autoencoder=AutoencoderConfig(anchor_weight=0.3))


def test_weights_of_the_autoencoder_that_cannot_be_are_refused():
    for wrong in ({"equivariance": 1.5}, {"kl_weight": -1.0}, {"anchor_weight": -1}, {"gradient_weight": float("nan")}):
        with pytest.raises(UsageError, match="must be 0 or more, and equivariance"):
            AutoencoderConfig(**wrong)
