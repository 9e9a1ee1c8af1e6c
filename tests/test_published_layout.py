"""A folder as PixArt-alpha/PixArt-XL-2-1024-MS is published, tiny: the old class name, T5 in shards, `spiece.model`
only, micro-conditions, an autoencoder of 4 channels. Drawn against stock Diffusers."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from test_sentencepiece import train_sentencepiece

import pixart
from pixart.cli import main
from pixart.diffusion.noise import noise_stream

PROMPT = "An astronaut riding a green horse; photo, 35 mm"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    from diffusers import AutoencoderKL, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("published") / "PixArt"
    write_tiny_model(folder, eps=True)
    for part in ("text_encoder", "tokenizer", "transformer", "vae"):
        shutil.rmtree(folder / part)
    torch.manual_seed(3)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    encoder = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=32,
        sample_size=128,
    )
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.attn2.to_out[0].weight *= 8
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        norm_num_groups=4,
        sample_size=512,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    train_sentencepiece(folder / "tokenizer")
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_ids": 0}))
    name(folder, "Transformer2DModel")
    (folder / "styles.json").unlink()
    return folder


def name(folder, transformer: str) -> None:
    """Call the transformer's class so, in both places."""
    for path, key, value in (
        (folder / "model_index.json", "transformer", ["diffusers", transformer]),
        (folder / "transformer" / "config.json", "_class_name", transformer),
    ):
        changes = {key: value}
        if key == "transformer":
            changes |= {
                "text_encoder": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "T5Tokenizer"],
            }
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_published_layout_draws_what_stock_diffusers_draws(published, tmp_path):
    from diffusers import PixArtAlphaPipeline

    assert len(list((published / "text_encoder").glob("*.safetensors"))) > 1
    stock_folder = shutil.copytree(published, tmp_path / "stock")
    name(stock_folder, "PixArtTransformer2DModel")
    stock = PixArtAlphaPipeline.from_pretrained(stock_folder)
    stock.set_progress_bar_config(disable=True)
    ours = pixart.Pipeline.from_pretrained(published, dtype="float32")
    assert (ours.folder.native_size, ours.folder.max_tokens) == (1024, 120)
    assert ours.folder.transformer["use_additional_conditions"]
    size = {"width": 96, "height": 64}
    drawn = ours(PROMPT, negative_prompt="a blue hat", seed=7, steps=3, binning=False, **size).images[0]
    expected = stock(
        PROMPT,
        negative_prompt="a blue hat",
        num_inference_steps=3,
        guidance_scale=4.5,
        latents=torch.from_numpy(noise_stream(7, (4, 8, 12))())[None],
        use_resolution_binning=False,
        clean_caption=False,
        **size,
    ).images[0]
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(expected).astype(int)).max() <= 2
    assert np.asarray(drawn).std() > 1


def test_the_published_layout_goes_to_an_official_file_and_back(published, tmp_path, capsys):
    official = tmp_path / "PixArt-XL-2-1024-MS.pth"
    assert main(["convert", str(published), str(official), "--to", "official"]) == 0
    assert "no null caption" in capsys.readouterr().err
    draw = {"seed": 1, "steps": 2, "width": 64, "height": 64, "binning": False}
    theirs = pixart.Pipeline.from_pretrained(published)(PROMPT, **draw).images[0]
    ours = pixart.Pipeline.from_pretrained(official, parts=published, num_heads=2)(PROMPT, **draw).images[0]
    assert theirs.tobytes() == ours.tobytes()
