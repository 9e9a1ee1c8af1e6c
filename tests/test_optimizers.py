"""The optimisers beside AdamW: CAME is its authors' own, and AdamW in 8 bits walks as AdamW does and carries less."""

import math

import pytest
import torch
from pixart.training.optimizers.adamw8bit import AdamW8bit, code_levels, dequantise, quantise
from pixart.training.optimizers.came import Came
from pixart.training.optimizers.optimizer import Optimizer, OptimizerConfig

from pixart.errors import UsageError
from pixart.model.pixart import PixArt, PixArtConfig

SHAPES = ((96, 64), (64,), (6, 32), (16, 8, 2, 2))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 2)


def test_came_takes_the_steps_of_its_authors_package():
    from came_pytorch import CAME

    ours, theirs = parameters(), parameters()
    first = Came([{"params": ours[:2], "weight_decay": 0.03}, {"params": ours[2:], "weight_decay": 0.0}], lr=1e-2)
    second = CAME([{"params": theirs[:2], "weight_decay": 0.03}, {"params": theirs[2:], "weight_decay": 0.0}], lr=1e-2)
    for step in range(12):
        for each, optimizer in ((ours, first), (theirs, second)):
            give_gradients(each, step)
            optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert (ours[0] - parameters()[0]).abs().mean() > 0.01


def test_eight_bits_hold_a_number_of_any_size_to_its_share_of_the_largest():
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([1.0, 1e-3, 1e4])[:, None, None]  # blocks do not disturb each other
    value = size * torch.randn(3, 4, 256, generator=generator)
    code, scale = quantise(value, signed=True)
    assert code.dtype == torch.uint8 and code.shape == value.shape and scale.shape == (12,)
    error = (dequantise(code, scale, signed=True) - value).abs()
    largest = value.abs().amax(dim=-1, keepdim=True)
    assert (error / largest).max() < 0.0071 + 2**-9  # half of the widest gap between levels, and bf16 rounding
    assert (error / value.abs()).median() < 0.02
    for signed in (True, False):
        levels = code_levels(signed)
        assert len(levels) == 256 and (levels.diff() > 0).all() and 0.0 in levels
        code, scale = quantise(levels, signed=signed)  # every level is its own nearest
        assert torch.equal(code, torch.arange(256, dtype=torch.uint8)) and scale.item() == 1.0
    zero = torch.zeros(256)
    assert torch.equal(dequantise(*quantise(zero, signed=True), signed=True), zero)


def network() -> PixArt:
    torch.manual_seed(0)
    return PixArt(PixArtConfig(width=64, depth=2, num_heads=2, text_dim=16))


def fit(name: str, steps: int = 60, rate: float = 3e-3) -> tuple[list[float], Optimizer]:
    """Learn to tell a fixed velocity from fixed inputs: the losses on the way, and the optimiser."""
    model = network()
    optimizer = Optimizer(model, OptimizerConfig(name, rate))
    torch.manual_seed(1)
    x_t, text, mask = torch.randn(4, 8, 4, 4), torch.randn(4, 3, 16), torch.ones(4, 3, dtype=torch.bool)
    target, timestep = torch.randn(4, 8, 4, 4), torch.tensor([100.0, 300.0, 600.0, 900.0])
    losses = []
    for step in range(steps):
        loss = (model(x_t, timestep, text, mask) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(rate * min(1.0, (step + 1) / 20))
        losses.append(loss.item())
    return losses, optimizer


def test_adamw_in_eight_bits_learns_as_adamw_does_with_a_quarter_of_the_state():
    (exact, large), (coded, small) = fit("adamw"), fit("adamw8bit")
    assert exact[-1] < 0.2 * exact[0]
    gaps = [abs(ours - theirs) / theirs for ours, theirs in zip(coded, exact, strict=True)]
    assert max(gaps) < 0.15 and max(gaps) > 0
    assert carried(small) < 0.3 * carried(large)


def test_came_learns_with_half_of_the_state():
    (_, large), (losses, small) = fit("adamw", 1), fit("came", rate=3e-4)
    assert losses[-1] < 0.5 * losses[0]
    assert carried(small) < 0.55 * carried(large)


def carried(optimizer: Optimizer) -> int:
    """Bytes of the states of the matrices, which is what grows with the network."""
    return sum(
        value.numel() * value.element_size()
        for name, value in optimizer.state().items()
        if name.startswith("blocks.") and ".weight|" in name
    )


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "came", "muon"])
def test_an_optimiser_goes_on_from_its_saved_state_as_if_nothing_had_been(name, tmp_path):
    from safetensors.torch import load_file, save_file

    config, unbroken, stopped = OptimizerConfig(name), network(), network()
    first, second = Optimizer(unbroken, config), Optimizer(stopped, config)
    for step in range(6):
        if step == 3:
            state = {key: value.contiguous() for key, value in second.state().items()}
            save_file(state, tmp_path / "state.safetensors")
            second = Optimizer(stopped, config)
            second.load_state(load_file(tmp_path / "state.safetensors"))
        for model, optimizer in ((unbroken, first), (stopped, second)):
            give_gradients(list(model.parameters()), step)
            optimizer.step(1e-3)
    for mine, other in zip(unbroken.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_small_tensors_and_odd_ones_stay_exact():
    model = network()
    optimizer = Optimizer(model, OptimizerConfig("adamw8bit"))
    give_gradients(list(model.parameters()), 0)
    optimizer.step(1e-3)
    state = optimizer.state()
    assert state["blocks.0.mlp.fc1.bias|exp_avg"].dtype == torch.float32
    assert state["blocks.0.mlp.fc1.weight|exp_avg_code"].dtype == torch.uint8
    odd = torch.nn.Parameter(torch.zeros(4097))
    odd.grad = torch.ones(4097)
    alone = AdamW8bit([{"params": [odd], "weight_decay": 0.0}], lr=0.1)
    alone.step()
    assert torch.allclose(odd, torch.full((4097,), -0.1)) and alone.state[odd]["exp_avg"].dtype == torch.float32


def test_values_out_of_range_are_refused():
    for wrong in ({"eps": 0.0}, {"clip": -1.0}, {"clip": math.nan}, {"betas": (0.9, 1.0)}):
        with pytest.raises(UsageError, match="optimizer: "):
            OptimizerConfig(**wrong)
