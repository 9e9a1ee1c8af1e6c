"""The memory plan: on the design's machines, and its estimates against measured peaks of a small but real model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.errors import PixArtError
from pixart.pipeline.networks import sizes_of
from pixart.runtime.device import Device, Precision, choose_precision, find_cpu
from pixart.runtime.memory import Memory
from pixart.runtime.plan import PROGRAM, Need, Sizes, choose_plan, estimate, ways

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peaks are read from Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "memory"),
    [
        ("float32", {"text_encoder_mode": "loaded", "decode": "whole"}),
        ("bfloat16", {"staged": True, "text_encoder_8bit": True, "text_encoder_mode": "loaded", "decode": "whole"}),
        ("bfloat16", {"text_encoder_mode": "streamed", "decode": "whole"}),
    ],
)
def test_the_estimate_is_near_the_measured_peak(real_model, dtype, memory):
    command = [sys.executable, "-c", DRAW, str(real_model), dtype, json.dumps(memory), str(SIZE)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    device = find_cpu()
    sizes = sizes_of(open_model_folder(real_model), SIZE, SIZE)
    wanted = estimate(sizes, device, choose_precision(device, dtype), Memory(**memory)).host - PROGRAM
    assert measured["own"] <= (1 + TOLERANCE) * wanted
    # The peak also counts pages of mapped weight files, as long as the system leaves them in memory.
    mapped = max(path.stat().st_size for path in real_model.rglob("*.safetensors"))
    assert (1 - TOLERANCE) * wanted <= measured["peak"] <= (1 + TOLERANCE) * wanted + mapped, (measured, wanted)


def test_info_says_what_fits(real_model, capsys):
    assert main(["info", str(real_model), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert len(memory["estimates"]) == 3 * len(ways(sizes_of(open_model_folder(real_model), 256, 256), once=False))
    assert all(one["fits"] == (one["needs"] <= 0.9 * memory["free"]) for one in memory["estimates"])
    assert main(["info", str(real_model)]) == 0
    shown = capsys.readouterr().out
    assert "1024 px" in shown and "fits" in shown


GB = 10**9
PUBLISHED = Sizes(  # PixArt-XL-2-1024-MS with T5-XXL in fp32, and an image of 1024 px
    text_linear=4_630_000_000, text_other=132_000_000, text_layer=41_943_040, text_file=19 * GB, denoiser=611_000_000,
    decoder=84_000_000, tokens=4096, width=1152, decoded=4.5 * 256 * 1024**2, decoded_tile=4.5 * 256 * 512**2,
)  # fmt: skip


def gpu(gigabytes: int, bfloat16: bool, float16: bool) -> Device:
    return Device("cuda", "GPU", gigabytes * GB, int(gigabytes * 0.95 * GB), bfloat16, float16, (8, 0))


def cpu(free: int, bfloat16: bool) -> Device:
    return Device("cpu", "CPU", free * GB, free * GB, bfloat16, False)


L, E, S, T = (
    {"text_encoder_mode": "loaded"},
    {"text_encoder_8bit": True},
    {"text_encoder_mode": "streamed"},
    {"decode": "tiled"},
)
MACHINES = {  # device, the computer's free memory in GB, what is chosen for many requests, and for one
    "T4": (gpu(16, False, True), 10, E, S),
    "P4000": (gpu(8, False, False), 12, S, S),
    "3090": (gpu(24, True, True), 24, L, S),
    "H100": (gpu(80, True, True), 100, L, S),
    "M2": (Device("mps", "M2", 16 * GB, 11 * GB, False, True), 11, S, S),
    "AVX2 8": (cpu(6, False), 6, S | T, S | T),
    "AVX2 24": (cpu(20, False), 20, L, S),
    "AMX": (cpu(20, True), 20, L, S),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_published_model_on_the_machines_of_the_design(name):
    device, host, many, one = MACHINES[name]
    for once, expected in ((False, many), (True, one)):
        plan = choose_plan(PUBLISHED, device, choose_precision(device), host * GB, once=once)
        usual = {"text_encoder_mode": "loaded", "text_encoder_8bit": False, "decode": "whole", "staged": False}
        assert {key: getattr(plan.memory, key) for key in usual} == usual | expected
        assert plan.need.fits(device, host * GB) and plan.reason


def test_what_is_given_is_taken_and_what_cannot_fit_is_refused_before_loading():
    precision = Precision("bfloat16", "float32", "")
    for given in (Memory(text_encoder_mode="loaded"), Memory(staged=True), Memory(decode="whole"), Memory(**E)):
        plan = choose_plan(PUBLISHED, cpu(3, False), precision, 3 * GB, given)
        assert given.chosen.items() <= plan.memory.chosen.items() | {
            ("text_encoder_mode", "loaded"),
            ("decode", "whole"),
        }
    with pytest.raises(PixArtError):
        choose_plan(PUBLISHED, cpu(1, False), precision, GB)
    assert Need(9, 9).fits(cpu(1, True), GB) and not Need(GB, 0).fits(cpu(1, True), 9 * GB)


def test_every_way_takes_less_than_the_one_before():
    for device in (cpu(20, False), gpu(24, True, True)):
        found = [estimate(PUBLISHED, device, choose_precision(device), way).device for way in ways(PUBLISHED, False)]
        assert found == sorted(found, reverse=True)
