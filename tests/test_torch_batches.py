"""Drawing in torch: the same bytes alone and together, packed and 8-bit products, blocks cached between steps."""

import copy

import numpy as np
import pytest
import torch
from test_model import randomise, relative

import pixart
from pixart.cli import main
from pixart.errors import UsageError
from pixart.model.packed import pack
from pixart.model.pixart import PixArt, PixArtConfig, TextContext
from pixart.sampling.block_cache import BlockCache
from pixart.pipeline.networks import check_block_cache
from pixart.sampling.same_bytes import same_bytes

SMALL = {"width": 64, "height": 64, "steps": 3}
LENGTHS = (3, 16, 7, 40, 1, 2, 33, 16)  # tokens of eight texts
CONFIGS = {
    "xl": PixArtConfig(in_channels=4, out_channels=8, width=1152, depth=1, num_heads=16, text_dim=32),
    "shipped": PixArtConfig(width=256, depth=2, num_heads=4, text_dim=32),
    "sigma": PixArtConfig(
        in_channels=4, width=96, depth=2, num_heads=3, text_dim=32, qk_norm=True, kv_compress=2, kv_compress_blocks=(1,)
    ),
}


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def network(name: str, dtype: torch.dtype) -> PixArt:
    return randomise(PixArt(CONFIGS[name])).requires_grad_(False).to(dtype)


def texts_for(model: PixArt, count: int) -> list[TextContext]:
    generator = torch.Generator().manual_seed(3)
    dtype = model.x_embedder.proj.weight.dtype
    states = [torch.randn(1, length, model.config.text_dim, generator=generator) for length in LENGTHS[:count]]
    return [model.encode_text(state.to(dtype), None) for state in states]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "threads"), [("xl", 1), ("shipped", 1), ("shipped", 2), ("sigma", 1)], indirect=["threads"]
)
@torch.inference_mode()
def test_pictures_with_other_texts_in_one_batch_have_the_bytes_that_each_has_alone(name, dtype, threads):
    model = network(name, dtype)
    pack(model)
    texts, modulation = texts_for(model, 8), model.embed_timestep(torch.tensor([321]))
    x_t = torch.randn(8, model.config.in_channels, 12, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    alone = torch.cat([model.denoise(x_t[i : i + 1], modulation, text) for i, text in enumerate(texts)])
    assert not torch.equal(alone[0], alone[1])
    for count in range(1, 9):
        together = model.denoise(x_t[:count], modulation, TextContext.together(texts[:count]))
        assert torch.equal(together, alone[:count]), f"{count} pictures"
    # Two texts for four pictures each, as guidance has it.
    guided = model.denoise(x_t, modulation, TextContext.together(texts[:2]))
    assert torch.equal(guided[:1], alone[:1])
    assert torch.equal(guided[7:], model.denoise(x_t[7:], modulation, texts[1]))


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_packed_products_are_those_of_the_plain_network(name):
    plain = network(name, torch.float32)
    packed = copy.deepcopy(plain)
    pack(packed)
    assert len(list(packed.parameters())) < len(list(plain.parameters()))  # something was packed
    x_t = torch.randn(2, plain.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    (text,) = texts_for(plain, 1)
    modulation = plain.embed_timestep(torch.tensor([500]))
    wanted = plain.denoise(x_t, modulation, text)
    assert relative(packed.denoise(x_t, modulation, text), wanted) < 1e-5

    def rounded(model: PixArt) -> torch.Tensor:
        modulation = model.embed_timestep(torch.tensor([500]))
        return model.denoise(x_t.bfloat16(), modulation, texts_for(model, 1)[0]).float()

    half = copy.deepcopy(plain).to(torch.bfloat16)
    eight = copy.deepcopy(half)
    plainly = relative(rounded(half), wanted)
    pack(half)
    pack(eight, int8=True)
    assert relative(rounded(half), wanted) < 1.5 * plainly
    assert plainly < relative(rounded(eight), wanted) < 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_picture_has_the_same_bytes_alone_and_among_others_in_other_dtypes(tiny_model, dtype):
    pipe = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype=dtype)
    prompts = ["a red apple", "a green fox and a black house, flat, white and red"]
    batch = pipe(prompts, seed=5, num_images=3, **SMALL)
    assert batch.settings[0]["dtype"] == dtype and batch.notices == []
    for index, image in enumerate(batch.images):
        alone = pipe(prompts[index // 3], seed=5 + index % 3, **SMALL).images[0]
        assert image.tobytes() == alone.tobytes()
    exact = pixart.Pipeline.from_pretrained(tiny_model, engine="torch")(prompts, seed=5, num_images=3, **SMALL)
    away = [
        np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() for a, b in zip(batch.images, exact.images, strict=True)
    ]
    assert 0 < np.mean(away) < 12


class BySizeOfBatch(torch.nn.Module):
    """A layer that breaks the promise: it rounds, so to say, by the number of pictures."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + 1e-3 * len(x)


def test_where_a_batch_would_change_bytes_pictures_are_drawn_one_by_one_and_it_is_said(tiny_model):
    pipe = pixart.Pipeline.from_pretrained(tiny_model, engine="torch")
    assert pipe.engine.pictures_at_once(2 * 16) > 1
    mlp = pipe.engine.denoiser.blocks[1].mlp
    pipe.engine.denoiser.blocks[1].mlp = BySizeOfBatch(mlp)
    batch = pipe("a red apple", seed=5, num_images=3, **SMALL)
    assert batch.notices == ["Pictures are drawn one by one: on this cpu in float32 a batch would change their bytes."]
    for index, image in enumerate(batch.images):
        assert image.tobytes() == pipe("a red apple", seed=5 + index, **SMALL).images[0].tobytes()


@torch.inference_mode()
def test_the_check_looks_at_both_kinds_of_blocks():
    model = network("sigma", torch.float32)
    pack(model)
    assert same_bytes(model, texts_for(model, 2), 3, 8, 8, None)
    model.blocks[1].attn.norm = BySizeOfBatch(model.blocks[1].attn.norm)  # only where keys are compressed
    assert not same_bytes(model, texts_for(model, 2), 3, 8, 8, None)


def test_cached_blocks_are_computed_at_the_first_two_steps_and_then_at_every_nth():
    cache, computed = BlockCache(3), []
    for step in range(10):

        def run(x, numbers, step=step):
            if 4 in numbers:
                computed.append(step)
            # Every block adds one, and block 4 what grows evenly from step to step: a line is carried on exactly.
            return x + len(numbers) + (10 * step if 4 in numbers else 0)

        assert cache.through(0.5, range(8), run) == 0.5 + 8 + 10 * step
    assert computed == [0, 1, 4, 7]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 28])
def test_every_block_is_computed_once_in_its_order(depth):
    ran: list[int] = []
    BlockCache(2).through(0.0, range(depth), lambda x, numbers: ran.extend(numbers) or x)
    assert ran == list(range(depth))


def test_a_block_cache_spares_blocks_and_is_in_the_settings(tiny_model):
    pipe = pixart.Pipeline.from_pretrained(tiny_model, engine="torch")
    ran = []
    pipe.engine.denoiser.blocks[1].register_forward_pre_hook(lambda block, inputs: ran.append(len(inputs[0])))
    pipe("a fox", seed=1, **SMALL | {"steps": 1})  # asks once whether it may draw together
    ran.clear()
    asked = {"seed": 1, "width": 64, "height": 64, "steps": 8}
    exact = pipe("a fox", **asked)
    assert len(ran) == 8 and exact.settings[0]["block_cache"] == 1
    ran.clear()
    fast = pipe("a fox", block_cache=3, **asked)
    assert len(ran) == 4 and fast.settings[0]["block_cache"] == 3  # steps 0, 1, 4, 7
    away = np.abs(np.asarray(fast.images[0], int) - np.asarray(exact.images[0], int)).mean()
    assert 0 < away < 12
    together = pipe("a fox", block_cache=3, num_images=3, **asked)
    assert together.images[0].tobytes() == fast.images[0].tobytes()
    # Where guidance ends the cache begins anew, since it holds what the blocks added for both texts.
    ran.clear()
    pipe("a fox", block_cache=8, guidance_interval=(500, 1000), **asked)
    assert ran == [2, 2, 1, 1]


def test_what_cannot_leave_blocks_out_says_so(tiny_model_with_graphs, capsys):
    with pytest.raises(UsageError, match="block cache needs --engine torch"):
        check_block_cache("onnx")
    drawn = pixart.Pipeline.from_pretrained(tiny_model_with_graphs)
    with pytest.raises(UsageError, match="The engine onnx computes every block"):
        drawn("a fox", block_cache=2, **SMALL)
    arguments = ["generate", "a fox", "--model", str(tiny_model_with_graphs), "--block-cache", "2"]
    assert main([*arguments, "--engine", "onnx"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
