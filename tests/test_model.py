"""The denoiser against stock Diffusers, its text mask, its fresh weights."""

import pytest
import torch

from pixart.checkpoints.diffusers import diffusers_config, to_diffusers_names
from pixart.errors import UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig

TINY = PixArtConfig(in_channels=4, out_channels=8, width=32, depth=2, num_heads=2, text_dim=12, sample_size=32)
SIZES = [(8, 8), (16, 16), (32, 32), (16, 24)]
SIZE = torch.tensor([[1024.0, 1024.0, 1.0], [512.0, 2048.0, 0.25], [1280.0, 768.0, 1.67]])


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every tensor random and not small, those that start at zero too, so that nothing can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def inputs(config: PixArtConfig, height: int, width: int, lengths: list[int]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    batch = len(lengths)
    x_t = torch.randn(batch, config.in_channels, height, width, generator=generator)
    timestep = torch.tensor([3.0, 499.5, 999.0, 775.0])[:batch]
    text = torch.randn(batch, max(lengths), config.text_dim, generator=generator)
    text_mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return x_t, timestep, text, text_mask


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        PixArtConfig(width=32, depth=2, num_heads=4, text_dim=12, sample_size=64),
        PixArtConfig(width=32, depth=1, num_heads=1, text_dim=12, sample_size=32, interpolation_scale=0.5),
        PixArtConfig(width=32, depth=1, num_heads=1, text_dim=12, sample_size=128),  # scale 2 by default
        PixArtConfig(width=48, depth=2, num_heads=2, text_dim=12, sample_size=128, micro_conditions=True),
    ],
    ids=["sample 32", "sample 64", "interpolation 0.5", "sample 128", "micro-conditions"],
)
@torch.no_grad()
def test_predicts_what_stock_diffusers_predicts(config):
    from diffusers import PixArtTransformer2DModel

    ours = randomise(PixArt(config))
    settings = {name: value for name, value in diffusers_config(config).items() if not name.startswith("_")}
    theirs = PixArtTransformer2DModel(**settings).eval()
    theirs.load_state_dict(to_diffusers_names(ours.state_dict(), config.depth))
    for height, width in SIZES:
        x_t, timestep, text, text_mask = inputs(config, height, width, [5, 9, 1])
        conditions = {"resolution": SIZE[:, :2], "aspect_ratio": SIZE[:, 2:]}
        expected = theirs(
            x_t,
            text,
            timestep,
            added_cond_kwargs=conditions,
            encoder_attention_mask=text_mask.long(),
            return_dict=False,
        )[0]
        prediction = ours(x_t, timestep, text, text_mask, SIZE if config.micro_conditions else None)
        assert prediction.shape == (3, config.out_channels, height, width)
        assert relative(prediction, expected) < 1e-5, (height, width)


@torch.no_grad()
def test_micro_conditions_matter_and_cannot_be_forgotten():
    config = PixArtConfig(width=48, depth=1, num_heads=2, text_dim=12, sample_size=128, micro_conditions=True)
    model = randomise(PixArt(config))
    arguments = inputs(config, 8, 8, [5, 9, 1])
    before = model(*arguments, SIZE)
    for column in range(3):
        other = SIZE.clone()
        other[:, column] *= 1.5
        assert relative(model(*arguments, other), before) > 1e-2
    with pytest.raises(ValueError):
        model(*arguments)
    with pytest.raises(UsageError):
        PixArtConfig(width=32, num_heads=2, micro_conditions=True)
    expected = {
        f"{name}_embedder.mlp.{i}.{part}" for name in ("csize", "ar") for i in (0, 2) for part in ("weight", "bias")
    }
    plain = PixArt(PixArtConfig(width=48, depth=1, num_heads=2, text_dim=12, sample_size=128))
    assert model.state_dict().keys() - plain.state_dict().keys() == expected  # the official names


@torch.no_grad()
def test_masked_tokens_have_no_effect_and_others_do():
    model = randomise(PixArt(TINY))
    x_t, timestep, text, text_mask = inputs(TINY, 8, 8, [5, 9])
    before = model(x_t, timestep, text, text_mask)
    noisy = torch.where(text_mask[..., None], text, 100 * torch.randn_like(text))
    assert torch.equal(before, model(x_t, timestep, noisy, text_mask))
    alone = model(x_t[:1], timestep[:1], text[:1, :5], text_mask[:1, :5])
    assert relative(alone, before[:1]) < 1e-5  # padding to a neighbour's length changes nothing
    assert relative(model(x_t, timestep, text.flip(0), text_mask), before) > 1e-2


def test_training_takes_the_same_attention_as_sampling():
    model = randomise(PixArt(TINY))
    arguments = inputs(TINY, 8, 8, [5, 9])
    training = model(*arguments)  # gradients on: the CPU's own attention
    with torch.no_grad():
        sampling = model(*arguments)  # gradients off: the fused kernel
    assert relative(training, sampling) < 1e-5
    training.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_text_read_once_serves_every_step():
    model = randomise(PixArt(TINY))
    x_t, timestep, text, text_mask = inputs(TINY, 8, 8, [5, 9])
    context = model.encode_text(text, text_mask)
    for step in (999.0, 3.0):
        now = torch.full_like(timestep, step)
        assert torch.equal(model.denoise(x_t, model.embed_timestep(now), context), model(x_t, now, text, text_mask))
        assert (
            relative(model.denoise(x_t, model.embed_timestep(now[:1]), context), model(x_t, now, text, text_mask))
            < 1e-5
        )


@torch.no_grad()
def test_runs_in_bf16_both_ways():
    model = randomise(PixArt(TINY))
    arguments = inputs(TINY, 8, 8, [5, 9])
    exact = model(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(model(*arguments).float(), exact) < 3e-2
    x_t, timestep, text, text_mask = arguments
    half = model.to(torch.bfloat16)(x_t.bfloat16(), timestep, text.bfloat16(), text_mask)
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), exact) < 6e-2


def test_traces_without_a_break_or_a_trace_left_behind():
    model = randomise(PixArt(TINY))
    arguments = inputs(TINY, 8, 12, [5, 9])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        exported = torch.export.export(model, arguments).module()
        expected = model(*arguments)
        assert relative(compiled(*arguments), expected) < 1e-6
        assert relative(exported(*arguments), expected) < 1e-6


@torch.no_grad()
def test_fresh_network_predicts_zero_and_does_not_read_text():
    torch.manual_seed(0)
    model = PixArt(TINY).eval()
    x_t, timestep, text, text_mask = inputs(TINY, 8, 8, [5, 9])
    assert not model(x_t, timestep, text, text_mask).any()
    zeros = {name for name, tensor in model.named_parameters() if name.endswith("weight") and not tensor.any()}
    assert zeros == {"blocks.0.cross_attn.proj.weight", "blocks.1.cross_attn.proj.weight", "final_layer.linear.weight"}
    assert not any(tensor.any() for name, tensor in model.named_parameters() if name.endswith("bias"))
    torch.nn.init.ones_(model.final_layer.linear.weight)
    assert torch.equal(model(x_t, timestep, text, text_mask), model(x_t, timestep, 5 * text, text_mask))


def test_parameter_names_are_the_official_ones():
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1", "final_layer.linear"]
    layers += ["y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2"]
    tables = ["final_layer.scale_shift_table"]
    for block in ("blocks.0", "blocks.1"):
        tables.append(f"{block}.scale_shift_table")
        layers += [f"{block}.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
        layers += [f"{block}.cross_attn.{name}" for name in ("q_linear", "kv_linear", "proj")]
    names = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} | set(tables)
    assert set(PixArt(TINY).state_dict()) == names


def test_the_released_size_has_the_official_number_of_parameters():
    sizes = {"in_channels": 4, "out_channels": 8, "width": 1152, "depth": 28, "num_heads": 16, "text_dim": 4096}
    with torch.device("meta"):
        model = PixArt(PixArtConfig(**sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == 610_856_096


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="30"):
        PixArtConfig(width=30, num_heads=4)
    with pytest.raises(UsageError, match="31"):
        PixArtConfig(sample_size=31)
    with pytest.raises(UsageError, match="class_counts"):
        DiTConfig(class_counts=())
    model = PixArt(TINY)
    with pytest.raises(ValueError):
        model(*inputs(TINY, 8, 9, [5]))


@torch.no_grad()
def test_dit_starts_at_zero_and_reads_its_classes():
    torch.manual_seed(0)
    model = DiT(DiTConfig(class_counts=(5, 3), in_channels=4, out_channels=4, width=32, depth=2, num_heads=2)).eval()
    x_t, timestep = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0])
    classes = torch.tensor([[0, 1], [5, 3]])  # the second row is all null
    assert not model(x_t, timestep, classes).any()
    randomise(model)
    both = model(x_t, timestep, classes)
    assert both.shape == x_t.shape
    for kind in (0, 1):
        changed = classes.clone()
        changed[0, kind] = 2
        other = model(x_t, timestep, changed)
        assert relative(other[0], both[0]) > 1e-3
        assert torch.equal(other[1], both[1])
    assert relative(model(x_t, timestep, None), both) > 1e-3


def test_fresh_tables_of_modulation_have_the_official_deviation():
    """1 / sqrt(D), in the blocks and in the last layer (PixArt-alpha `PixArt.initialize_weights`)."""
    torch.manual_seed(0)
    model = PixArt(PixArtConfig(width=256, depth=4, num_heads=4, text_dim=12))
    tables = [block.scale_shift_table for block in model.blocks]
    assert torch.cat(tables).std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.final_layer.scale_shift_table.std().item() == pytest.approx(256**-0.5, rel=0.2)


@torch.no_grad()
def test_compressed_keys_and_values_are_those_of_the_official_convolution():
    """PixArt-sigma `PixArt_blocks.py:AttentionKVCompress.downsample_2d` with sampling "conv"; an odd row is dropped."""
    config = PixArtConfig(
        in_channels=4, width=32, depth=2, num_heads=2, text_dim=12, qk_norm=True, kv_compress=2, kv_compress_blocks=(1,)
    )
    attention = randomise(PixArt(config)).blocks[1].attn
    tokens = torch.randn(2, 5 * 6, 32)
    image = tokens.transpose(1, 2).reshape(2, 32, 5, 6)
    expected = attention.norm(attention.sr(image).flatten(2).transpose(1, 2))
    assert expected.shape == (2, 6, 32)
    assert relative(attention.compress(tokens, 5, 6), expected) < 1e-6
