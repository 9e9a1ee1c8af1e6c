"""Models that do not lie in one folder: official files with parts, transformers alone, LCM, Σ, and official habits."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import CONFIG
from test_official import official_state

import pixart
from pixart.checkpoints.model_folder import load_denoiser, open_model_folder
from pixart.checkpoints.official import NULL_CAPTION, POSITIONS, OfficialFile
from pixart.cli import main
from pixart.diffusion.guidance import guided
from pixart.diffusion.solvers import schedule_for
from pixart.errors import PixArtError, UsageError
from pixart.model.pixart import PixArtConfig
from pixart.pipeline.pipeline import Pipeline
from pixart.pipeline.request import make_request

SMALL = {"seed": 4, "steps": 2, "width": 64, "height": 64}
FLAGS = ("--seed", "4", "--steps", "2", "--width", "64", "--height", "64", "--json")
SIGMA = PixArtConfig(
    **{
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "text_dim": 32,
        "in_channels": 8,
        "out_channels": 16,
        "sample_size": 32,
    },
    interpolation_scale=0.5,
    qk_norm=True,
    kv_compress=2,
    kv_compress_blocks=(1,),
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A whole model that predicts eps, as the released ones do. Do not change it."""
    from conftest import write_tiny_model

    folder = tmp_path_factory.mktemp("parts") / "tiny"
    write_tiny_model(folder, eps=True)
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An official file with two sets of weights, and one of ComfyUI's kind."""
    folder = tmp_path_factory.mktemp("official")
    raw, ema = official_state(CONFIG), official_state(CONFIG, seed=1)
    torch.save({"state_dict": raw, "state_dict_ema": ema}, folder / "PixArt-XL-2-256x256.pth")
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in raw.items()}, folder / "comfy.safetensors")
    return folder


def draw(*arguments, **options) -> bytes:
    return Pipeline.from_pretrained(*arguments, **options)("a red fox", **SMALL).images[0].tobytes()


def test_official_files_draw_with_the_parts_of_another_folder(official, parts, tmp_path, capsys):
    pth = official / "PixArt-XL-2-256x256.pth"
    options = ["--to", "diffusers", "--parts", str(parts), "--num-heads", "2"]
    assert main(["convert", str(pth), str(tmp_path / "made"), *options]) == 0
    expected = draw(tmp_path / "made")
    assert draw(pth, parts=parts, num_heads=2) == expected
    assert draw(official / "comfy.safetensors", parts=parts, num_heads=2) == expected
    assert draw(tmp_path / "made" / "transformer", parts=parts) == expected
    assert draw(parts) != expected
    average = draw(pth, parts=parts, num_heads=2, ema=True)
    assert average != expected
    capsys.readouterr()
    options = ("--model", str(pth), "--parts", str(parts), "--num-heads", "2", "--ema", *FLAGS)
    assert main(["generate", "a red fox", *options, "--output", str(tmp_path / "a.png")]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["model"] == pth.name and "transformer/PixArt-XL-2-256x256.pth" in settings["weights"]
    assert settings["source"] == {
        "model": pth.name,
        "parts": "tiny",
        "ema": True,
        "num_heads": 2,
        "image_size": None,
        "revision": None,
        "text_encoder": None,
    }
    from PIL import Image

    assert Image.open(tmp_path / "a.png").tobytes() == average


def test_what_does_not_go_together_is_one_sentence(official, parts, tmp_path, capsys):
    pth, heads = str(official / "PixArt-XL-2-256x256.pth"), ("--num-heads", "2")
    for code, *arguments in (
        (2, "--model", pth, *heads),
        (2, "--model", str(parts), "--parts", str(parts)),
        (2, "--model", str(parts), "--ema"),
        (2, "--parts", str(parts)),
        (1, "--model", pth, "--parts", str(tmp_path / "no"), *heads),
        (2, "--model", pth, "--parts", str(parts), "--num-heads", "3"),
        (1, "--model", str(tmp_path / "no.pth")),
        (1, "--model", pth, "--parts", str(parts), *heads, "--engine", "onnx"),
    ):
        assert main(["generate", "a fox", *arguments]) == code, arguments
        assert capsys.readouterr().err.count("\n") == 1, arguments


def test_a_file_without_the_grid_is_sized_by_its_official_name_or_asked_for(tmp_path, parts):
    state = official_state(CONFIG)
    del state[POSITIONS]
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(UsageError, match="--image-size 256, 512, 1024 or 2048"):
        open_model_folder(tmp_path / "mine.safetensors", parts=parts, how=OfficialFile(num_heads=2))
    for name, side in (("PixArt-XL-2-512x512", 512), ("PixArt-XL-2-1024-MS", 1024), ("PixArt-Sigma-XL-2-2K-MS", 2048)):
        save_file(state, tmp_path / f"{name}.safetensors")
        named = open_model_folder(tmp_path / f"{name}.safetensors", parts=parts, how=OfficialFile(num_heads=2))
        assert named.native_size == side
    folder = open_model_folder(
        tmp_path / "mine.safetensors", parts=parts, how=OfficialFile(num_heads=2, image_size=256)
    )
    assert folder.native_size == 256


def test_an_lcm_folder_is_drawn_in_four_steps_without_guidance(parts, tmp_path):
    from diffusers import LCMScheduler

    folder = shutil.copytree(parts, tmp_path / "lcm")
    config = folder / "scheduler" / "scheduler_config.json"
    for noise in ({"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}, {}):
        theirs = LCMScheduler(**noise)
        theirs.save_pretrained(folder / "scheduler")
        opened = open_model_folder(folder)
        request = make_request(opened, "a fox")
        assert (request.sampler, request.steps, request.guidance_scale) == ("lcm", 4, 1.0)
        assert make_request(opened, "a fox", sampler="ddim").steps == 50
        theirs.set_timesteps(4)
        ours = schedule_for("lcm", opened.scheduler, 4)
        assert list(ours.timesteps) == theirs.timesteps.tolist()
        alphas = theirs.alphas_cumprod[theirs.timesteps] ** 0.5
        np.testing.assert_allclose(ours.alphas[:4], alphas.numpy(), rtol=1e-5)
    assert Pipeline.from_pretrained(folder)("a fox", seed=1, width=64, height=64).settings[0]["steps"] == 4
    plain = json.loads(config.read_text())
    for change in ({"original_inference_steps": 40}, {"prediction_type": "v_prediction"}, {"timestep_scaling": 1.0}):
        config.write_text(json.dumps(plain | change))
        with pytest.raises(PixArtError, match=f"scheduler_config.json: {next(iter(change))} is"):
            open_model_folder(folder)


def test_sigma_with_compressed_keys_draws_from_its_file_and_from_a_folder(parts, tmp_path, capsys):
    state = official_state(SIGMA, tokens=300)
    save_file(state, tmp_path / "sigma.safetensors")
    save_file(state | {"blocks.1.attn.sr.weight": -state["blocks.1.attn.sr.weight"]}, tmp_path / "other.safetensors")
    drawn = draw(tmp_path / "sigma.safetensors", parts=parts, num_heads=2)
    assert drawn != draw(tmp_path / "other.safetensors", parts=parts, num_heads=2)
    made = tmp_path / "made"
    options = ("--to", "diffusers", "--parts", str(parts), "--num-heads", "2")
    assert main(["convert", str(tmp_path / "sigma.safetensors"), str(made), *options]) == 0
    assert draw(made) == drawn
    _give_t5(made)
    pipe = Pipeline.from_pretrained(made)
    assert pipe.folder.max_tokens == pipe.networks.max_tokens == 300
    for words, cut in ((298, False), (310, True)):
        notices = " ".join(pipe(" ".join(["fox"] * words), **SMALL, binning=False).notices)
        assert ("the 300 tokens that the model reads" in notices) == cut
    capsys.readouterr()
    assert main(["convert", str(made), "--to", "onnx"]) == 1
    assert "--engine torch" in capsys.readouterr().err


def _give_t5(folder) -> None:
    """A tiny T5 in the place of the text encoder, which reads a text of any length."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 200}
    shutil.rmtree(folder / "text_encoder")
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["transformers", "T5EncoderModel"]}))


@torch.no_grad()
def test_the_null_caption_under_the_prompts_mask_is_what_the_official_code_asks(official, parts):
    folder = open_model_folder(official / "comfy.safetensors", parts=parts, how=OfficialFile(num_heads=2))
    assert folder.null_tokens == 120
    given = {"parts": parts, "num_heads": 2, "dtype": "float32", "device": "cpu"}
    pipe = Pipeline.from_pretrained(official / "comfy.safetensors", **given)
    text = pipe.networks.encode("a red fox")[0]
    x_t = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    caption = official_state(CONFIG)[NULL_CAPTION]
    model = load_denoiser(folder)
    length = sum(pipe.networks.text_encoder.tokenizer.padded("a red fox")[1])
    for whole, tokens in ((False, length), (True, 120)):
        null = pipe.networks.unconditional(text, whole)
        predicted = pipe.networks.denoise(x_t, [300], [text, null], [0, 0])[1:]
        # Tokens under the mask are taken out (PixArt.py), so the null caption's first ones remain.
        expected = model(x_t, torch.tensor([300]), caption[None, :tokens], torch.ones(1, tokens, dtype=torch.bool))
        assert (predicted - expected).norm() / expected.norm() < 1e-5


def test_official_habits_are_options_that_the_picture_remembers(official, parts, tmp_path, capsys):
    pipe = Pipeline.from_pretrained(official / "comfy.safetensors", parts=parts, num_heads=2)
    plain, own, whole, three = (
        pipe("a red fox", **SMALL, **options)
        for options in ({}, {"null_text": "caption"}, {"null_text": "caption-all"}, {"guidance_channels": 3})
    )
    assert len({result.images[0].tobytes() for result in (plain, own, whole, three)}) == 4
    assert [result.settings[0]["null_text"] for result in (plain, own, whole)] == ["encoded", "caption", "caption-all"]
    assert (plain.settings[0]["guidance_channels"], three.settings[0]["guidance_channels"]) == (8, 3)
    for options, words in (
        ({"null_text": "none"}, 'no null text "none"'),
        ({"null_text": "caption", "negative_prompt": "blurry"}, "stands where the negative prompt would"),
        ({"guidance_channels": 9}, "guided channels must be from 1 to"),
        ({"guidance_channels": 0}, "guided channels must be from 1 to"),
    ):
        with pytest.raises(UsageError, match=words):
            pipe("a red fox", **SMALL, **options)
    with pytest.raises(UsageError, match="holds no null caption"):
        pixart.Pipeline.from_pretrained(parts)("a fox", null_text="caption", **SMALL)
    options = ("--null-text", "caption", "--guidance-channels", "3", *FLAGS)
    model = ("--model", str(official / "comfy.safetensors"), "--parts", str(parts), "--num-heads", "2")
    assert main(["generate", "a red fox", *model, *options, "--output", str(tmp_path / "a.png")]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["null_text"], settings["guidance_channels"]) == ("caption", 3)
    again = ("--model", str(official / "comfy.safetensors"), "--parts", str(parts))
    assert main(["verify", str(tmp_path / "a.png"), *again]) == 0


def test_the_graphs_say_that_they_take_no_null_caption(tiny_model_with_graphs, tmp_path):
    folder = shutil.copytree(tiny_model_with_graphs, tmp_path / "model")
    save_file({NULL_CAPTION: torch.zeros(120, 32)}, folder / "transformer" / "null_caption.safetensors")
    with pytest.raises(UsageError):
        Pipeline.from_pretrained(folder, engine="onnx")("a fox", null_text="caption", **SMALL)
    # The command line knows in time, and takes torch.
    output = tmp_path / "a.png"
    assert (
        main(["generate", "a fox", "--model", str(folder), "--null-text", "caption", *FLAGS, "--output", str(output)])
        == 0
    )
    assert load_file(folder / "transformer" / "null_caption.safetensors") and output.is_file()


def test_guidance_on_three_channels_leaves_the_others_alone():
    generator = np.random.default_rng(0)
    conditional, null = generator.normal(size=(2, 1, 8, 4, 4))
    moved = guided(conditional, null, 4.5, 0.0, 3)
    np.testing.assert_allclose(moved[:, :3], null[:, :3] + 4.5 * (conditional[:, :3] - null[:, :3]))
    np.testing.assert_array_equal(moved[:, 3:], conditional[:, 3:])
