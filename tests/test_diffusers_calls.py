"""`pixart.Pipeline` called as Diffusers users call their pipelines: the same noise, names and ways to save memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_tracking import read_wandb

import pixart
from pixart.errors import PixArtError, UsageError

SIZE = {"width": 256, "height": 256}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return pixart.Pipeline.from_pretrained(tiny_model, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def stock(tiny_model):
    from diffusers import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(generators) > 1 else generators[0]


@pytest.mark.parametrize("seeds", [(42,), (3, 4, 5, 6)])
def test_a_generator_gives_the_images_of_stock_diffusers(pipe, stock, seeds):
    call = {"num_inference_steps": 3, "num_images_per_prompt": 2, "negative_prompt": "grey", **SIZE}
    prompts = ["a red fox", "a house"]
    theirs = stock(prompts, generator=seeded(*seeds), clean_caption=False, use_resolution_binning=False, **call).images
    ours = pipe(prompts, generator=seeded(*seeds), use_resolution_binning=False, **call)
    assert len(ours.images) == len(theirs) == 4
    for one, other in zip(ours.images, theirs, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 2
    assert ours.seeds == [*seeds] * (4 // len(seeds))
    assert {one["noise"] for one in ours.settings} == {"generator"}


def test_latents_are_the_noise_and_a_generator_makes_what_comes_later(pipe):
    latents = torch.randn((2, 8, 8, 8), generator=seeded(1))
    call = {"width": 64, "height": 64, "steps": 2, "num_images": 2}
    first, again = (pipe("a fox", latents=given, seed=3, **call) for given in (latents, latents.numpy()))
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    drawn = pipe("a fox", generator=seeded(1), **call)
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in drawn.images]
    ancestral = [
        pipe("a fox", latents=latents, generator=seeded(seed), sampler="euler-ancestral", **call) for seed in (1, 1, 2)
    ]
    pixels = [result.images[1].tobytes() for result in ancestral]
    assert pixels[0] == pixels[1] != pixels[2]


@pytest.mark.parametrize(
    "given",
    [
        {"generator": 3},
        {"generator": seeded(1, 2)},
        {"generator": seeded(1), "seed": 2},
        {"latents": torch.zeros(1, 8, 4, 4)},
        {"latents": "noise"},
        {"latents": torch.full((1, 8, 8, 8), torch.nan)},
        {"latents": np.full((1, 8, 8, 8), 1e300)},
        {"latents": [[1.0], [1.0, 2.0]]},
        {"latents": torch.zeros(1, 8, 8, 8, dtype=torch.complex64)},
        {"latents": torch.zeros(1, 8, 8, 8, device="meta")},
        {"latents": torch.zeros(1, 8, 8, 8).to_sparse()},
        {"generator": []},
        {"steps": 2, "num_inference_steps": 2},
        {"num_inference_step": 2},
    ],
)
def test_what_cannot_be_is_refused(pipe, given):
    with pytest.raises(UsageError):
        pipe("a fox", width=64, height=64, **given)


def test_an_image_of_given_noise_is_not_verified(pipe, tmp_path):
    from pixart.cli import main
    from pixart.pipeline.image_files import write_image

    result = pipe("a fox", generator=seeded(1), width=64, height=64, steps=1)
    path = write_image(result.images[0], result.settings[0], tmp_path / "fox.png")
    assert main(["verify", str(path)]) != 0


def test_devices_dtypes_and_memory_by_diffusers_calls(tiny_model_with_graphs):
    with pytest.raises(UsageError):
        pixart.Pipeline.from_pretrained(tiny_model_with_graphs, dtype="float32", torch_dtype=torch.float16)
    call = {"seed": 1, "width": 64, "height": 64, "steps": 2}
    pipe = pixart.Pipeline.from_pretrained(tiny_model_with_graphs)
    before = pipe("a fox", **call)
    assert pipe.to("cpu") is pipe and pipe.networks.name == "onnx"
    if not torch.cuda.is_available():
        with pytest.raises(PixArtError):
            pipe.to("cuda")
    assert pipe("a fox", **call).images[0].tobytes() == before.images[0].tobytes()
    pipe.to(torch.bfloat16)
    assert pipe.networks.name == "torch" and pipe("a fox", **call).settings[0]["dtype"] == "bfloat16"
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload()
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    pipe.enable_attention_slicing()
    after = pipe("a fox", **call)
    assert after.settings[0]["memory"] == {"staged": True, "offload": True, "decode": "tiled"}
    assert len(pipe.networks.loaded) == 1


@pytest.mark.slow
def test_the_cell_of_the_wandb_report_runs_with_two_lines_changed(tiny_model, tmp_path):
    """On a CPU generator and with W&B offline; its run ends with the program."""
    code = (
        "import sys, torch\n"
        "from pixart import Pipeline as PixArtAlphaPipeline\n"
        "from pixart.tracking.generations import autolog\n"
        "pipe = PixArtAlphaPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float16)\n"
        "pipe.enable_model_cpu_offload()\n"
        "autolog(init=dict(project='pixart-alpha'))\n"
        "generator = torch.Generator(device='cpu').manual_seed(42)\n"
        "images = pipe(prompt='a meditating dog', negative_prompt='', height=64, width=64, generator=generator,\n"
        ").images\n"
        "assert [image.size for image in images] == [(64, 64)]\n"
    )
    environment = os.environ | {"WANDB_SILENT": "true", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history, config = read_wandb(file)
    (call,) = json.loads(config["workflow"])
    assert (call["params"]["prompt"], call["params"]["generator"]["seed"]) == ("a meditating dog", [42])
    assert any("Generated-Image/Pipeline-Call-1" in key for row in history for key in row)
