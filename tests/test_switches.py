"""The switches for frugality: what each computes, that all are off by default, and that a stock PixArt comes out."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import emoji_recipe, write_tiny_data
from torch import nn

from pixart.diffusion import ddpm, flow
from pixart.diffusion.timesteps import Timesteps
from pixart.errors import UsageError
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training import recipe as recipes
from pixart.training.batches import LatentBatches, Phase
from pixart.training.masking import MaskedPixArt, mixer_blocks, visible_patches
from pixart.training.objective import denoising_loss
from pixart.training.rows import RowStreams, Share
from pixart.training.tread import EDGE, TreadPixArt, choose_tokens

CONFIG = PixArtConfig(width=32, depth=6, num_heads=2, text_dim=16)


def awake(kind: type[PixArt], config: PixArtConfig = CONFIG) -> PixArt:
    """A network of `kind` whose every weight matters: fresh ones predict zero."""
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def inputs(side: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x_t, text = torch.randn(2, 8, side, side, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return x_t, torch.tensor([900.0, 200.0]), text, torch.tensor([[True] * 5, [True] * 2 + [False] * 3])


def some_tokens(share: float, count: int = 16) -> torch.Tensor:
    return choose_tokens(np.random.default_rng(0).random((2, count)), share)


def test_tokens_are_chosen_evenly_and_per_row():
    chosen = choose_tokens(np.random.default_rng(0).random((4000, 16)), 0.75)
    assert chosen.shape == (4000, 4) and (chosen.diff(dim=1) > 0).all()
    often = torch.bincount(chosen.flatten(), minlength=16) / 4000
    assert (often - 0.25).abs().max() < 0.04
    assert choose_tokens(np.zeros((1, 4)), 0.99).shape == (1, 1)


@pytest.mark.parametrize("kind", [TreadPixArt, MaskedPixArt])
def test_a_network_that_can_spare_tokens_is_a_stock_pixart(kind):
    model, stock = awake(kind), PixArt(CONFIG)
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(*inputs()), stock(*inputs()))


def test_routed_with_all_tokens_is_the_whole_network():
    model = awake(TreadPixArt)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs(), routed=some_tokens(0.0)), model(*inputs()), rtol=1e-5, atol=1e-5)


def test_tokens_that_are_not_routed_skip_the_middle_blocks_and_come_back():
    """Where the middle blocks are the identity, nothing is lost; otherwise only the routed tokens meet them."""
    model, routed = awake(TreadPixArt), some_tokens(0.5)
    last = model.blocks[-EDGE]
    seen = []
    last.register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    model.blocks[EDGE - 1].register_forward_hook(lambda block, args, out: seen.append(out))
    widths = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda attn, args: widths.append(args[0].shape[1]))
    with torch.no_grad():
        model(*inputs(), routed=routed)
    left, came = seen
    skipped = torch.ones(2, 16, dtype=torch.bool).scatter(1, routed, False)
    assert torch.equal(left[skipped], came[skipped])
    assert (left[~skipped] - came[~skipped]).abs().min(dim=-1).values.max() > 0
    assert widths == [16, 16, 8, 8, 16, 16]


def test_every_parameter_learns_with_tokens_routed_or_masked():
    for kind, name in ((TreadPixArt, "routed"), (MaskedPixArt, "visible")):
        model = awake(kind)
        model(*inputs(), **{name: some_tokens(0.5)}).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_masking_with_everything_visible_predicts_what_the_whole_network_does():
    model, everything = awake(MaskedPixArt), some_tokens(0.0)
    with torch.no_grad():
        parts = model(*inputs(), visible=everything)
        torch.testing.assert_close(parts, visible_patches(model(*inputs()), everything), rtol=1e-5, atol=1e-5)


def test_dropped_patches_speak_through_the_mixer_only():
    model, visible = awake(MaskedPixArt), some_tokens(0.75)
    assert (mixer_blocks(1), mixer_blocks(6), mixer_blocks(28)) == (1, 1, 5)
    x_t, *rest = inputs()
    other = x_t.clone()
    dropped = torch.ones(2, 16, dtype=torch.bool).scatter(1, visible, False).view(2, 1, 4, 4)
    other += torch.randn_like(x_t) * dropped.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        first, second = (model(x, *rest, visible=visible) for x in (x_t, other))
        assert first.shape == (2, 8, 4, 4)
        assert (first - second).abs().max() > 1e-3
        for block in model.blocks[: mixer_blocks(6)]:
            block.attn.proj.weight.zero_()  # now patches do not hear each other in the mixer
        first, second = (model(x, *rest, visible=visible) for x in (x_t, other))
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_visible_patches_are_the_patches_of_the_picture():
    latent = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    parts = visible_patches(latent, torch.tensor([[0, 5], [1, 2]]))
    assert parts.shape == (2, 3, 2, 4)
    assert torch.equal(parts[0, :, 1], latent[0, :, 2:4, 4:6].flatten(1))
    assert torch.equal(parts[1, :, 0], latent[1, :, 0:2, 2:4].flatten(1))


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_a_masked_loss_is_the_loss_of_the_visible_patches(objective):
    """A network that predicts zero: the loss is then a mean over targets, and can be said by hand."""
    model = MaskedPixArt(dataclasses.replace(CONFIG, out_channels=8 if objective == "flow" else 16))
    x_0, visible = torch.randn(2, 8, 8, 8), some_tokens(0.75)
    _, _, text, mask = inputs()
    condition, streams = ("text", "text_mask"), partial(RowStreams, 0, 0, range(2))
    batch = {"latent": x_0, "text": text, "text_mask": mask, "visible": visible, "rng": streams()}
    value = denoising_loss(model, batch, condition=condition, timesteps=Timesteps(), objective=objective).item()
    eps = torch.from_numpy(streams().standard_normal(tuple(x_0.shape), np.float32))
    part = partial(visible_patches, visible=visible)
    if objective == "flow":
        expected = (part(eps) - part(x_0)).square().mean()
    else:
        timestep = ddpm.whole(batch["levels"])
        x_t = ddpm.add_noise(x_0, eps, timestep)
        zero = torch.zeros(2, 16, 4, 4)
        expected = ddpm.losses(zero, part(x_0), part(x_t), part(eps), timestep).mean()
        everything = ddpm.losses(torch.zeros(2, 16, 8, 8), x_0, x_t, eps, timestep).mean()
        assert abs(everything.item() - value) > 1e-3
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert abs(flow.losses(torch.zeros_like(x_0), x_0, eps).mean().item() - value) > 1e-3


def batches(*phases: Phase) -> LatentBatches:
    moments = {
        size: (torch.zeros(8, 8, size // 8, size // 8), torch.ones(8, 8, size // 8, size // 8)) for size in (64, 128)
    }
    return LatentBatches(moments, np.ones(8) / 8, lambda chosen, rng: {}, phases, 3)


def test_phases_say_when_tokens_are_spared():
    """Progressive resolution and the dense finish are phases: size, batch and share change at their first step."""
    low, high = Phase(2, 64, 8, mask_share=0.75), Phase(1, 128, 4, mask_share=0.5)
    made = batches(low, high, Phase(1, 128, 4))
    assert made(1)["visible"].shape == (8, 4) and made(2)["visible"].shape == (4, 32)
    assert "visible" not in made(3) and "routed" not in made(0)
    assert made(2)["latent"].shape == (4, 8, 16, 16)
    routed = batches(Phase(2, 64, 8, route_share=0.5))
    assert routed(0)["routed"].shape == (8, 8) and not torch.equal(routed(0)["routed"], routed(1)["routed"])
    half = routed(1, Share(1, 2))  # the second of two processes has the second half of the same batch
    assert torch.equal(half["routed"], routed(1)["routed"][4:]) and torch.equal(half["latent"], routed(1)["latent"][4:])


def test_all_switches_are_off_by_default():
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.optimizer.name == "adamw"
        assert not any(phase.route_share or phase.mask_share for phase in recipe.phases)
        assert getattr(recipe, "min_snr_gamma", None) is None


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="only one of them"):
        Phase(1, 64, 8, route_share=0.5, mask_share=0.5)
    with pytest.raises(UsageError, match="below 1"):
        Phase(1, 64, 8, mask_share=1.0)
    with pytest.raises(UsageError, match="more than 4 blocks; this has 4"):
        TreadPixArt(dataclasses.replace(CONFIG, depth=4))
    with pytest.raises(UsageError, match="at least 2 blocks"):
        MaskedPixArt(dataclasses.replace(CONFIG, depth=1))
    stage1 = recipes.load(emoji_recipe("stage1"))
    with pytest.raises(UsageError, match='kind "text"'):
        dataclasses.replace(stage1, phases=(Phase(1, 64, 8, route_share=0.5),))


@pytest.mark.parametrize("switch", ["route_share", "mask_share"])
def test_a_run_with_a_switch_ends_as_a_model_folder_that_stock_diffusers_reads(switch, tmp_path, tiny_model):
    from diffusers import PixArtTransformer2DModel

    from pixart.training.command import train_recipe

    spared, dense = Phase(2, 64, 4, **{switch: 0.5}), Phase(1, 64, 4)
    recipe = dataclasses.replace(
        recipes.load(emoji_recipe("stage2")),
        run=tmp_path / "run",
        data=write_tiny_data(tmp_path / "data"),
        cache=tmp_path / "cache",
        autoencoder=tiny_model / "vae",
        text_encoder=tiny_model / "text_encoder",
        init=None,
        phases=(spared, dense),
        model=recipes.Denoiser(width=32, depth=6, num_heads=2),
    )
    assert train_recipe(recipe, lambda line: None) == 0
    stock = PixArtTransformer2DModel.from_pretrained(Path(recipe.run) / "model" / "transformer")
    assert len(stock.transformer_blocks) == 6
    again = dataclasses.replace(recipe, run=tmp_path / "again", init=recipe.run, phases=(dense,))
    assert train_recipe(again, lambda line: None) == 0  # a dense run starts from it
