"""A tiny but real model folder: random weights that are not zero, written by stock Diffusers, not by our own code."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline, since a test box may be busy; the same examples in every run, so that a failure is there again.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

# Before torch and the Hugging Face libraries are imported: no test may touch the network, and two threads on these
# tiny networks only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = ["a", "red", "green", "apple", "fox", "house", "flat", "black", "and", "white", "blurry"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder as a user may have it: 256 px natively, 8 latent channels, styles. Do not change it; copy it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_with_graphs(tiny_model, tmp_path_factory) -> Path:
    """The same model with graphs for ONNX Runtime beside it. Do not change it; copy it."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("graphs") / "tiny")
    write_graphs_into(folder)
    return folder


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def write_graphs_into(folder: Path) -> None:
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.graphs.write import write_graphs

    write_graphs(open_model_folder(folder), check=lambda names: None)


def write_tiny_model(folder: Path, *, eps: bool = False) -> None:
    """`eps` makes it a DDPM model with learned variance, as the released PixArt-α is, instead of a flow model."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(20)
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.-")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + letter for letter in letters), *WORDS[1:]]
    tokenizer = Tokenizer(WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    text_encoder = BertModel(
        BertConfig(
            vocab_size=len(names),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            initializer_range=0.5,
        )
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=16 if eps else 8,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        patch_size=2,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=256,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        # As they are initialised, the text would hardly move the picture and the picture would be grey.
        for block in transformer.transformer_blocks:
            block.attn2.to_out[0].weight *= 8
        vae.decoder.conv_out.weight *= 4
    if eps:
        scheduler = DPMSolverMultistepScheduler(prediction_type="epsilon", beta_schedule="linear")
    else:
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    PixArtAlphaPipeline(
        tokenizer=BertTokenizerFast(tokenizer_object=tokenizer),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    ).save_pretrained(folder)
    styles = {
        "3D": {"prompt": "{prompt}, 3d", "negative_prompt": ""},
        "Flat": {"prompt": "flat {prompt}", "negative_prompt": "blurry"},
    }
    (folder / "styles.json").write_text(json.dumps(styles))
