"""Compiled blocks: one graph for each size, none for another prompt or number of images, and adapters still act."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_batches import psnr
from test_model import TINY, randomise, relative

import pixart
from pixart.checkpoints.adapters import check_loras
from pixart.model.pixart import Block, PixArt, TextContext
from pixart.runtime.compiled import compile_blocks

# The same layers of each block, as trainers write them: blocks with others are other graphs.
LORA_LAYERS = {f"transformer_blocks.{n}.{layer}": shape for n in (0, 1) for layer, shape in
               (("attn1.to_q", (32, 32)), ("ff.net.2", (32, 128)))}  # fmt: skip
TEXT_LENGTH = 24


def write_lora(file, layers):
    rng, state = torch.Generator().manual_seed(6), {}
    for layer, (rows, columns) in layers.items():
        state[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, columns, generator=rng)
        state[f"transformer.{layer}.lora_B.weight"] = 0.1 * torch.randn(rows, 4, generator=rng)
    save_file(state, file)
    return file


@torch.inference_mode()
def predicted(model: PixArt, rows: int, side: int) -> torch.Tensor:
    """Of texts of other lengths, padded as a compiled denoiser gets them."""
    config, rng = model.config, torch.Generator().manual_seed(rows)
    x_t = torch.randn(rows, config.in_channels, side, side, generator=rng)
    lengths = [2 + 5 * row % 20 for row in range(rows)]
    texts = [torch.randn(1, length, config.text_dim, generator=rng) for length in lengths]
    context = TextContext.together([model.encode_text(text, None) for text in texts], TEXT_LENGTH)
    assert context.keys_and_values[0][0].shape[2] == TEXT_LENGTH and context.mask is not None
    return model.denoise(x_t, model.embed_timestep(torch.linspace(10, 990, rows)), context)


@pytest.fixture(autouse=True)
def fresh():
    """No graphs of other tests, and none left for them."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def test_a_block_breaks_no_graph_and_compiles_once_for_each_size():
    """By torch's tracer, without a compiler, since that takes a minute; torch alone would allow 1 size here, and 8."""
    model = PixArt(TINY).requires_grad_(False).eval()
    randomise(model)
    sizes = (4, 6)
    expected = {(rows, side): predicted(model, rows, side) for side in sizes for rows in (2, 3, 8)}
    with torch._dynamo.config.patch(recompile_limit=1):
        compile_blocks(model.blocks, backend="eager")
        for (rows, side), image in expected.items():
            assert relative(predicted(model, rows, side), image) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(sizes)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_a_compiled_pipeline_gives_the_same_images_with_and_without_adapters(tiny_model, tmp_path):
    small = {"seed": 3, "width": 64, "height": 64, "steps": 2, "binning": False}
    lora = write_lora(tmp_path / "lora.safetensors", LORA_LAYERS)
    plain, compiled = (
        pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32", device="cpu", compile=each)
        for each in (False, True)
    )
    assert isinstance(compiled.networks.denoiser.blocks[0], Block)
    for loras in ([], [lora]):
        plain.set_loras(loras)
        compiled.set_loras(loras)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for prompts, count in ((["a red apple"], 1), (["a green fox and a black house", "a red apple"], 2)):
                expected, found = (pipe(prompts, num_images=count, **small).images for pipe in (plain, compiled))
                assert min(map(psnr, expected, found)) > 45
    without = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32", device="cpu")
    assert psnr(without("a red apple", **small).images[0], plain("a red apple", **small).images[0]) < 35
    assert check_loras(plain.folder, [lora])[0].adapter.layers and np.asarray(found[0]).std() > 20
