"""The promises of sampling: stock Diffusers gives the same image, settings are kept, and bad requests are refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_graphs_into, write_tiny_model

import pixart
from pixart.checkpoints.styles import Style
from pixart.diffusion.noise import initial_noise
from pixart.encoders.text import TextEncoder
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.image_files import parameters_text, pixel_hash, plan_output, read_settings, slug, write_image
from pixart.pipeline.prompts import apply_style
from pixart.pipeline.request import make_request

SMALL = {"width": 64, "height": 64, "steps": 3}


@pytest.fixture(scope="module", params=["torch", "onnx"])
def pipe(request, tiny_model_with_graphs):
    """Every promise of sampling holds for both engines."""
    return pixart.Pipeline.from_pretrained(tiny_model_with_graphs, engine=request.param, dtype="float32")


@pytest.fixture(scope="module")
def torch_pipe(tiny_model):
    return pixart.Pipeline.from_pretrained(tiny_model, dtype="float32")


def same(first, second) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def open_stock(folder):
    from diffusers import PixArtAlphaPipeline

    stock = PixArtAlphaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return stock


def largest_difference(pipe, stock, prompt, negative="", width=256, height=256) -> int:
    """Between our picture and stock Diffusers', from the same noise, in steps of 255."""
    theirs = stock(
        prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        latents=torch.from_numpy(initial_noise(7, (8, height // 8, width // 8)))[None],
        clean_caption=False,
        use_resolution_binning=False,
    ).images[0]
    ours = pipe(prompt, negative_prompt=negative, seed=7, width=width, height=height).images[0]
    assert ours.size == (width, height)
    assert np.asarray(ours).std() > 20, "a grey image would prove nothing"
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())


@pytest.mark.parametrize(("width", "height"), [(256, 256), (128, 128), (192, 64)])
@pytest.mark.parametrize(("prompt", "negative"), [("A red Apple, white ", ""), ("green fox " * 12, "blurry house")])
def test_stock_diffusers_gives_our_image(pipe, tiny_model, width, height, prompt, negative):
    assert largest_difference(pipe, open_stock(tiny_model), prompt, negative, width, height) <= 2


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_stock_diffusers_gives_our_image_of_an_eps_model_with_learned_variance(tmp_path, engine):
    write_tiny_model(tmp_path / "eps", eps=True)
    write_graphs_into(tmp_path / "eps")
    pipe = pixart.Pipeline.from_pretrained(tmp_path / "eps", engine=engine, dtype="float32")
    assert largest_difference(pipe, open_stock(tmp_path / "eps"), "a red apple", "blurry") <= 2


def test_the_folder_that_we_write_in_half_precision_generates_the_same_in_stock_diffusers(
    torch_pipe, tiny_model, tmp_path
):
    from pixart.checkpoints.diffusers import load_transformer
    from pixart.checkpoints.folder import write_model_folder

    transformer = load_transformer(tiny_model / "transformer")
    write_model_folder(
        tmp_path / "half",
        transformer_state=transformer.state_dict(),
        config=transformer.config,
        vae=torch_pipe.networks.decoder.model,
        text_encoder_folder=tiny_model / "text_encoder",
        tokenizer_folder=tiny_model / "tokenizer",
        dtype=torch.float16,
        styles=None,
    )
    half = pixart.Pipeline.from_pretrained(tmp_path / "half", dtype="float32")
    stock = open_stock(tmp_path / "half")
    assert largest_difference(half, stock, "a red apple") <= 2
    assert stock("a red apple", num_inference_steps=2).images[0].size == (256, 256)


def test_an_image_has_the_same_bytes_after_a_restart(pipe):
    here = pipe("a red apple", seed=3, **SMALL)
    script = (
        "import pixart, sys\n"
        "pipe = pixart.Pipeline.from_pretrained(sys.argv[1], engine=sys.argv[2], dtype='float32')\n"
        "pipe('a fox', seed=1, width=96, height=64, steps=2)\n"
        "print(pipe('a red apple', seed=3, width=64, height=64, steps=3).settings[0]['pixels_sha256'])"
    )
    command = [sys.executable, "-c", script, pipe.folder.path, pipe.networks.name]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here.settings[0]["pixels_sha256"] == pixel_hash(here.images[0])


def test_every_setting_moves_the_image(pipe):
    base = {"prompt": "a red apple", "seed": 3, **SMALL}
    first = pipe(**base).images[0]
    for change in (
        {"prompt": "a green fox"},
        {"seed": 4},
        {"steps": 4},
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"sampler": "euler"},
        {"negative_prompt": "blurry"},
        {"style": "3D"},
        {"width": 80},
    ):
        assert not same(first, pipe(**{**base, **change}).images[0]), change


def test_guidance_zero_is_unconditional_and_capitals_do_not_matter(pipe):
    empty, zero = (pipe(text, seed=3, guidance_scale=scale, **SMALL) for text, scale in (("", 4.5), ("a fox", 0.0)))
    assert np.abs(np.asarray(empty.images[0], int) - np.asarray(zero.images[0], int)).max() <= 1
    assert same(pipe("A Red APPLE ", seed=3, **SMALL).images[0], pipe("a red apple", seed=3, **SMALL).images[0])


def test_empty_prompt_generates_and_says_so(pipe):
    for prompt in ("", "  \n"):
        result = pipe(prompt, seed=3, **SMALL)
        assert len(result.images) == 1
        assert any("empty" in notice for notice in result.notices)
    assert pipe("a fox", seed=3, **SMALL).notices == []
    assert len(pipe(" ", style="3D", seed=3, **SMALL).notices) == 1


def test_a_style_fills_its_template(pipe):
    styled = pipe("a red apple", style="flat", negative_prompt="black", seed=3, **SMALL)
    by_hand = pipe("flat a red apple", negative_prompt="blurry, black", seed=3, **SMALL)
    assert same(styled.images[0], by_hand.images[0])
    assert styled.settings[0]["prompt"] == "a red apple"
    assert styled.settings[0]["style"] == "Flat"
    assert styled.settings[0]["resolved_prompt"] == "flat a red apple"


def test_cut_words_are_named_and_the_rest_still_counts(pipe):
    prompt = "red apple " * 58 + "green fox house"  # 119 words and two special tokens: one word too many
    result = pipe(prompt, seed=3, **SMALL)
    (notice,) = result.notices
    assert "120 tokens" in notice
    assert notice.endswith('"house"')
    assert same(result.images[0], pipe("red apple " * 58 + "green fox", seed=3, **SMALL).images[0])
    long_negative = pipe("a fox", negative_prompt=prompt, seed=3, **SMALL)
    assert "negative prompt" in long_negative.notices[0]
    several = pipe(["a fox", "a house", "a red apple"], negative_prompt=prompt, seed=3, **SMALL)
    assert several.notices == long_negative.notices
    assert same(several.images[0], long_negative.images[0])


def test_what_cannot_have_an_effect_is_said(pipe):
    (notice,) = pipe("a caf\u00e9 with a \U0001f98a", seed=3, **SMALL).notices
    assert notice.startswith('The text encoder does not know "\U0001f98a", and reads it as an unknown word')
    (notice,) = pipe("a fox", negative_prompt="blue", guidance_scale=1, seed=3, **SMALL).notices
    assert 'the negative prompt "blue" changes nothing' in notice
    assert pipe("a fox", negative_prompt="blue", seed=3, **SMALL).notices == []


def test_a_word_cut_in_its_middle_is_named_whole(tiny_model):
    encoder = TextEncoder(tiny_model / "text_encoder", tiny_model / "tokenizer", "BertModel")
    ids, cut = encoder.tokenize("red " * 116 + "xyzzy plugh")
    assert len(ids) == 120
    assert ids[-1] == 3
    assert cut == "xyzzy plugh"


def test_texts_are_padded_by_their_own_length(tiny_model):
    encoder = TextEncoder(tiny_model / "text_encoder", tiny_model / "tokenizer", "BertModel")
    for words, length in ((0, 16), (14, 16), (15, 32), (118, 128), (300, 128)):
        text = encoder.encode("red " * words)
        assert text.states.shape == (1, length, 32)
        assert text.states.dtype == torch.float32
        assert int(text.mask.sum()) == min(words + 2, 120)
    short = encoder.encode("a red fox")
    stock = encoder.model(
        input_ids=torch.tensor([encoder.tokenize("a red fox")[0]]), attention_mask=torch.ones(1, 5, dtype=torch.int64)
    )[0]
    torch.testing.assert_close(short.states[:, :5], stock, atol=1e-5, rtol=1e-5)


def test_a_t5_encoder_as_in_the_released_models(tiny_model, tmp_path):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path)
    encoder = TextEncoder(tmp_path, tiny_model / "tokenizer", "T5EncoderModel")
    assert encoder.encode("red " * 300).states.shape == (1, 128, 32)
    with pytest.raises(PixArtError, match="is a CLIPTextModel; pixart reads BertModel and T5EncoderModel"):
        TextEncoder(tmp_path, tiny_model / "tokenizer", "CLIPTextModel")


def test_the_caller_sees_every_step_and_can_stop(pipe):
    seen = []
    pipe("a fox", seed=1, num_images=2, on_step=lambda picture, step: seen.append((picture, step.index)), **SMALL)
    assert sorted(seen) == [(picture, step) for picture in range(2) for step in range(3)]

    def stop(picture, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a fox", seed=1, on_step=stop, **SMALL)
    assert len(pipe("a fox", seed=1, **SMALL).images) == 1


def test_sampling_leaves_training_alone(torch_pipe):
    pipe = torch_pipe
    found = pipe.generate(make_request(pipe.folder, "a fox", seed=1, num_images=2, **SMALL))
    next(found)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    # Training may draw samples at its own resolution; what the network caches meanwhile must not stop gradients.
    from pixart.model.pixart import PixArt

    model = PixArt(pipe.networks.denoiser.config)
    text = pipe.networks.text_encoder.encode("a fox")
    model(torch.randn(1, 8, 8, 8), torch.tensor([500]), text.states.clone(), text.mask.clone()).sum().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0


def test_a_random_seed_is_reported_and_can_be_used_again(pipe):
    result = pipe("a fox", **SMALL)
    assert same(result.images[0], pipe("a fox", seed=result.seeds[0], **SMALL).images[0])
    assert len({pipe("a fox", **{**SMALL, "steps": 1}).seeds[0] for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "change",
    [
        {"width": 100},
        {"height": 8},
        {"width": 10**9},
        {"width": 64.0},
        {"steps": 0},
        {"steps": -3},
        {"steps": True},
        {"num_images": 0},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": -1},
        {"guidance_scale": 1e38},
        {"guidance_interval": (300,)},
        {"guidance_interval": (800, 300)},
        {"guidance_interval": (-1, 300)},
        {"guidance_rescale": 1.5},
        {"guidance_channels": 9},
        {"seed": -2},
        {"seed": 2**32},
        {"seed": 2**32 - 2, "num_images": 3},
        {"style": "3-D"},
        {"style": 7},
        {"style": "x" * 100_000},
        {"sampler": "dpm++"},
        {"sampler": ["euler"]},
        {"sampler": "lcm"},  # for eps models
        {"null_text": "caption"},  # this model has none
        {"prompt": []},
        {"prompt": [7]},
        {"prompt": 7},
        {"prompt": "x" * 20_001},
        {"negative_prompt": "\ud800"},
    ],
)
def test_bad_requests_are_refused_in_one_short_sentence(pipe, change):
    with pytest.raises(UsageError) as caught:
        pipe(**{"prompt": "a fox", "seed": 1, **SMALL, **change})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_defaults_come_from_the_model_folder(folder):
    (folder / "pixart.json").write_text(json.dumps({"steps": 2, "guidance_scale": 3.0, "sampler": "euler"}))
    settings = pixart.Pipeline.from_pretrained(folder)("a fox", seed=1).settings[0]
    assert (settings["steps"], settings["guidance_scale"], settings["sampler"]) == (2, 3.0, "euler")
    assert (settings["width"], settings["height"]) == (256, 256)


def test_numbers_that_are_not_finite_are_no_image(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(PixArtError, match="not finite"):
        pixart.Pipeline.from_pretrained(folder)("a fox", seed=1, **SMALL)


def test_image_files_hold_every_setting(pipe, tmp_path):
    result = pipe('a "red" fox: {prompt}', negative_prompt="häßlich", seed=2, **SMALL)
    path = write_image(result.images[0], result.settings[0], tmp_path / "fox.png")
    settings = read_settings(path)
    assert settings == result.settings[0]
    assert settings["prompt"] == 'a "red" fox: {prompt}'
    assert settings["weights"].keys() == {
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    from PIL import Image

    with Image.open(path) as image:
        assert pixel_hash(image) == settings["pixels_sha256"]
        lines = image.text["parameters"].splitlines()
    assert lines[:2] == ['a "red" fox: {prompt}', "Negative prompt: häßlich"]
    assert lines[2].startswith("Steps: 3, Sampler: DPM++ 2M, CFG scale: 4.5, Seed: 2, Size: 64x64, Model hash: ")
    assert lines == parameters_text(settings).splitlines()


def test_a_written_file_is_never_overwritten(pipe, tmp_path):
    result = pipe("a fox", seed=2, **SMALL)
    paths = [write_image(result.images[0], result.settings[0], tmp_path / "fox.png") for _ in range(3)]
    assert [path.name for path in paths] == ["fox.png", "fox-1.png", "fox-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_jpeg_and_webp_hold_the_settings_too(pipe, tmp_path, suffix):
    from PIL import Image

    result = pipe("a fox, häßlich 苹果", seed=2, **SMALL)
    path = write_image(result.images[0], result.settings[0], tmp_path / f"fox{suffix}")
    assert read_settings(path) == result.settings[0]
    from pixart.pipeline.image_metadata import read_texts

    assert read_texts(path).texts["parameters"] == parameters_text(result.settings[0])
    with Image.open(path) as image:
        assert b"trainedAlgorithmicMedia" in image.info["xmp"]
        assert suffix == ".jpg" or pixel_hash(image) == result.settings[0]["pixels_sha256"]  # WebP is lossless
    bare = write_image(result.images[0], result.settings[0], tmp_path / f"bare{suffix}", metadata=False)
    with pytest.raises(PixArtError):
        read_settings(bare)
    if suffix == ".jpg":
        with pytest.raises(UsageError):
            write_image(result.images[0].convert("RGBA"), None, tmp_path / "fox.jpg")


def test_names_of_image_files(tmp_path):
    assert slug("A red apple, 3D") == "a-red-apple-3d"
    assert slug("../../etc/passwd\0\n") == "etc-passwd"
    assert slug(" ... ") == "image"
    assert slug("Äpfel 苹果") == "äpfel-苹果"
    assert len(slug("苹" * 500).encode()) <= 180
    assert str(plan_output(None, "a fox", 7)) == "a-fox-7.png"
    assert plan_output(tmp_path, "a fox", 7) == tmp_path / "a-fox-7.png"
    assert plan_output(tmp_path / "new", "a fox", 7) == tmp_path / "new" / "a-fox-7.png"
    assert plan_output(tmp_path / "my.PNG", "a fox", 7) == tmp_path / "my.PNG"
    assert str(plan_output("fox.webp", "a fox", 7)) == "fox.webp"
    for impossible in ("fox.gif", "fox\0.png"):
        with pytest.raises(UsageError):
            plan_output(impossible, "a fox", 7)


def test_style_templates_take_words_as_they_are():
    style = Style("{prompt}, in {0}", "ugly")
    assert apply_style("a {fox} {prompt}", "blurry", style) == ("a {fox} {prompt}, in {0}", "ugly, blurry")
    assert apply_style(" ", "", Style("{prompt}, 3D")) == ("3D", "")
    assert apply_style("a fox", "blurry", None) == ("a fox", "blurry")
