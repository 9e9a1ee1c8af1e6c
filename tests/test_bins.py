"""Drawing at official sizes: the bin that stock Diffusers takes, and its picture, fitted to what was asked for."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from PIL import Image

import pixart
from pixart.buckets import official_table
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.diffusion.noise import initial_noise
from pixart.errors import UsageError
from pixart.pipeline.bins import bins_by_itself, choose_bin, fit
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.request import make_request


@pytest.fixture(scope="module")
def eps_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins") / "eps"
    write_tiny_model(folder, eps=True)
    return folder


@pytest.fixture(scope="module")
def eps_pipe(eps_model):
    return pixart.Pipeline.from_pretrained(eps_model, dtype="float32")


@pytest.mark.parametrize("base_size", [256, 512, 1024, 2048])
def test_the_bin_is_the_one_that_stock_diffusers_takes(eps_model, base_size):
    from diffusers.image_processor import PixArtImageProcessor
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma

    module = pipeline_pixart_sigma if base_size == 2048 else pipeline_pixart_alpha
    theirs = getattr(module, f"ASPECT_RATIO_{base_size}_BIN")
    folder = replace(open_model_folder(eps_model), native_size=base_size, max_size=2 * base_size)
    rng = np.random.default_rng(base_size)
    sizes = [(int(h), int(w)) for h, w in rng.integers(64, 2 * base_size + 1, (500, 2))]
    sizes += [(bucket.height, bucket.width) for bucket in official_table(base_size).buckets]
    sizes += [(64, 2 * base_size), (2 * base_size, 64), (base_size, base_size)]
    for height, width in sizes:
        chosen = choose_bin(folder, height, width)
        wanted = PixArtImageProcessor.classify_height_width_bin(height, width, ratios=theirs)
        assert (chosen.height, chosen.width) == wanted, f"for {width} x {height}"


def stock_picture(folder, width, height, *, binning, shape):
    from diffusers import PixArtAlphaPipeline

    stock = PixArtAlphaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return stock(
        "a red apple",
        width=width,
        height=height,
        num_inference_steps=4,
        latents=torch.from_numpy(initial_noise(7, (8, *shape)))[None],
        clean_caption=False,
        use_resolution_binning=binning,
    ).images[0]


@pytest.mark.parametrize(("width", "height", "shape"), [(200, 130, (26, 38)), (300, 1000, (54, 18))])
def test_our_image_in_a_bin_is_that_of_stock_diffusers(eps_model, eps_pipe, width, height, shape):
    """Its resizing is bilinear and ours bicubic, so they are compared as they were drawn, and then where they lie."""
    at_bin = {"width": shape[1] * 8, "height": shape[0] * 8}
    drawn = eps_pipe("a red apple", seed=7, steps=4, **at_bin).images[0]
    theirs = stock_picture(eps_model, **at_bin, binning=True, shape=shape)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(theirs).astype(int)).max() <= 2
    result = eps_pipe("a red apple", seed=7, steps=4, width=width, height=height)
    fitted = result.images[0]
    assert fitted.size == (width, height)
    assert fitted.tobytes() == fit(drawn, height, width).tobytes()
    stock = stock_picture(eps_model, width, height, binning=True, shape=shape)
    blurred = [np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).astype(int) for picture in (fitted, stock)]
    shifted = np.asarray(fitted.resize((8, 8), Image.Resampling.BOX, (8, 8, width, height))).astype(int)
    apart = np.abs(blurred[0] - blurred[1]).mean()
    assert apart < 0.5 * np.abs(shifted - blurred[1]).mean(), "the cut is somewhere else"
    assert result.settings[0]["bin"]["width"] == at_bin["width"]
    assert any(f"{at_bin['width']} x {at_bin['height']}" in notice for notice in result.notices)


def test_the_cut_is_in_the_middle_and_nothing_is_stretched():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255  # the middle third
    image = Image.fromarray(pixels)
    assert fit(image, 100, 300) is image
    middle = np.asarray(fit(image, 50, 50))
    assert middle.shape == (50, 50, 3) and middle[:, 2:-2].min() == 255
    wide = np.asarray(fit(image, 200, 500))  # enlarged twice, and 50 cut from each side
    assert wide[:, :145].max() == 0 and wide[:, 155:345].min() == 255 and wide[:, 355:].max() == 0


def test_micro_conditions_get_the_size_and_ratio_of_the_bin(eps_model, tmp_path):
    from pixart.checkpoints.diffusers import read_config, save_transformer
    from pixart.model.pixart import PixArt

    folder = shutil.copytree(eps_model, tmp_path / "told")
    config = read_config(folder / "transformer" / "config.json")
    told = replace(config, width=36, num_heads=2, micro_conditions=True)
    torch.manual_seed(0)
    network = PixArt(told)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_transformer(network.state_dict(), told, folder / "transformer", None)
    pipe = pixart.Pipeline.from_pretrained(folder, dtype="float32")
    seen = []
    pipe.networks.denoiser.csize_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    pipe.networks.denoiser.ar_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    pipe("a red apple", seed=1, steps=1, width=200, height=130)
    assert seen[0] == [208.0, 304.0]
    assert seen[1] == pytest.approx([208 / 304])


def test_flow_models_draw_exactly_and_eps_models_in_bins_unless_told_otherwise(tiny_model, eps_model):
    flow, eps = open_model_folder(tiny_model), open_model_folder(eps_model)
    assert bins_by_itself(eps) and not bins_by_itself(flow)
    assert make_request(flow, "a", width=192, height=64).bin is None
    request = make_request(eps, "a", width=192, height=64)
    assert (request.width, request.height) == (192, 64)
    assert (request.image_width, request.image_height) == (432, 144)
    exact = make_request(eps, "a", width=192, height=64, binning=False)
    assert exact.bin is None and (exact.image_width, exact.image_height) == (192, 64)
    assert make_request(flow, "a", width=190, height=67, binning=True).bin.width == 416
    with pytest.raises(UsageError, match="multiple of 16"):
        make_request(eps, "a", width=190, binning=False)
    with pytest.raises(UsageError, match="must be from 64 to 1024; the nearest is 1024"):
        make_request(eps, "a", width=1500)
    with pytest.raises(UsageError, match="no bins for this model"):
        make_request(replace(eps, native_size=320), "a", binning=True)
    assert make_request(replace(eps, native_size=320), "a", width=192, height=64).bin is None


def test_the_command_line_names_the_bin(eps_model, tmp_path, capsys):
    command = ["generate", "a red apple", "--model", str(eps_model), "--seed", "3", "--steps", "1", "--width", "128"]
    assert main([*command, "--height", "90", "--output", str(tmp_path / "binned.png"), "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["bin"] == {"ratio": 0.72, "height": 208, "width": 288} and record["binning"]
    assert "288 x 208" in captured.err and "binning" in captured.err
    assert Image.open(record["path"]).size == (128, 90)
    assert read_settings(record["path"])["bin"] == record["bin"]
    assert main([*command, "--height", "96", "--no-binning", "--output", str(tmp_path / "exact.png"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bin"] is None and "bin " not in captured.err
    assert main([*command, "--binning", "--no-binning"]) == 2
    assert "exclude each other" in capsys.readouterr().err
