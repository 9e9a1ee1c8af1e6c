"""Fine-tuning: adapters as what a task trains, and `pixart finetune` on a folder of images."""

from pathlib import Path

import pytest
import torch
from photos import write_photos
from safetensors.torch import load_file

from pixart.checkpoints.adapters import read_adapter
from pixart.checkpoints.diffusers import load_transformer
from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.model.adapters import attach
from pixart.training import train
from pixart.training.batches import Phase
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe
from pixart.training.run import export
from pixart.training.start import read_start
from pixart.training.tasks.text_to_image import TextToImage
from pixart.training.trainable import Trainable


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def features(photos, tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "f"
    assert main(["data", "extract", str(photos), str(folder), "--model", str(tiny_model), "--base-size", "64"]) == 0
    return folder


def recipe(output: Path, features: Path, steps: int = 4, **trainable) -> Recipe:
    return Recipe(
        output=output,
        phases=(Phase(steps, 4, features=features),),
        loop=LoopConfig(precision="float32", log_every=1, save_every=2, validate_every=2, device="cpu"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        ema=EmaConfig((0.5, 0.0)),
        trainable=Trainable(**({"method": "lora", "rank": 2} | trainable)),
    )


@pytest.mark.parametrize("method", ["lora", "dora", "lokr", "loha"])
def test_a_task_trains_an_adapter_and_leaves_the_weights_alone(method, features, tiny_model, tmp_path):
    run = tmp_path / "run"
    task = TextToImage(init=str(tiny_model), validation=4)
    made = train(task, recipe(run, features, method=method, rslora=True))
    adapter = read_adapter(made)
    assert adapter.kind == {"dora": "lora+dora"}.get(method, method) and not adapter.notices
    assert adapter.header["modelspec.architecture"] == "pixart-alpha/lora"
    saved = load_file(run / "checkpoint-4" / "ema.safetensors")
    assert saved and all(".adapters." in name for name in saved)
    # The file does what the run's average does.
    base = load_transformer(tiny_model / "transformer")
    theirs = TextToImage(init=str(tiny_model), validation=4)
    again = export(run, tmp_path / "again", step=2, average="ema-0")
    assert again.name == made.name and again.read_bytes() != made.read_bytes()
    trained = load_transformer(tiny_model / "transformer")
    attach(trained, adapter.layers)
    batch = theirs.build(recipe(run, features), torch.device("cpu")) and theirs.validated[0]
    arguments = batch["latent"], torch.tensor([500.0]), batch["text"], batch["text_mask"]
    with torch.no_grad():
        assert (trained(*arguments) - base(*arguments)).abs().max() > 1e-3
    with pytest.raises(PixArtError):
        read_start(str(run))


def test_a_run_of_an_adapter_goes_on_where_it_was_stopped(features, tiny_model, tmp_path):
    class Stop(Exception):
        pass

    task, seen = TextToImage(init=str(tiny_model), validation=4), []

    def loss(model, batch):
        seen.append(batch)
        if len(seen) == 4:
            raise Stop
        return task.loss(model, batch)

    with pytest.raises(Stop):
        train(task, recipe(tmp_path / "stopped", features, 5, dropout=0.5), loss)
    for name in ("stopped", "straight"):
        again = TextToImage(init=str(tiny_model), validation=4)
        train(again, recipe(tmp_path / name, features, 5, dropout=0.5))
    ours, theirs = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("stopped", "straight"))
    assert len(ours) == len(theirs)
    tensors = [load_file(tmp_path / name / "adapter.safetensors") for name in ("stopped", "straight")]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[1])


def test_a_pattern_that_matches_no_layer_is_refused(features, tiny_model, tmp_path):
    for settings in ({"layers": ("nothing.*",)}, {"parameters": ("blocks.*",)}, {"rank": 0}, {"alpha": float("nan")}):
        with pytest.raises(UsageError):
            train(TextToImage(init=str(tiny_model), validation=4), recipe(tmp_path / "run", features, **settings))
    assert not (tmp_path / "run").exists()
