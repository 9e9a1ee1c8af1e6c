"""Models that are damaged or put together wrongly: one sentence that names the file and says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.errors import PixArtError

SMALL = {"seed": 1, "steps": 2, "width": 64, "height": 64}
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path, name: str, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in load_file(path).items()}
    state[name].view(-1)[0] = value
    save_file(state, path, metadata={"format": "pt"})


def refusal(folder, capsys) -> str:
    """What `pixart generate` says, which must be one line."""
    options = ("--model", str(folder), "--steps", "2", "--width", "64", "--height", "64", "--seed", "1")
    assert main(["generate", "a fox", *options]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    return [line for line in said.err.splitlines() if line.startswith("pixart: ")][-1]


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ("model_index.json", {"_class_name": None}, "PixArtAlphaPipeline"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
        ("model_index.json", {"transformer": ["diffusers", "UNet2DModel"]}, "UNet2DModel"),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "CLIPTextModel"),
        ("model_index.json", {"text_encoder": [None, None]}, "text_encoder"),
        ("text_encoder/config.json", {"model_type": "clip"}, "clip"),
        ("text_encoder/config.json", {"hidden_size": 48}, "48"),
        ("vae/config.json", {"_class_name": "VQModel"}, "VQModel"),
        ("vae/config.json", {"latent_channels": 16}, "16"),
        ("transformer/config.json", {"_class_name": "SomethingNew2DModel"}, "SomethingNew2DModel"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ],
)
def test_parts_of_other_kinds_are_refused_by_file(folder, capsys, file, changes, words):
    edit(folder / file, **changes)
    said = refusal(folder, capsys)
    assert str(folder / file) in said and words in said


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_pickle_in_the_clothes_of_safetensors_is_not_opened(folder, capsys, part):
    path = folder / part / WEIGHTS[part]
    torch.save(
        {name: tensor.clone() for name, tensor in load_file(path).items()}, path
    )  # no longer in the file's memory
    assert str(path) in refusal(folder, capsys)


def test_half_of_a_download_is_named(folder, capsys):
    path = folder / "vae" / WEIGHTS["vae"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    said = refusal(folder, capsys)
    assert str(path) in said
    shutil.rmtree(folder / "text_encoder")
    assert str(folder / "text_encoder" / "config.json") in refusal(folder, capsys)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize(("part", "name"), [("transformer", "proj_out.bias"), ("vae", "decoder.conv_in.weight")])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_give_no_image(tiny_model_with_graphs, tmp_path, part, name, engine, value):
    folder = shutil.copytree(tiny_model_with_graphs, tmp_path / "model")
    change_weights(folder / part / WEIGHTS[part], name, value)
    with pytest.raises(PixArtError) as caught:
        pixart.Pipeline.from_pretrained(folder, engine=engine)("a red fox", **SMALL)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_numbers_that_overflow_are_no_image(tiny_model_with_graphs, tmp_path, engine):
    folder = shutil.copytree(tiny_model_with_graphs, tmp_path / "model")
    for part, name in (("transformer", "proj_out.weight"), ("vae", "decoder.conv_out.bias")):
        path = folder / part / WEIGHTS[part]
        whole, state = path.read_bytes(), load_file(path)
        # Finite, all of them, and too large to go on with.
        for key in [name] if part == "transformer" else [key for key in state if key.startswith("decoder.")]:
            state[key] = torch.full_like(state[key], 3e38)
        save_file(state, path, metadata={"format": "pt"})
        with pytest.raises(PixArtError):
            pixart.Pipeline.from_pretrained(folder, engine=engine)("a fox", guidance_scale=7.0, **SMALL)
        path.write_bytes(whole)


def test_parts_that_are_not_whole_are_named_by_the_names_that_last(folder, tmp_path, capsys):
    from test_convert import CONFIG
    from test_official import official_state

    save_file(official_state(CONFIG), tmp_path / "a.safetensors")
    damaged = folder / "vae" / WEIGHTS["vae"]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    options = ("--to", "diffusers", "--num-heads", "2", "--parts", str(folder))
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "made"), *options]) == 1
    said = capsys.readouterr().err
    assert str(damaged) in said and ".part" not in said and not (tmp_path / "made").exists()


def test_a_missing_encoder_folder_is_said_to_be_missing(tmp_path):
    from pixart.checkpoints.folder import copy_text_encoder
    from pixart.data.features import weights_id

    for ask in (lambda: weights_id(tmp_path / "gone"), lambda: copy_text_encoder(tmp_path / "gone", tmp_path / "to")):
        with pytest.raises(PixArtError, match="gone is not there"):
            ask()
    assert open_model_folder().has_graphs
