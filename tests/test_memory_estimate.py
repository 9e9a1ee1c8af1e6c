"""The memory estimate of `pixart info`, against the peaks of a small but real model in processes of their own."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.pipeline.memory_estimate import PROGRAM, WAYS, estimate
from pixart.runtime.memory import Memory

TOLERANCE = 0.3  # of what generating adds to the program itself, whose size differs with every build of torch
SIZE = 384

DRAW = """
import json, sys, threading
from pathlib import Path
import diffusers, transformers
_ = (diffusers.AutoencoderKL, transformers.T5EncoderModel)
import pixart.pipeline.torch_networks
from pixart import Pipeline
from pixart.runtime.memory import Memory

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024

def own():
    return status("RssAnon")

def peak():
    return status("VmHWM")  # as ru_maxrss, which a process inherits from the one that started it

before, largest, done = (own(), peak()), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        largest[0] = max(largest[0], own())

thread = threading.Thread(target=watch)
thread.start()
folder, dtype, memory, size = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
pipe = Pipeline.from_pretrained(folder, engine="torch", dtype=dtype, memory=Memory(**memory))
pipe("a red apple", seed=1, steps=1, width=size, height=size, binning=False)
done.set()
thread.join()
print(json.dumps({"own": largest[0] - before[0], "peak": peak() - before[1]}))
"""


@pytest.fixture(scope="module")
def real_model(tiny_model, tmp_path_factory):
    """A model whose parts weigh something: 0.2 GB of text encoder, 0.2 of denoiser, and a decoder that takes so."""
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    from pixart.checkpoints.diffusers import save_transformer
    from pixart.model.pixart import PixArt, PixArtConfig

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("memory") / "real")
    config = PixArtConfig(
        in_channels=4, out_channels=4, width=768, depth=6, num_heads=12, text_dim=1024, sample_size=48
    )
    network = PixArt(config)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_transformer(network.state_dict(), config, folder / "transformer", None)
    shutil.rmtree(folder / "text_encoder")
    text = T5Config(
        vocab_size=128, d_model=1024, d_kv=64, d_ff=2816, num_layers=4, num_heads=16, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(text).save_pretrained(folder / "text_encoder")
    shutil.rmtree(folder / "vae")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[64, 128, 128, 128],
        latent_channels=4,
        sample_size=384,
    ).save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the peaks are read from Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "memory"),
    [
        ("float32", {}),
        ("bfloat16", {"staged": True, "text_encoder_8bit": True}),
    ],
)
def test_the_estimate_is_near_the_measured_peak(real_model, dtype, memory):
    command = [sys.executable, "-c", DRAW, str(real_model), dtype, json.dumps(memory), str(SIZE)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    found = estimate(open_model_folder(real_model), dtype, Memory(**memory), SIZE, SIZE)
    wanted = found - PROGRAM
    assert measured["own"] <= (1 + TOLERANCE) * wanted
    # The peak also counts pages of mapped weight files, as long as the system leaves them in memory.
    mapped = max(path.stat().st_size for path in real_model.rglob("*.safetensors"))
    assert (1 - TOLERANCE) * wanted <= measured["peak"] <= (1 + TOLERANCE) * wanted + mapped, (measured, wanted)


def test_every_way_that_saves_needs_less_and_info_says_what_fits(real_model, capsys):
    folder = open_model_folder(real_model)
    for side in (256, 512, 1024):
        needs = [estimate(folder, way.dtype, way.memory, side, side) for way in WAYS]
        assert needs[1] <= needs[0] and needs[5] <= needs[4] <= needs[3] <= needs[2] <= needs[0]
    assert main(["info", str(real_model), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert len(memory["estimates"]) == 3 * len(WAYS) and memory["free"] > 0
    for one in memory["estimates"]:
        assert one["fits"] == (one["needs"] <= memory["free"])
    assert main(["info", str(real_model)]) == 0
    shown = capsys.readouterr().out
    assert "--staged" in shown and "1024 px" in shown and "fits" in shown
