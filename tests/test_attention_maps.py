"""Word attention: where in an image each word of its prompt was read, beside stock Diffusers."""

import numpy as np
import pytest
import torch
from PIL import Image

import pixart
from pixart.diffusion.noise import initial_noise
from pixart.errors import UsageError
from pixart.pipeline.attention_maps import generate_with_maps, overlay, torch_pipeline, words_of
from pixart.pipeline.request import make_request
from pixart.runtime.memory import Memory

PROMPT = "a red apple, flat"
SMALL = {"width": 64, "height": 96, "steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> pixart.Pipeline:
    return pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32")


def looked_at(pipeline, prompt=PROMPT, **settings):
    return generate_with_maps(pipeline, make_request(pipeline.folder, prompt, **(SMALL | settings)))


def stock_weights(folder, networks, prompt, x_t, timestep) -> np.ndarray:
    """Cross-attention as stock Diffusers computes it, of every block, (blocks, heads, N, L), and its mask, (L,)."""
    from diffusers import PixArtTransformer2DModel
    from diffusers.models.attention_processor import AttnProcessor

    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer", low_cpu_mem_usage=False).eval()
    transformer.set_attn_processor(AttnProcessor())  # the plain one, which computes its weights in the open
    seen = []
    for block in transformer.transformer_blocks:

        def kept(query, key, mask=None, compute=block.attn2.get_attention_scores):
            seen.append(compute(query, key, mask))
            return seen[-1]

        block.attn2.get_attention_scores = kept
    encoded = networks.text_encoder.encode(prompt)
    with torch.no_grad():
        transformer(
            torch.from_numpy(x_t)[None],
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask,
            timestep=torch.tensor([timestep]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    return np.stack([weights.numpy() for weights in seen])


def test_the_maps_are_the_softmax_that_stock_diffusers_computes(pipeline, tiny_model):
    _, maps = looked_at(pipeline, steps=1, negative_prompt="a much longer text than that of the prompt, blurry")
    assert maps.words == ("a", "red", "apple", "flat")
    assert maps.shares.shape == (4, 6, 4)  # 96 x 64 pixels are 6 rows and 4 columns of tokens
    noise = initial_noise(SMALL["seed"], (8, 12, 8))
    mean = stock_weights(tiny_model, pipeline.networks, PROMPT, noise, 1000).mean(axis=(0, 1))  # (N, L)
    for share, place in zip(maps.shares, (1, 2, 3, 5), strict=True):  # after [CLS]; 4 is the comma
        np.testing.assert_allclose(share.reshape(-1), mean[:, place], atol=1e-5)
    np.testing.assert_allclose(maps.rest.reshape(-1), mean[:, [0, 4, 6]].sum(axis=1), atol=1e-5)
    spread = np.abs(maps.shares - maps.shares.mean(axis=(1, 2), keepdims=True)).max()
    assert spread > 1e-3  # it is not the same all over


def test_words_and_rest_share_all_attention_at_every_place(pipeline):
    _, maps = looked_at(pipeline, "two red foxes, and a house")
    np.testing.assert_allclose(maps.shares.sum(axis=0) + maps.rest, 1, atol=1e-5)
    assert maps.words == ("two", "red", "foxes", "and", "a", "house")  # "foxes" in pieces: fo, ##x, ##e, ##s or so
    _, maps = looked_at(pipeline, "", steps=2)
    assert maps.words == () and maps.shares.shape == (0, 6, 4)
    np.testing.assert_allclose(maps.rest, 1, atol=1e-5)


def test_a_word_in_pieces_has_the_attention_of_all_of_them(pipeline):
    words, members = words_of(pipeline.networks.text_encoder.tokenizer, "  A Zebra's fox ")
    assert words == ("a", "zebra", "s", "fox")
    assert members == [[1], [2, 3, 4, 5, 6], [8], [9]]


def test_a_text_that_was_cut_has_the_words_that_were_read(pipeline):
    words, members = words_of(pipeline.networks.text_encoder.tokenizer, "fox " * 200)
    assert len(words) == 118  # of 120 tokens, two are the start and the end
    assert members[-1] == [118]


@pytest.mark.parametrize("memory", [Memory(), Memory(staged=True)])
def test_looking_changes_no_pixel_and_leaves_no_hook(pipeline, tiny_model, memory):
    looked = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32", memory=memory)
    alone = pipeline(PROMPT, **SMALL)
    generated, maps = looked_at(looked)
    assert alone.settings[0]["pixels_sha256"] == generated.settings["pixels_sha256"]
    np.testing.assert_array_equal(maps.shares, looked_at(pipeline)[1].shares)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_only_one_image_can_be_looked_into(pipeline):
    with pytest.raises(UsageError):
        looked_at(pipeline, num_images=2)


def test_what_onnx_generated_is_looked_at_by_torch(tiny_model_with_graphs, pipeline):
    with_graphs = pixart.Pipeline.from_pretrained(tiny_model_with_graphs, engine="onnx")
    again = torch_pipeline(with_graphs)
    assert again.networks.name == "torch" and torch_pipeline(pipeline) is pipeline
    np.testing.assert_allclose(looked_at(again)[1].shares, looked_at(pipeline)[1].shares, atol=1e-3)


def test_a_map_lies_over_the_image_where_the_word_was_read(pipeline):
    image = Image.new("RGB", (40, 20), "white")
    pixels = np.asarray(overlay(image, np.array([[0.0, 0.2]])))
    assert tuple(pixels[10, 2]) == (255, 255, 255)  # its lowest share leaves the image as it is
    assert pixels[10, 37, 2] < 150  # its highest is yellow
    assert overlay(image, np.ones((1, 1))).size == (40, 20)
