"""Masked loss: masks of files and of alpha channels, in the feature store and in the loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixart.cli import main
from pixart.data.features import open_features
from pixart.diffusion.objective import Objective
from pixart.errors import UsageError
from pixart.training.batches import Phase
from pixart.training.loop import LoopConfig
from pixart.training.recipe import Recipe
from pixart.training.tasks.text_to_image import TextToImage

WORDS = ("--base-size", "64", "--square", "--masks", "--rows", "8")


@pytest.fixture
def images(tmp_path) -> Path:
    """`file`, 128 x 64, with a mask over its left half; `alpha`, with a transparent lower half; `plain`."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for name, size in (("file", (128, 64)), ("alpha", (64, 64)), ("plain", (64, 64))):
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        if name == "alpha":
            opacity = Image.new("L", size, 255)
            opacity.paste(0, (0, 32, 64, 64))
            image.putalpha(opacity)
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}")
    mask = Image.new("L", (64, 32), 255)  # half as large, of the same shape
    mask.paste(0, (0, 0, 32, 32))
    mask.save(folder / "file-masklabel.png")
    return folder


def extract(images: Path, dest: Path, model: Path, *words: str) -> int:
    return main(["data", "extract", str(images), str(dest), "--model", str(model), *words])


def test_masks_follow_the_crops_and_mirrors_of_their_images(images, tiny_model, tmp_path):
    assert extract(images, tmp_path / "f", tiny_model, *WORDS, "--flip") == 0
    store = open_features(tmp_path / "f")
    rows = np.arange(3)
    found = [store.read(rows, views=np.full(3, view)) for view in (0, 1)]
    first = dict(zip(found[0].keys, found[0].mask, strict=True))
    assert first["plain.png"].shape == (8, 8) and (first["plain.png"] == 255).all()
    assert (first["alpha.png"][:4] == 255).all() and (first["alpha.png"][4:] == 0).all()
    assert (first["file.png"][:, 4:] > 240).all() and (first["file.png"][:, :4] < 15).all()
    assert torch.equal(found[0].mask.flip(-1), found[1].mask)
    assert extract(images, tmp_path / "f", tiny_model, *WORDS, "--flip") == 0  # nothing has changed
    Image.new("L", (128, 64), 9).save(images / "file-masklabel.png")
    assert extract(images, tmp_path / "f", tiny_model, *WORDS, "--flip") == 1  # a mask has


def test_a_mask_of_another_shape_leaves_its_image_out(images, tiny_model, tmp_path):
    Image.new("L", (64, 64)).save(images / "file-masklabel.png")
    assert extract(images, tmp_path / "f", tiny_model, *WORDS) == 1
    assert extract(images, tmp_path / "f", tiny_model, *WORDS, "--allow-dropped", "0.5") == 0
    assert len(open_features(tmp_path / "f")) == 2


def test_what_is_masked_out_weighs_less_in_the_loss(images, tiny_model, tmp_path):
    for name, words in (("with", WORDS), ("without", (*WORDS[:3], *WORDS[4:]))):
        assert extract(images, tmp_path / name, tiny_model, *words) == 0

    def recipe(name: str) -> Recipe:
        phases = (Phase(1, 2, features=tmp_path / name),)
        return Recipe(output=tmp_path / "run", phases=phases, loop=LoopConfig(device="cpu", precision="float32"))

    def losses(unmasked_weight: float) -> torch.Tensor:
        task = TextToImage(init=str(tiny_model), validation=0, unmasked_weight=unmasked_weight)
        model = task.build(recipe("with"), torch.device("cpu"))
        batch = task.rows.read(task.rows.open(recipe("with").phases[0]), np.arange(3), np.random.default_rng(0))
        with torch.no_grad():
            return task.loss(model, batch | {"rng": np.random.default_rng(1)})

    everywhere, half, inside = losses(1.0), losses(0.5), losses(0.0)
    order = open_features(tmp_path / "with").read(np.arange(3)).keys
    full = order.index("plain.png")
    assert inside[full] == everywhere[full] and (inside < everywhere).sum() == 2
    assert torch.allclose(half, (everywhere + inside) / 2, rtol=1e-5)
    with pytest.raises(UsageError):
        TextToImage(init=str(tiny_model), unmasked_weight=0.1).build(recipe("without"), torch.device("cpu"))
    with pytest.raises(UsageError):
        TextToImage(unmasked_weight=-1.0)


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_the_loss_is_the_mean_of_weighted_errors(name):
    rng, objective = np.random.default_rng(0), Objective(name)
    noised = objective.add_noise(torch.from_numpy(rng.standard_normal((2, 4, 8, 8), np.float32)), rng)
    prediction = torch.from_numpy(rng.standard_normal((2, objective.out_channels(4), 8, 8), np.float32))
    left = torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1
    parts = objective.losses(prediction, noised, left) + objective.losses(prediction, noised, 1 - left)
    assert torch.allclose(parts, objective.losses(prediction, noised), rtol=1e-5)
    assert torch.equal(objective.losses(prediction, noised, torch.zeros(2, 1, 8, 8)), torch.zeros(2))
