"""`pixart info`: every kind of source is told, in lines and in JSON."""

import json

import torch
from hub_server import COMMIT, serve
from safetensors.torch import load_file, save_file
from test_convert import CONFIG, DIT
from test_official import VARIANTS, official_state

from pixart.checkpoints.diffusers import NULL_CAPTION_NAME
from pixart.checkpoints.hub import USERS_OFFLINE
from pixart.checkpoints.model_folder import open_model_folder
from pixart.checkpoints.official import NULL_CAPTION
from pixart.cli import main


def facts(capsys, *arguments) -> dict:
    assert main(["info", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_official_files_are_told_apart(tmp_path, capsys):
    for variant, config in VARIANTS.items():
        save_file(official_state(config, tokens=300 if "sigma" in variant else 120), tmp_path / "a.safetensors")
        said = facts(capsys, tmp_path / "a.safetensors")
        assert said["kind"] == "official file"
        assert said["family"] == ("PixArt-Σ" if "sigma" in variant else "PixArt-α")
        assert said["image_size"] == 8 * config.sample_size and said["micro_conditions"] == config.micro_conditions
        assert said["kv_compression"] == (2 if "compressed" in variant else None)
        assert said["null_caption"] == ("300 tokens" if "sigma" in variant else "120 tokens")
    assert main(["info", str(tmp_path / "a.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "qk norm            yes" in lines and "dtype              float32" in lines


def test_folders_are_told(folder, tmp_path, capsys):
    said = facts(capsys, folder)
    assert (said["kind"], said["tokens"], said["styles"]) == ("model folder", 120, ["3D", "Flat"])
    assert said["files"]["transformer/diffusion_pytorch_model.safetensors"] > 1000
    assert said["text_encoder"] == "BertModel" and said["graphs"] is False
    assert facts(capsys, folder / "transformer")["kind"] == "transformer folder"
    for wrong in (tmp_path / "no", tmp_path):
        assert main(["info", str(wrong)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_the_number_of_tokens_follows_the_folder(folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PixArtAlphaPipeline", "PixArtSigmaPipeline"))
    assert open_model_folder(folder).max_tokens == 300
    save_file({NULL_CAPTION: torch.zeros(77, 32)}, folder / "transformer" / NULL_CAPTION_NAME)
    assert open_model_folder(folder).max_tokens == 77


def test_hub_ids_are_told_from_their_small_files_alone(tiny_model, tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    with serve({"org/tiny": tiny_model}) as hub:
        # What the environment says, which huggingface_hub reads only as it is imported.
        monkeypatch.setenv(USERS_OFFLINE, "")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{") :])
        said = facts(capsys, "org/tiny")
        assert not any(path.endswith(".safetensors") for path in hub.asked)
        assert (said["kind"], said["hub_id"], said["revision"]) == ("hub model", "org/tiny", COMMIT)
        assert said["width"] == 32 and said["family"] == "PixArt-α"
        sizes = sum(path.stat().st_size for path in tiny_model.rglob("*.safetensors"))
        assert said["bytes_not_in_the_cache"] == sizes
        made = tmp_path / "made"
        assert main(["convert", "org/tiny", str(made), "--to", "diffusers"]) == 0
        assert main(["convert", "org/tiny", "--to", "onnx"]) == 2
        assert "pixart convert org/tiny FOLDER --to diffusers" in capsys.readouterr().err
        whole = facts(capsys, "org/tiny")
    assert whole["parameters"] == said["parameters"] and whole["tokens"] == 120
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert load_file(made / weights).keys() == load_file(tiny_model / weights).keys()


def test_official_files_with_parts_and_dits_are_told(tiny_model, tmp_path, capsys):
    from diffusers import DiTTransformer2DModel

    save_file(official_state(CONFIG), tmp_path / "a.safetensors")
    said = facts(capsys, tmp_path / "a.safetensors", "--num-heads", 2, "--parts", tiny_model)
    assert (said["kind"], said["text_encoder"], said["tokens"]) == ("official file", "BertModel", 120)
    DiTTransformer2DModel(**(DIT | {"num_layers": 1}), sample_size=16, num_embeds_ada_norm=10).save_pretrained(
        tmp_path / "dit"
    )
    said = facts(capsys, tmp_path / "dit")
    assert said["kind"].startswith("class-conditional DiT") and (said["classes"], said["depth"]) == (10, 1)
    assert facts(capsys)["styles"][0] == "3D"  # without a source: the shipped model
