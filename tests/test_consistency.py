"""LCM-LoRA: the steps of its teacher, training at tiny size, and what it ends as."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from photos import write_photos

import pixart
from pixart.checkpoints.adapters import read_adapter
from pixart.checkpoints.diffusers import read_config, save_transformer
from pixart.cli import main
from pixart.diffusion import ddpm
from pixart.errors import UsageError
from pixart.model.pixart import PixArt
from pixart.training import train
from pixart.training.batches import Phase
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe
from pixart.training.tasks.consistency import Consistency, image_of
from pixart.training.trainable import Trainable

LORA = Trainable(method="lora", rank=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tiny models that predict eps, the second with the norms and compressed keys of PixArt-Sigma; and features."""
    place = tmp_path_factory.mktemp("lcm")
    write_tiny_model(place / "alpha", eps=True)
    shutil.copytree(place / "alpha", place / "sigma")
    config = read_config(place / "alpha" / "transformer" / "config.json")
    config = replace(config, qk_norm=True, kv_compress=2, kv_compress_blocks=(1,))
    torch.manual_seed(0)
    save_transformer(PixArt(config).state_dict(), config, place / "sigma" / "transformer", None)
    photos = write_photos(place / "photos")
    words = [str(photos), str(place / "features"), "--model", str(place / "alpha"), "--base-size", "64"]
    assert main(["data", "extract", *words]) == 0
    return {name: place / name for name in ("alpha", "sigma", "features")}


def recipe(output: Path, models: dict[str, Path], steps: int = 2, trainable: Trainable = LORA) -> Recipe:
    return Recipe(
        output=output,
        phases=(Phase(steps, 8, features=models["features"]),),
        loop=LoopConfig(precision="float32", validate_every=steps, device="cpu"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        ema=EmaConfig((0.0,)),
        trainable=trainable,
    )


def test_the_teacher_takes_the_steps_of_ddim():
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    ddim.set_timesteps(50)
    rng = torch.Generator().manual_seed(0)
    for timestep in (19, 499, 999):
        assert timestep in ddim.timesteps
        x_t, eps = (torch.randn(1, 4, 8, 8, generator=rng) for _ in range(2))
        at, before = torch.tensor([timestep]), torch.tensor([max(timestep - 20, 0)])
        expected = ddim.step(eps, timestep, x_t).prev_sample
        assert torch.allclose(ddpm.add_noise(image_of(x_t, eps, at), eps, before), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_it_ends_as_an_adapter_that_generates_in_few_steps(name, models, tmp_path):
    made = train(Consistency(init=str(models[name]), validation=4), recipe(tmp_path / "run", models))
    assert read_adapter(made).kind == "lora"
    pipe = pixart.Pipeline.from_pretrained(models[name], engine="torch", loras=[made])
    result = pipe("a red fox", sampler="lcm", steps=2, guidance_scale=1.0, width=64, height=64, seed=1)
    assert result.images[0].size == (64, 64) and np.asarray(result.images[0]).std() > 0


def test_at_the_first_timestep_the_image_is_what_the_network_was_given(models, tmp_path):
    task = Consistency(init=str(models["alpha"]), validation=4)
    model = task.build(recipe(tmp_path / "run", models), torch.device("cpu"))
    batch = task.validated[0]
    with torch.no_grad():
        first = torch.zeros(len(batch["latent"]), dtype=torch.int64)
        image = task._image(model, batch["latent"], first, batch["text"], batch["text_mask"])
    assert torch.allclose(image, batch["latent"], atol=1e-5)


def test_what_cannot_be_distilled_is_refused(models, tiny_model, tmp_path):
    for task, trainable in (
        (Consistency(), LORA),
        (Consistency(init=str(tiny_model)), LORA),  # a flow
        (Consistency(init=str(models["alpha"])), Trainable()),
    ):
        with pytest.raises(UsageError):
            train(task, recipe(tmp_path / "run", models, trainable=trainable))
    with pytest.raises(UsageError):
        Consistency(steps=3)
    assert not (tmp_path / "run").exists()
