"""A text encoder given in the place of the model's: one T5 file as ComfyUI users have it, or a folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published_layout import published  # noqa: F401  a fixture

import pixart
from pixart.checkpoints.hub import patterns
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.errors import PixArtError
from pixart.runtime.memory import Memory

SMALL = {"seed": 4, "steps": 2, "width": 64, "height": 64, "binning": False}
FLAGS = ("--seed", "4", "--steps", "2", "--size", "64x64", "--no-binning", "--dtype", "float32")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}


def t5_state(model) -> dict[str, torch.Tensor]:
    return {name: t for file in (model / "text_encoder").glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.fixture
def without(published, tmp_path):  # noqa: F811
    """The published layout without a text encoder, as Diffusers writes it."""
    folder = shutil.copytree(published, tmp_path / "without", ignore=shutil.ignore_patterns("text_encoder"))
    index = json.loads((folder / "model_index.json").read_text()) | {"text_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def image(model, **memory) -> np.ndarray:
    pipe = pixart.Pipeline.from_pretrained(model, dtype="float32", memory=Memory(**memory))
    return np.asarray(pipe("a red fox", **SMALL).images[0])


@pytest.mark.parametrize("name", DTYPES)
def test_one_file_gives_the_image_of_a_folder_with_the_same_numbers(published, without, tmp_path, name):  # noqa: F811
    state = {key: tensor.to(DTYPES[name]) for key, tensor in t5_state(published).items()}
    file = tmp_path / "clip" / f"t5xxl_{name}.safetensors"
    file.parent.mkdir()
    save_file(state, file)
    same = shutil.copytree(published, tmp_path / "same")
    for shard in (same / "text_encoder").glob("*.safetensors*"):
        shard.unlink()
    save_file({key: tensor.float() for key, tensor in state.items()}, same / "text_encoder" / "model.safetensors")
    expected = image(same)
    for mode in ("loaded", "streamed"):
        assert np.array_equal(image(without, text_encoder=file, text_encoder_mode=mode), expected)
    assert name != "fp8_e4m3fn" or not np.array_equal(expected, image(published))


def test_every_command_takes_it_and_the_image_names_it(published, without, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "t5xxl_fp16.safetensors"
    save_file({key: tensor.half() for key, tensor in t5_state(published).items()}, file)
    given = ["--model", str(without), "--text-encoder", str(file)]
    states, first = tmp_path / "states.safetensors", tmp_path / "a.png"
    assert main(["generate", "a red fox", *given, *FLAGS, "--json", "-o", str(first)]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["source"]["text_encoder"] == file.name and f"text_encoder/{file.name}" in settings["weights"]
    assert main(["encode", "a red fox", *given, "--output", str(states)]) == 0
    second = tmp_path / "b.png"
    assert main(["generate", *given, *FLAGS, "--text-states", str(states), "-o", str(second)]) == 0
    assert main(["verify", str(first), *given]) == 0
    for command in ("serve", "app"):  # which end here, for the text encoder's sake
        options = ["--text-encoder", str(tmp_path / "no.safetensors"), "--port", "0"]
        model = [str(without)] if command == "serve" else ["--model", str(without)]
        assert main([command, *model, *options]) == 1
        assert "no.safetensors" in capsys.readouterr().err
    # In the place of the model's own, which has graphs of another one
    own = image(published)
    assert np.array_equal(image(published, text_encoder=published / "text_encoder"), own)
    assert not np.array_equal(image(published, text_encoder=file, text_encoder_8bit=True), own)


def test_what_is_no_t5_is_refused_before_loading(published, without, tmp_path):  # noqa: F811
    state = t5_state(published)
    wide = {key: torch.zeros(100, 64) if key.startswith("shared") else tensor for key, tensor in state.items()}
    table = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    for name, tensors in (
        ("other", {"conv.weight": torch.zeros(2, 2)}),
        ("wide", wide),
        ("umt5", state | {table.format(1): state[table.format(0)].clone()}),
        ("int8", {key: tensor.to(torch.int8) for key, tensor in state.items()}),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(PixArtError, match=f"{name}.safetensors"):
            open_model_folder(without, text_encoder=tmp_path / f"{name}.safetensors")
    (tmp_path / "t5.gguf").write_bytes(b"GGUF" + bytes(100))
    for missing in ("t5.gguf", "no.safetensors", "clip"):
        (tmp_path / "clip").mkdir(exist_ok=True)
        with pytest.raises(PixArtError, match=missing):
            open_model_folder(without, text_encoder=tmp_path / missing)
    with pytest.raises(PixArtError, match="--text-encoder"):
        open_model_folder(without)


def test_the_text_encoder_of_a_hub_model_is_not_fetched_then():
    assert not any("text_encoder/model" in pattern for pattern in patterns("model without texts"))
    assert any("text_encoder/model" in pattern for pattern in patterns("model"))
    assert not any("text_encoder/model" in pattern for pattern in patterns("parts without texts"))
