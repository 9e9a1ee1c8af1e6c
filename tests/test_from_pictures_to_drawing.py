"""A person's own pictures, by the commands alone: extract, train under torchrun, draw with what came out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from photo_folder import write_photos
from PIL import Image

from pixart.cli import main

RECIPE = """
kind = "text"
run = "{here}/run"
features = "{here}/features"
autoencoder = "{model}/vae"
text_encoder = "{model}/text_encoder"
[[phases]]
steps = {steps}
size = 64
batch_size = 4
[model]
width = 32
depth = 1
num_heads = 2
[sampling]
small_buckets = "repeat"
held_out = 2
[loop]
precision = "fp32"
device = "cpu"
log_every = 1
save_every = 1
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory, tiny_model) -> Path:
    here = tmp_path_factory.mktemp("pictures")
    write_photos(here / "photos", 24)
    places = [str(here / "photos"), str(here / "features"), "--model", str(tiny_model)]
    assert main(["data", "extract", *places, "--base-size=64", "--precision=fp32", "--workers=1"]) == 0
    return here


def torchrun(recipe: Path) -> subprocess.Popen:
    """Two processes on this machine, as docs/cluster.md says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pixart"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "train", str(recipe)], env=environment, stderr=subprocess.PIPE, text=True)


def test_extract_train_under_torchrun_draw(features, tiny_model):
    recipe = features / "recipe.toml"
    recipe.write_text(RECIPE.format(here=features, model=tiny_model, steps=200))
    training = torchrun(recipe)
    metrics = features / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.05)
    training.send_signal(signal.SIGTERM)  # what a cluster sends before it takes the machine away
    said = training.communicate(timeout=120)[1]
    done = max(int(path.name.removeprefix("checkpoint-")) for path in (features / "run").glob("checkpoint-*"))
    assert "Stopped by a signal at step" in said and 3 <= done < 200, said

    assert main(["train", str(recipe), "--loop.log-every=50", "--loop.save-every=200"]) == 0  # alone, to its end
    figures = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert figures[-1]["step"] == 200 and figures[-1]["held_out_loss"] < 3
    output = features / "a red fox.png"
    assert main(["generate", "a red fox", "--model", str(features / "run" / "model"), "--output", str(output)]) == 0
    assert Image.open(output).size == (256, 256)
