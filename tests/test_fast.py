"""A fast denoiser: trained from its teacher's drawings, put into its model folder, drawn here and by Diffusers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pixart.pipeline.restore import fit_to_model, restore_settings
from tiny_fast import recipe, train_fast, write_teacher

import pixart
from pixart.checkpoints.diffusers import load_transformer
from pixart.checkpoints.fast import weights_hash
from pixart.checkpoints.model_folder import DEFAULT_MODEL, load_denoiser, open_model_folder
from pixart.cli import main
from pixart.diffusion.noise import initial_noise
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.request import make_request
from pixart.training import recipe as recipes
from pixart.training.checkpoint_model import find_checkpoint
from pixart.training.command import run as train
from pixart.training.command import train_recipe
from pixart.training.distillation import Distillation, Teacher, distillation_loss, draw_fast
from pixart.training.fast_stage import fast_stage
from pixart.training.planning.plan import works


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """With a teacher, its data, and the finished run of its fast denoiser. Do not change it; copy it."""
    home = tmp_path_factory.mktemp("fast")
    write_teacher(home)
    train_fast(home)
    return home


@pytest.fixture(scope="module")
def model(home, tmp_path_factory) -> Path:
    """The teacher's folder with graphs and its fast denoiser, put there by the command. Do not change it; copy it."""
    folder = shutil.copytree(home / "teacher", tmp_path_factory.mktemp("model") / "tiny")
    assert main(["convert", str(home / "fast-run"), str(folder), "--to", "fast"]) == 0
    assert main(["convert", str(folder), "--to", "onnx"]) == 0
    return folder


def test_the_student_is_nearer_to_the_teacher_than_the_teacher_in_as_few_steps(home):
    stage = fast_stage(recipe(home), lambda line: None)
    teacher, batch = stage.loss.keywords["teacher"], stage.batches(10_000)  # noise that training never saw
    asked = {name: batch[name] for name in ("noise", "text", "text_mask")}
    student = load_transformer(home / "fast-run" / "fast" / "transformer")
    wanted = teacher.path(**asked)[-1]
    drawn = draw_fast(student, teacher.students, **asked)
    in_few_steps = teacher.in_few_steps(**asked)
    assert (drawn - wanted).square().mean() < 0.4 * (in_few_steps - wanted).square().mean()
    settings = json.loads((home / "fast-run" / "fast" / "pixart.json").read_text())
    assert (settings["steps"], settings["guidance_scale"], settings["distilled_guidance_scale"]) == (2, 1.0, 2.0)


def test_the_teacher_draws_what_the_pipeline_draws_and_passes_the_students_noise_levels(home):
    """Its path is that of `pixart generate` with as many steps, and its levels are those of so few."""
    folder = open_model_folder(home / "teacher")
    pipeline = pixart.Pipeline.from_pretrained(home / "teacher", engine="torch", dtype="float32")
    read = [pipeline.networks.encode(text)[0] for text in ("red circle, flat", "")]
    null = read[1].states[read[1].mask]  # without its padding
    teacher = Teacher(load_denoiser(folder), null, folder.scheduler, Distillation(2, 8, 2.0))
    assert teacher.schedule.sigmas[::4] == pytest.approx(teacher.students.sigmas)
    seen = []
    pipeline(
        "red circle, flat", seed=3, steps=8, guidance_scale=2.0, width=64, height=64,
        on_step=lambda index, step: seen.append(step.x_t),
    )  # fmt: skip
    noise = torch.from_numpy(initial_noise(3, (8, 8, 8)))[None]
    path = teacher.path(noise, read[0].states, read[0].mask)
    assert len(path) == 3 and path[0] is noise
    for ours, theirs in zip(path[1:], (seen[3], seen[7]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_loss_is_zero_for_a_student_that_goes_straight_where_the_teacher_goes(home):
    """With as many steps as the teacher's, and no guidance, a teacher of order one is its own student."""
    folder = open_model_folder(home / "teacher")
    network = load_denoiser(folder)
    batch = {
        "noise": torch.randn(3, 8, 8, 8),
        "text": torch.randn(3, 5, 32),
        "text_mask": torch.arange(5) < torch.tensor([[5], [3], [1]]),
    }
    teacher = Teacher(network, torch.randn(2, 32), folder.scheduler, Distillation(1, 1, 1.0))
    assert distillation_loss(network, batch, teacher=teacher).item() < 1e-8
    assert batch["losses"].shape == (3,)
    teacher = Teacher(network, torch.randn(2, 32), folder.scheduler, Distillation(1, 1, 3.0))
    assert distillation_loss(network, batch, teacher=teacher).item() > 1e-3


def test_the_bill_counts_the_teacher(home):
    asked = recipe(home)
    (work,) = works(asked)
    config = load_transformer(home / "teacher" / "transformer").config
    tokens = recipes.Expected.text_tokens
    from pixart.training.planning.flops import forward_flops

    forward = forward_flops(config, 8, tokens)
    assert work.flops_per_image == 2 * 8 * forward + 2 * 3 * forward
    receipt = json.loads((home / "fast-run" / "receipt.json").read_text())
    assert receipt["flops"] == 70 * 16 * work.flops_per_image


def test_what_cannot_teach_is_refused(home, tmp_path):
    from conftest import write_tiny_model

    asked = recipe(home)
    for teacher, said in ((tmp_path / "none", "not there"), (home / "data", "neither a model folder nor a run")):
        with pytest.raises(PixArtError, match=said):
            fast_stage(dataclasses.replace(asked, teacher=teacher), print)
    write_tiny_model(tmp_path / "eps", eps=True)
    with pytest.raises(UsageError, match="predicts eps"):
        fast_stage(dataclasses.replace(asked, teacher=tmp_path / "eps"), print)
    with pytest.raises(UsageError, match="teacher_steps 7 a multiple"):
        Distillation(4, 7)


def test_the_shipped_model_was_its_fast_denoisers_teacher():
    """Whoever ships another transformer must distil it again."""
    settings = open_model_folder().fast_settings
    assert settings is None or settings["teacher"] == weights_hash(DEFAULT_MODEL / "transformer")


def test_a_run_does_not_go_on_under_another_teacher(home, tiny_model, tmp_path):
    run = shutil.copytree(home / "fast-run", tmp_path / "run", ignore=shutil.ignore_patterns("finished.json"))
    teacher = shutil.copytree(home / "teacher", tmp_path / "teacher")
    asked = dataclasses.replace(recipe(home), run=run, teacher=teacher)
    (run / "config.json").write_text(json.dumps(recipes.to_json(asked)))
    assert train_recipe(asked, lambda line: None) == 0  # a copy of the teacher is the teacher
    (run / "finished.json").unlink()
    shutil.copytree(tiny_model / "transformer", teacher / "transformer", dirs_exist_ok=True)
    with pytest.raises(PixArtError, match="data of this run has changed"):
        train_recipe(asked, lambda line: None)


def test_a_run_says_where_it_can_be_drawn_from(home):
    with pytest.raises(UsageError, match="run of a fast denoiser, which is drawn from the model that taught it"):
        find_checkpoint(home / "fast-run")


def test_the_shipped_recipe(capsys):
    shipped = recipes.load("emoji/fast")
    assert shipped.teacher is None and shipped.distillation.steps == 4
    assert train(["emoji/fast", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["kind"] == "fast" and "4 steps for 12 with guidance 2.5" in said.err
    assert train(["emoji/fast", "--teacher", "runs/of-tomorrow", "--dry-run"]) == 0
    assert "runs/of-tomorrow (not there yet)" in capsys.readouterr().err


SIZE = ["--width", "64", "--height", "80", "--seed", "5"]


def test_both_engines_and_diffusers_draw_it_and_the_picture_is_verified(model, tmp_path, capsys):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    drawn = []
    for engine in ("onnx", "torch"):
        path = tmp_path / f"{engine}.png"
        asked = ["--model", str(model), "--fast", "--engine", engine, "--dtype", "float32", *SIZE]
        asked += ["--output", str(path)]
        assert main(["generate", "red circle, flat", *asked]) == 0
        drawn.append(np.asarray(Image.open(path)).astype(int))
        assert main(["verify", str(path), "--model", str(model)]) == 0
    own = {"subfolder": "fast/transformer", "low_cpu_mem_usage": False}
    stock = PixArtAlphaPipeline.from_pretrained(
        model,
        transformer=PixArtTransformer2DModel.from_pretrained(model, **own),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(model, subfolder="fast/scheduler"),
    )
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "red circle, flat",
        num_inference_steps=2,
        guidance_scale=1.0,
        width=64,
        height=80,
        latents=torch.from_numpy(initial_noise(5, (8, 10, 8)))[None],
        clean_caption=False,
        use_resolution_binning=False,
    )
    drawn.append(np.asarray(theirs.images[0]).astype(int))
    assert drawn[0].std() > 1
    assert max(np.abs(drawn[0] - other).max() for other in drawn[1:]) <= 2
    plain = pixart.Pipeline.from_pretrained(model)("red circle, flat", seed=5, width=64, height=80, steps=2)
    assert np.abs(np.asarray(plain.images[0]).astype(int) - drawn[0]).max() > 2
    assert capsys.readouterr().out.count("identical") == 2


def test_its_int8_graph_draws_nearly_the_same(model):
    drawn = [
        pixart.Pipeline.from_pretrained(model, fast=True, dtype=dtype)("red circle", seed=1, width=64, height=64)
        for dtype in ("float32", "int8")
    ]
    assert drawn[0].settings[0]["fast"] and drawn[0].settings[0]["steps"] == 2
    assert next(iter(drawn[0].settings[0]["weights"])).startswith("fast/transformer/")
    exact, whole = (np.asarray(result.images[0]).astype(int) for result in drawn)
    assert 0 < np.abs(exact - whole).mean() < 8


@pytest.mark.parametrize(
    "asked",
    [
        {"steps": 20},
        {"guidance_scale": 4.5},
        {"sampler": "dpm-solver"},
        {"negative_prompt": "a house"},
        {"style": "Flat"},  # brings a negative prompt
        {"guidance_interval": (0, 500)},
        {"guidance_rescale": 0.5},
        {"guidance_channels": 3},
    ],
)
def test_what_is_in_its_weights_cannot_be_changed(model, asked):
    folder = open_model_folder(model, fast=True)
    with pytest.raises(UsageError):
        make_request(folder, "a fox", **asked)
    request = make_request(folder, "a fox", steps=2, guidance_scale=1, sampler="euler", style="3D")
    assert (request.steps, request.guidance_scale, request.sampler) == (2, 1.0, "euler")


def test_a_model_without_one_says_how_to_train_one(tiny_model, model, home, tmp_path, capsys):
    assert main(["generate", "a fox", "--model", str(tiny_model), "--fast"]) == 2
    assert "no few-step" in capsys.readouterr().err
    other = shutil.copytree(tiny_model, tmp_path / "other")
    for source, dest, said in (
        (home / "fast-run", model, "exists already"),
        (home / "fast-run", other, "was taught by another model"),
        (home / "data", other, "holds no fast denoiser"),
    ):
        assert main(["convert", str(source), str(dest), "--to", "fast"]) != 0
        assert said in capsys.readouterr().err
    assert not (other / "fast").exists() and not list(other.glob(".*"))


def test_a_model_with_one_says_so_and_damage_is_named(model, tmp_path, capsys):
    assert main(["info", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fast"]["steps"] == 2 and facts["fast"]["distilled_guidance_scale"] == 2.0
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "fast" / "pixart.json").write_text('{"steps": 0}')
    with pytest.raises(PixArtError, match=r"fast/pixart.json says sampler is None"):
        open_model_folder(damaged)
    shutil.copy(model / "fast" / "pixart.json", damaged / "fast")
    (damaged / "fast" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PixArtError, match=r"fast/transformer/diffusion_pytorch_model.safetensors"):
        open_model_folder(damaged, fast=True)
    assert open_model_folder(damaged).name == "damaged"


def test_restored_settings_keep_to_the_denoiser_that_they_are_for(model, tmp_path, capsys):
    asked = ["--model", str(model), "--fast", "--output", str(tmp_path / "fast.png"), *SIZE]
    assert main(["generate", "red circle", *asked]) == 0
    found = restore_settings(tmp_path / "fast.png")
    assert found.fast and found.request["steps"] == 2
    again = fit_to_model(found, open_model_folder(model, fast=True))
    assert again.request["steps"] == 2 and not any("fast denoiser" in notice for notice in again.notices)
    plain = fit_to_model(found, open_model_folder(model))
    assert "steps" not in plain.request and plain.request["height"] == 80
    assert any("drawn with a fast denoiser" in notice for notice in plain.notices)
