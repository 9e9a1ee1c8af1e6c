"""A model folder that is missing, damaged or not ours is refused, and the file named, most of it before torch loads."""

import json
import shutil

import pytest

import pixart
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.errors import PixArtError


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_missing_and_damaged_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PixArtError, match=name.split("/")[0]):
        pixart.Pipeline.from_pretrained(folder)
    if name != "tokenizer/tokenizer.json":  # only loading it tells whether it is whole
        with pytest.raises(PixArtError, match=name):
            open_model_folder(folder)
    (folder / name).unlink()
    with pytest.raises(PixArtError, match=name):
        open_model_folder(folder)


def test_other_damage_is_named(folder, tmp_path):
    with pytest.raises(PixArtError, match="nowhere"):
        open_model_folder(tmp_path / "nowhere")
    with pytest.raises(PixArtError, match="--parts"):
        open_model_folder(folder / "model_index.json")
    with pytest.raises(PixArtError, match="nowhere"):
        open_model_folder("nowhere\0")
    for name, text in (
        ("styles.json", '{"3D": {"prompt": "no hole"}}'),
        ("pixart.json", '{"steps": 0}'),
        ("pixart.json", '{"guidance_scale": NaN}'),
        ("model_index.json", "[]"),
        ("model_index.json", '{"text_encoder": 5}'),
        ("vae/config.json", '{"block_out_channels": 5}'),
        ("vae/config.json", '{"block_out_channels": []}'),
        ("scheduler/scheduler_config.json", '{"_class_name": "DPMSolverMultistepScheduler", "flow_shift": null}'),
    ):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(text)
        with pytest.raises(PixArtError, match=name):
            open_model_folder(folder)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PixArtError, match="pickle"):
        open_model_folder(folder)


@pytest.mark.parametrize(
    "change", [{"patch_size": 0}, {"num_layers": 0}, {"num_attention_heads": -2}, {"sample_size": "32"}]
)
def test_sizes_that_no_network_has_are_refused_before_loading(folder, change):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (name,) = change
    with pytest.raises(PixArtError, match=f"config.json.*{name}"):
        open_model_folder(folder)


def test_a_transformer_in_several_files_draws_the_same(folder, tmp_path):
    from diffusers import PixArtTransformer2DModel

    small = {"seed": 1, "steps": 2, "width": 64, "height": 64}
    one = pixart.Pipeline.from_pretrained(folder, engine="torch")("a fox", **small)
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer", max_shard_size="50KB")
    assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 1
    several = pixart.Pipeline.from_pretrained(folder, engine="torch")("a fox", **small)
    assert one.images[0].tobytes() == several.images[0].tobytes()
    assert main(["convert", str(folder), str(tmp_path / "one.pth"), "--to", "official"]) == 0
    lost = sorted((folder / "transformer").glob("*-of-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(PixArtError, match=lost.name):
        open_model_folder(folder)
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    for weight_map in ({}, {"proj_out.bias": "../vae/diffusion_pytorch_model.safetensors"}, 5):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(PixArtError, match="weight_map"):
            open_model_folder(folder)


@pytest.mark.parametrize("offsets", [["0", "4"], [0, None], 4, []])
def test_a_safetensors_header_of_other_types_is_named(folder, offsets):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(PixArtError, match=path.name):
        open_model_folder(folder)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(folder):
    from safetensors.torch import load_file, save_file

    for part, name in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        path = folder / part / f"{name}.safetensors"
        weights = load_file(path)
        lost = next(key for key in sorted(weights) if key.startswith(("encoder.layer", "decoder.conv_in")))
        save_file({key: value for key, value in weights.items() if key != lost}, path, metadata={"format": "pt"})
        with pytest.raises(PixArtError, match=lost):
            pixart.Pipeline.from_pretrained(folder)
        save_file(weights, path, metadata={"format": "pt"})


def test_no_folder_given_means_the_shipped_model(monkeypatch, tmp_path):
    monkeypatch.setattr("pixart.checkpoints.model_folder.DEFAULT_MODEL", tmp_path / "gone")
    with pytest.raises(PixArtError, match="gone"):
        pixart.Pipeline.from_pretrained()
