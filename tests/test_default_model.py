"""The shipped model: small, whole, read by stock Diffusers, and drawing the same picture there and here."""

import json
from pathlib import Path

import numpy as np
import pytest

import pixart
from pixart.checkpoints.model_folder import DEFAULT_MODEL, open_model_folder
from pixart.diffusion.noise import initial_noise

STYLES = {"3D", "glossy", "flat", "black and white", "Noto", "Twemoji", "FxEmoji"}


@pytest.fixture(scope="module")
def pipe():
    return pixart.Pipeline.from_pretrained()


def test_it_is_small_and_has_a_card():
    size = sum(path.stat().st_size for path in DEFAULT_MODEL.rglob("*") if path.is_file())
    assert size < 100_000_000
    card = (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    for word in ("licence", "FLOPs", "core-hours", "fail"):
        assert word in card


def test_it_asks_for_fp32_in_memory_and_knows_its_styles():
    assert json.loads((DEFAULT_MODEL / "text_encoder" / "config.json").read_text())["dtype"] == "float32"
    folder = open_model_folder()
    assert set(folder.styles) == STYLES
    assert folder.native_size == 256


@pytest.mark.parametrize("size", [128, 256])
def test_stock_diffusers_draws_our_picture(pipe, size):
    import torch
    from diffusers import PixArtAlphaPipeline

    stock = PixArtAlphaPipeline.from_pretrained(DEFAULT_MODEL, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(initial_noise(5, (8, size // 8, size // 8)))[None]
    theirs = stock(
        "red apple, 3D",
        num_inference_steps=4,
        guidance_scale=4.5,
        width=size,
        height=size,
        latents=noise,
        clean_caption=False,
        use_resolution_binning=False,
    ).images[0]
    ours = pipe("red apple, 3D", seed=5, steps=4, guidance_scale=4.5, width=size, height=size).images[0]
    assert np.abs(np.asarray(theirs, dtype=int) - np.asarray(ours, dtype=int)).max() <= 2


def test_stock_diffusers_draws_with_nothing_but_the_prompt():
    from diffusers import PixArtAlphaPipeline

    stock = PixArtAlphaPipeline.from_pretrained(DEFAULT_MODEL, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    assert stock("a red apple, 3D").images[0].size == (256, 256)


def test_the_pictures_have_a_white_ground_and_follow_the_colour(pipe):
    """Coarse facts that hold for any seed of a model that has learned its data."""
    red, green = (
        np.asarray(pipe(text, seed=1, steps=10, width=128, height=128).images[0], dtype=float)
        for text in ("red circle, flat", "green circle, flat")
    )
    for picture in (red, green):
        corners = np.concatenate([picture[:8, :8].reshape(-1, 3), picture[-8:, -8:].reshape(-1, 3)])
        assert corners.mean() > 230
    middle = slice(48, 80)
    assert red[middle, middle, 0].mean() > red[middle, middle, 1].mean() + 60
    assert green[middle, middle, 1].mean() > green[middle, middle, 0].mean() + 30


def test_the_first_command(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from pixart.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red apple, 3D"]) == 0
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    with Image.open(path) as image:
        assert image.size == (256, 256)
