"""Optimizers and the learning rate: they learn, decay what they should, and their state survives a checkpoint."""

import pytest
import torch

from pixart.errors import UsageError
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.optimizers import Optimizer, OptimizerConfig, learning_rate
from pixart.training.trainable import Trainable, apply


def network() -> PixArt:
    torch.manual_seed(0)
    return PixArt(PixArtConfig(width=64, depth=2, num_heads=2, text_dim=16))


def fit(optimizer: Optimizer, model: PixArt, steps: range, rate: float = 3e-3) -> list[float]:
    """Learn a fixed velocity for fixed inputs: the losses on the way."""
    torch.manual_seed(1)
    x_t, text, mask = torch.randn(4, 8, 4, 4), torch.randn(4, 3, 16), torch.ones(4, 3, dtype=torch.bool)
    target, timestep = torch.randn(4, 8, 4, 4), torch.tensor([100.0, 300.0, 600.0, 900.0])
    losses = []
    for step in steps:
        loss = (model(x_t, timestep, text, mask) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(rate * min(1.0, (step + 1) / 20))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["adamw", "came"])
def test_each_learns_and_goes_on_from_its_state_as_if_never_stopped(name):
    config = OptimizerConfig(name, 3e-3)
    model = network()
    optimizer = Optimizer(model, config)
    losses = fit(optimizer, model, range(40), 1e-3 if name == "came" else 3e-3)
    assert losses[-1] < 0.7 * losses[0]
    again = network()
    again.load_state_dict(model.state_dict())
    other = Optimizer(again, config)
    other.load_state(optimizer.state())
    assert fit(optimizer, model, range(40, 44)) == fit(other, again, range(40, 44))
    with pytest.raises(KeyError):
        Optimizer(torch.nn.Linear(1, 1), config).load_state(optimizer.state())


def test_only_matrices_decay():
    model = network()
    optimizer = Optimizer(model, OptimizerConfig("adamw", 1e-3, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    (decayed, _), (kept, none) = (
        ({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in optimizer.torch.param_groups
    )
    assert none == 0 and "blocks.0.scale_shift_table" in kept and "t_block.1.bias" in kept
    assert {"t_block.1.weight", "x_embedder.proj.weight", "blocks.0.attn.qkv.weight"} <= decayed
    assert len(decayed) + len(kept) == len(names)


def test_the_rate_warms_up_stays_and_falls_to_zero():
    config = OptimizerConfig(learning_rate=1.0e-2, warmup_steps=10, decay_share=0.5)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3) and rates[9:50] == [pytest.approx(1e-2)] * 41
    assert rates[75] == pytest.approx(5e-3) and rates[99] == pytest.approx(2e-4)
    assert learning_rate(99, 100, OptimizerConfig(learning_rate=1e-2, decay_share=0.0)) == 1e-2 * 100 / 200


def test_what_is_trainable_is_named_by_patterns():
    model = network()
    apply(model, Trainable(("blocks.*.attn.*", "t_block.1.bias")))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".attn." in name} | {"t_block.1.bias"}
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(Optimizer(model, OptimizerConfig(learning_rate=1e-3)), model, range(3))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= trained
    with pytest.raises(UsageError):
        apply(network(), Trainable(("block.*",)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0}, {"clip": 0.0}, {"eps": float("nan")}, {"betas": (1.0, 0.9)}, {"decay_share": 2.0},
        {"warmup_steps": -1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        OptimizerConfig(**wrong)
