"""The glass box, without its page: the steps of a drawing, and where each word was read."""

import numpy as np
import pytest
import torch

import pixart
from pixart.errors import UsageError
from pixart.pipeline.attention_maps import attention_maps, torch_networks, words_of
from pixart.pipeline.request import make_request
from pixart.pipeline.trace import decode_steps, trace
from pixart.runtime.memory import Memory

PROMPT = "a red apple, flat"
SMALL = {"width": 64, "height": 96, "steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> pixart.Pipeline:
    return pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32")


def drawn(pipeline, prompt=PROMPT, **settings):
    return trace(pipeline, make_request(pipeline.folder, prompt, **(SMALL | settings)))


def stock_weights(folder, eye, prompt, x_t, timestep) -> np.ndarray:
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
    encoded = eye.text_encoder.encode(prompt)
    with torch.no_grad():
        transformer(
            torch.from_numpy(x_t)[None],
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask,
            timestep=torch.tensor([timestep]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    return np.stack([weights.numpy() for weights in seen])


@pytest.mark.parametrize("blocks", [None, [1]])
def test_the_maps_are_the_softmax_that_stock_diffusers_computes(pipeline, tiny_model, blocks):
    looked = drawn(pipeline)
    maps = attention_maps(pipeline.networks, looked, blocks=blocks)
    assert maps.words == ("a", "red", "apple", "flat")
    assert maps.shares.shape == (3, 4, 6, 4)  # 96 x 64 pixels are 6 rows and 4 columns of tokens
    places = {"a": 1, "red": 2, "apple": 3, "flat": 5}  # after [CLS]; 4 is the comma
    for step in range(3):
        weights = stock_weights(tiny_model, pipeline.networks, PROMPT, looked.x_t[step], looked.timesteps[step])
        mean = weights[blocks or [0, 1]].mean(axis=(0, 1))  # (N, L)
        for word, place in places.items():
            ours = maps.shares[step, maps.words.index(word)].reshape(-1)
            np.testing.assert_allclose(ours, mean[:, place], atol=1e-6)
        np.testing.assert_allclose(maps.rest[step].reshape(-1), mean[:, [0, 4, 6]].sum(axis=1), atol=1e-6)
    assert (
        np.abs(maps.shares - maps.shares.mean(axis=(2, 3), keepdims=True)).max() > 1e-3
    )  # it is not the same all over


def test_words_and_rest_share_all_attention_at_every_place(pipeline):
    maps = attention_maps(pipeline.networks, drawn(pipeline, "two red foxes, and a house"))
    np.testing.assert_allclose(maps.shares.sum(axis=1) + maps.rest, 1, atol=1e-5)
    assert maps.words == ("two", "red", "foxes", "and", "a", "house")  # "foxes" in pieces: fo, ##x, ##e, ##s or so


def test_a_word_in_pieces_has_the_attention_of_all_of_them(pipeline):
    words, members = words_of(pipeline.networks.text_encoder.tokenizer, "  A Zebra's fox ")
    assert words == ("a", "zebra", "s", "fox")
    assert members == [[1], [2, 3, 4, 5, 6], [8], [9]]


def test_a_text_that_was_cut_has_the_words_that_were_read(pipeline):
    words, members = words_of(pipeline.networks.text_encoder.tokenizer, "fox " * 200)
    assert len(words) == 118  # of 120 tokens, two are the start and the end
    assert members[-1] == [118]


def test_an_empty_prompt_has_no_words_and_all_attention_is_the_rest(pipeline):
    maps = attention_maps(pipeline.networks, drawn(pipeline, "", steps=2))
    assert maps.words == () and maps.shares.shape == (2, 0, 6, 4)
    np.testing.assert_allclose(maps.rest, 1, atol=1e-5)


def test_an_engine_with_one_part_in_memory_at_a_time_can_look_too(pipeline, tiny_model):
    staged = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32", memory=Memory(staged=True))
    there = attention_maps(pipeline.networks, drawn(pipeline, steps=2))
    np.testing.assert_array_equal(attention_maps(staged.networks, drawn(staged, steps=2)).shares, there.shares)


def test_a_block_that_is_not_there_is_refused(pipeline):
    with pytest.raises(UsageError, match="from 0 to 1"):
        attention_maps(pipeline.networks, drawn(pipeline, steps=2), blocks=[2])


@pytest.mark.parametrize("sampler", ["dpm-solver", "sa-solver"])
def test_looking_changes_no_byte_and_leaves_no_hook(pipeline, sampler):
    alone = pipeline(PROMPT, **SMALL, sampler=sampler)
    looked = drawn(pipeline, sampler=sampler)
    attention_maps(pipeline.networks, looked)
    again = pipeline(PROMPT, **SMALL, sampler=sampler)
    assert alone.images[0].tobytes() == looked.generated.image.tobytes() == again.images[0].tobytes()
    assert alone.settings[0]["pixels_sha256"] == looked.generated.settings["pixels_sha256"]
    assert not any(block.cross_attn._forward_pre_hooks for block in pipeline.networks.denoiser.blocks)


@pytest.mark.parametrize("sampler", ["dpm-solver", "sa-solver", "euler"])
def test_the_kept_x_t_is_what_the_network_was_shown(tiny_model, sampler):
    pipeline = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32")
    shown, denoise = [], pipeline.networks.denoiser.denoise

    def spy(x_t, *rest):
        shown.append(x_t[0].numpy().copy())
        return denoise(x_t, *rest)

    pipeline.networks.denoiser.denoise = spy
    looked = drawn(pipeline, sampler=sampler, guidance_scale=1)
    np.testing.assert_array_equal(np.stack(shown), looked.x_t)


def test_steps_become_pictures_and_the_last_belief_is_the_picture(pipeline):
    looked = drawn(pipeline)
    seen = []
    trace(pipeline, make_request(pipeline.folder, PROMPT, **SMALL), on_step=lambda index, step: seen.append(step.index))
    assert seen == [0, 1, 2]
    pictures = decode_steps(pipeline, looked.x_0)
    assert [picture.size for picture in pictures] == [(64, 96)] * 3
    assert pictures[0].tobytes() != pictures[1].tobytes()
    # The flow ends at sigma 0, where the solver is left with the last x_0 itself.
    assert pictures[2].tobytes() == looked.generated.image.tobytes()


def test_only_one_picture_can_be_looked_into(pipeline):
    with pytest.raises(UsageError, match="one image"):
        drawn(pipeline, num_images=2)


def test_what_onnx_drew_is_looked_at_by_torch(tiny_model_with_graphs, tiny_model):
    pipeline = pixart.Pipeline.from_pretrained(tiny_model_with_graphs, engine="onnx")
    looked = drawn(pipeline)
    eye = torch_networks(pipeline)
    assert eye.name == "torch" and pipeline.networks.name == "onnx"
    same = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32")
    assert torch_networks(same) is same.networks
    np.testing.assert_allclose(
        attention_maps(eye, looked).shares, attention_maps(same.networks, drawn(same)).shares, atol=1e-3
    )
