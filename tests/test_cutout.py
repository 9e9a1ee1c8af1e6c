"""Cutting out what is drawn on white, and images that are written so."""

import json

import numpy as np
from PIL import Image, ImageDraw

from pixart.cli import main
from pixart.pipeline.cutout import cut_out


def disc(hole: bool = False) -> tuple[Image.Image, np.ndarray]:
    """A blue disc with soft edges on white, with a white eye if wished, and its true alpha 0 to 1."""
    big = Image.new("L", (512, 512), 0)
    ImageDraw.Draw(big).ellipse((120, 100, 400, 430), fill=255)
    alpha = big.resize((128, 128), Image.Resampling.BOX)
    picture = Image.new("RGB", (128, 128), "white")
    picture.paste((30, 90, 200), (0, 0, 128, 128), alpha)
    if hole:
        ImageDraw.Draw(picture).ellipse((56, 56, 70, 70), fill="white")
    return picture, np.asarray(alpha) / 255


def test_the_soft_edge_becomes_alpha_and_its_colour_has_no_white_left():
    picture, true = disc()
    rgba = np.asarray(cut_out(picture)).astype(int)
    assert np.abs(rgba[..., 3] / 255 - true).max() < 0.05
    seen = rgba[..., 3] > 60
    assert np.abs(rgba[seen][:, :3] - (30, 90, 200)).max() <= 8


def test_white_inside_stays_and_white_outside_goes():
    picture, _ = disc(hole=True)
    alpha = np.asarray(cut_out(picture))[..., 3]
    assert alpha[63, 63] == 255
    assert alpha[0, 0] == alpha[127, 127] == 0


def test_noise_that_a_decoder_leaves_on_white_is_ground():
    picture, true = disc()
    noise = np.random.default_rng(0).integers(-6, 7, (128, 128, 3))
    noisy = Image.fromarray((np.asarray(picture).astype(int) + noise).clip(0, 255).astype(np.uint8))
    assert np.abs(np.asarray(cut_out(noisy))[..., 3] / 255 - true).mean() < 0.01


def test_a_tint_on_the_ground_does_not_keep_it():
    picture, true = disc()
    tinted = Image.fromarray((np.asarray(picture) * np.array([0.92, 0.96, 1.0])).astype(np.uint8))
    assert np.abs(np.asarray(cut_out(tinted))[..., 3] / 255 - true).max() < 0.05


def test_an_image_that_fills_its_frame_stays_whole_and_an_empty_one_vanishes():
    assert np.asarray(cut_out(Image.new("RGB", (32, 32), (200, 30, 30))))[..., 3].min() == 255
    assert np.asarray(cut_out(Image.new("RGB", (32, 32), "white")))[..., 3].max() == 0


def test_the_command_writes_a_transparent_image_that_can_be_verified(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = ["generate", "a red apple, 3D", "--seed", "7", "--width", "64", "--height", "64", "--steps", "4", "--json"]
    assert main([*draw, "--transparent"]) == 0
    record = json.loads(capsys.readouterr().out)
    with Image.open(record["path"]) as image:
        assert image.mode == "RGBA"
        alpha = np.asarray(image)[..., 3]
    assert record["transparent"] is True
    assert 0.2 < (alpha == 0).mean() < 0.9
    assert alpha.max() == 255
    assert main(["verify", record["path"]]) == 0
    assert ": identical" in capsys.readouterr().out
