"""Released models by their names: defaults, parts from the Hub, and the images of stock Diffusers, on tiny weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from hub_server import serve
from PIL import Image
from test_hub import environment, pixart

import pixart as package
from pixart.checkpoints.known import ALPHA_PARTS, KNOWN
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.diffusion.noise import noise_stream
from pixart.errors import UsageError
from pixart.pipeline.request import make_request

EXPECTED = {  # pixels, sampler, steps, guidance scale
    "PixArt-XL-2-256x256": (256, "dpm-solver", 20, 4.5),
    "PixArt-XL-2-512x512": (512, "dpm-solver", 20, 4.5),
    "PixArt-XL-2-1024-MS": (1024, "dpm-solver", 20, 4.5),
    "PixArt-LCM-XL-2-1024-MS": (1024, "lcm", 4, 1.0),
    "PixArt-Alpha-DMD-XL-2-512x512": (512, "dmd", 1, 1.0),
    "PixArt-Sigma-XL-2-256x256": (256, "dpm-solver", 20, 4.5),
    "PixArt-Sigma-XL-2-512-MS": (512, "dpm-solver", 20, 4.5),
    "PixArt-Sigma-XL-2-1024-MS": (1024, "dpm-solver", 20, 4.5),
    "PixArt-Sigma-XL-2-2K-MS": (2048, "dpm-solver", 20, 4.5),
    "pixart-900m-1024-ft-v0.6": (1024, "dpm-solver", 20, 4.5),
}
DMD, LCM = "PixArt-Alpha-DMD-XL-2-512x512", "PixArt-LCM-XL-2-1024-MS"
SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.fixture(scope="module")
def eps_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known") / "tiny"
    write_tiny_model(folder, eps=True)
    return folder


def scheduler(name: str):
    from diffusers import DDPMScheduler, LCMScheduler

    return DDPMScheduler(**SCHEDULE, clip_sample=False) if name == DMD else LCMScheduler(**SCHEDULE)


def test_every_released_model_has_its_defaults_by_its_name(eps_model, tmp_path):
    assert {model.name.split("/")[1] for model in KNOWN} == EXPECTED.keys()
    for name, (size, sampler, steps, scale) in EXPECTED.items():
        folder = shutil.copytree(eps_model, tmp_path / name)
        config = folder / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": size // 8}))
        request = make_request(open_model_folder(folder), "a fox")
        assert (request.width, request.height, request.sampler) == (size, size, sampler)
        assert (request.steps, request.guidance_scale) == (steps, scale)
    (folder / "pixart.json").write_text(json.dumps({"sampler": "euler", "steps": 7}))
    assert make_request(open_model_folder(folder), "a fox").steps == 7  # what the folder says counts more


def test_a_transformer_from_the_hub_gets_its_parts_and_generates_what_stock_diffusers_does(eps_model, tmp_path):
    from diffusers import PixArtAlphaPipeline

    repository = tmp_path / "dmd"
    shutil.copytree(eps_model / "transformer", repository / "transformer")
    scheduler(DMD).save_pretrained(repository / "scheduler")
    with serve({f"PixArt-alpha/{DMD}": repository, ALPHA_PARTS: eps_model}) as hub:
        env = environment(tmp_path / "home", HF_ENDPOINT=hub.url)
        options = ["--model", f"PixArt-alpha/{DMD}", "--seed", "3", "--size", "64x64", "--no-binning", "--json"]
        out, _ = pixart(["generate", "a red fox", *options, "--dtype", "float32", "-o", tmp_path / "a.png"], env)
        about = json.loads(pixart(["info", f"PixArt-alpha/{DMD}", "--json"], env)[0])
        fetched = [path for path in hub.asked if path.endswith(".safetensors")]
    listed = [json.loads(line) for line in pixart(["models", "--json"], env)[0].splitlines()]
    settings = json.loads(out)
    assert (settings["sampler"], settings["steps"], settings["guidance_scale"]) == ("dmd", 1, 1.0)
    assert settings["source"]["parts"] == about["parts"] == ALPHA_PARTS
    assert not any(ALPHA_PARTS in path and "/transformer/" in path for path in fetched)
    assert {model["name"] for model in listed if model["bytes_in_the_cache"]} == {f"PixArt-alpha/{DMD}", ALPHA_PARTS}
    stock = PixArtAlphaPipeline.from_pretrained(eps_model, scheduler=scheduler(DMD))
    expected = stock(
        "a red fox",
        timesteps=[400],
        num_inference_steps=1,
        guidance_scale=1.0,
        latents=torch.from_numpy(noise_stream(3, (8, 8, 8))())[None],
        height=64,
        width=64,
        use_resolution_binning=False,
        clean_caption=False,
    ).images[0]
    assert apart(Image.open(tmp_path / "a.png"), expected) <= 2


def test_a_consistency_model_generates_what_stock_diffusers_does(eps_model, tmp_path, monkeypatch):
    """Stock Diffusers is given our noise, which it would take from a generator."""
    from diffusers import PixArtAlphaPipeline
    from diffusers.schedulers import scheduling_lcm

    folder = shutil.copytree(eps_model, tmp_path / LCM)
    scheduler(LCM).save_pretrained(folder / "scheduler")
    ours = package.Pipeline.from_pretrained(folder, dtype="float32")
    image = ours("a red fox", seed=3, width=64, height=64, binning=False).images[0]
    noise = noise_stream(3, (8, 8, 8))
    latents = torch.from_numpy(noise())[None]
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: torch.from_numpy(noise())[None])
    expected = PixArtAlphaPipeline.from_pretrained(eps_model, scheduler=scheduler(LCM))(
        "a red fox",
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=latents,
        height=64,
        width=64,
        use_resolution_binning=False,
        clean_caption=False,
    ).images[0]
    assert apart(image, expected) <= 2


def test_a_released_transformer_on_this_machine_does_not_reach_the_hub_for_its_parts(eps_model, tmp_path):
    folder = tmp_path / DMD
    shutil.copytree(eps_model / "transformer", folder / "transformer")
    with pytest.raises(UsageError, match=ALPHA_PARTS):
        open_model_folder(str(folder))
    assert open_model_folder(folder, parts=eps_model).defaults == {"sampler": "dmd"}


def test_the_list_needs_no_network_and_has_a_line_per_model(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [model.name for model in KNOWN]


def apart(first: Image.Image, second: Image.Image) -> int:
    assert np.asarray(second).std() > 1
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())
