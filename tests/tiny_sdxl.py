"""A tiny StableDiffusionXLPipeline with random weights, made on the spot: another family than PixArt, 64 px."""

import json
from pathlib import Path


def write_tiny_sdxl(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(3)
    names = ["<|startoftext|>", "<|endoftext|>", *(chr(code) for code in range(97, 123))]
    names += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz,0123456789"]
    words = folder.parent / f"{folder.name}-words"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (words / "merges.txt").write_text("#version: 0.2\n")

    def tokenizer():
        return CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=16)

    def text_config():
        return CLIPTextConfig(
            vocab_size=len(names), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            projection_dim=32, max_position_embeddings=16, hidden_act="gelu", bos_token_id=0, eos_token_id=1,
            pad_token_id=1,
        )  # fmt: skip

    StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=32, in_channels=4, out_channels=4,
            norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80, cross_attention_dim=64,
        ),
        vae=AutoencoderKL(
            block_out_channels=[8, 8], in_channels=3, out_channels=3, latent_channels=4, sample_size=64,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
    ).save_pretrained(folder)  # fmt: skip
