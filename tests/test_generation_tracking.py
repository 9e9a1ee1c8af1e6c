"""Generations in Weights & Biases and trackio: the keys of W&B's Diffusers integration, and that integration itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_tracking import fake_wandb, read_wandb

import pixart
from pixart.cli import main
from pixart.errors import UsageError
from pixart.tracking.generations import RESULT_COLUMNS, SETTINGS_COLUMNS, GenerationTracker

SMALL = {"width": 64, "height": 64, "steps": 2}


def generated(model: Path, prompts: list[str], **options) -> list[SimpleNamespace]:
    result = pixart.Pipeline.from_pretrained(model)(prompts, **SMALL, **options)
    parts = zip(result.images, result.seeds, result.settings, strict=True)
    return [SimpleNamespace(image=image, seed=seed, settings=settings) for image, seed, settings in parts]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def table_of(folder: Path, name: str) -> dict:
    (file,) = (folder / "files" / "media" / "table").rglob(f"{name}_*.table.json")
    return json.loads(file.read_text())


def test_wandb_gets_the_keys_of_its_own_integration_and_every_image_of_a_batch(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    batch = generated(tiny_model, ["a red fox", "a house"], style="Flat", seed=5, num_images=2)
    one = generated(tiny_model, ["an apple"], negative_prompt="blurry", seed=9)
    lines: list[str] = []
    with GenerationTracker("wandb", tmp_path / "out", report=lines.append, close_timeout=600) as tracker:
        tracker.log(batch, 6.0)
        tracker.log(one, 1.5)
    assert lines == []
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    history, config = read_wandb(file)
    first, second = json.loads(config["workflow"])
    assert (first["stage"], second["stage"]) == ("Pipeline-Call-1", "Pipeline-Call-2")
    assert first["pipeline"]["pipeline-name"] == "PixArtAlphaPipeline"
    assert first["pipeline"]["model_hash"] == batch[0].settings["model_hash"]
    assert first["params"]["prompt"] == ["flat a red fox", "flat a house"]
    assert first["params"]["num_images_per_prompt"] == 2 and first["params"]["num_inference_steps"] == 2
    assert first["params"]["generator"]["seed"] == [5, 6, 5, 6]
    assert (second["params"]["prompt"], second["params"]["negative_prompt"]) == ("an apple", "blurry")
    images = {row["step"]: row for row in history if any("Generated-Image" in key for key in row)}
    captions = {step: row[f"Generated-Image/Pipeline-Call-{step}.captions"] for step, row in images.items()}
    assert captions == {1: ["flat a red fox"] * 2 + ["flat a house"] * 2, 2: ["an apple"]}
    results = table_of(file.parent, "Result-Table/Pipeline-Call-1")
    assert results["columns"] == RESULT_COLUMNS == ["Prompt", "Negative-Prompt", "Generated-Image"]
    assert [row[0] for row in results["data"]] == ["flat a red fox"] * 2 + ["flat a house"] * 2
    written = images[1]["Generated-Image/Pipeline-Call-1.filenames"]
    for path, one in zip(written, batch, strict=True):
        assert np.array_equal(pixels(file.parent / "files" / path), np.asarray(one.image))
    settings = table_of(file.parent, "Settings-Table/Pipeline-Call-1")
    assert settings["columns"] == list(SETTINGS_COLUMNS)
    assert [row[:3] for row in settings["data"]][1:3] == [[6, "a red fox", "Flat"], [5, "a house", "Flat"]]
    times = [(row["step"], row["Generation/seconds"]) for row in history if "Generation/seconds" in row]
    assert times == [(1, 6), (2, 1.5)]


@pytest.mark.slow
def test_trackio_gets_the_same_from_the_command_line(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    arguments = ["a red fox", "--model", str(tiny_model), "--seed", "5", "--num-images", "2", "--output", "out/"]
    small = ["--steps", "2", "--width", "64", "--height", "64"]
    # In a process of its own, since trackio reads TRACKIO_DIR as it is imported.
    words = [sys.executable, "-m", "pixart", "generate", *arguments, *small, "--track", "trackio"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/a-red-fox-5.png", "out/a-red-fox-6.png"]
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; (run,) = S.get_runs('pixart');"
        "print(json.dumps(S.get_logs('pixart', run)))"
    )
    rows = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    merged = {key: value for row in rows for key, value in row.items()}
    assert merged["workflow"]["params"]["generator"]["seed"] == [5, 6]
    assert merged["Generation/images"] == 2 and merged["Generation/seconds"] > 0
    assert [merged[f"Generated-Image/Pipeline-Call-1/{number}"]["caption"] for number in (0, 1)] == ["a red fox"] * 2
    results = merged["Result-Table/Pipeline-Call-1"]["_value"]
    assert [(row["Prompt"], row["Negative-Prompt"]) for row in results] == [("a red fox", "")] * 2
    assert list(results[0]) == RESULT_COLUMNS
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 4
    assert main(["generate", *arguments, *small, "--track", "mlflow"]) == 2
    assert "mlflow" in capsys.readouterr().err


def no_quota(**settings):
    raise SystemExit("no quota left")


def test_a_service_that_fails_does_not_stop_the_generation(tiny_model, tmp_path, monkeypatch, capsys):
    fake_wandb(monkeypatch, no_quota)
    monkeypatch.chdir(tmp_path)
    arguments = ["a fox", "--model", str(tiny_model), "--seed", "3", "--steps", "2", "--width", "64", "--height", "64"]
    assert main(["generate", *arguments, "--track", "wandb"]) == 0
    out, err = capsys.readouterr()
    assert out == "a-fox-3.png\n" and Path("a-fox-3.png").is_file()
    assert "no quota left" in err and "Traceback" not in err


def test_tensorboard_is_not_for_generations(tmp_path):
    with pytest.raises(UsageError):
        GenerationTracker("tensorboard", tmp_path)


@pytest.mark.slow
def test_wandbs_own_autolog_works_with_stock_diffusers_on_our_folder(tiny_model, tmp_path):
    """In a process of its own, since it patches Diffusers: here only this pipeline, as importing all takes a minute."""
    code = (
        "import sys, torch, wandb\n"
        "from diffusers import PixArtAlphaPipeline\n"
        "from wandb.integration.diffusers import autolog\n"
        "autolog._patch_api.symbols = ['PixArtAlphaPipeline.__call__']\n"
        "autolog(init=dict(project='pixart-alpha', dir=sys.argv[2], mode='offline'))\n"
        "pipe = PixArtAlphaPipeline.from_pretrained(sys.argv[1])\n"
        "pipe('a red fox', negative_prompt='blurry', width=256, height=256, num_inference_steps=2,\n"
        "     generator=torch.Generator().manual_seed(3), clean_caption=False)\n"
        "wandb.finish()\n"
    )
    environment = os.environ | {"WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history, config = read_wandb(file)
    (call,) = json.loads(config["workflow"])
    assert (call["stage"], call["pipeline"]["pipeline-name"]) == ("Pipeline-Call-1", "PixArtAlphaPipeline")
    assert (call["params"]["prompt"], call["params"]["generator"]["seed"]) == ("a red fox", 3)
    assert any(key.startswith("Generated-Image/Pipeline-Call-1") for row in history for key in row)
    results = table_of(file.parent, "Result-Table/Pipeline-Call-1")
    assert results["columns"] == RESULT_COLUMNS
    assert [row[:2] for row in results["data"]] == [["a red fox", "blurry"]]
    (written,) = file.parent.glob("files/media/images/Generated-Image/Pipeline-Call-1_*.png")
    assert pixels(written).shape == (256, 256, 3)
