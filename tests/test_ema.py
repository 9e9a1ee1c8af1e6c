"""Moving averages follow their recursion."""

import pytest
import torch

from pixart.errors import UsageError
from pixart.training.ema import Ema, EmaConfig


def followed(config: EmaConfig, steps: int) -> dict[str, float]:
    """The averages of a weight that is t at step t."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, config)
    for step in range(steps):
        torch.nn.init.constant_(model.weight, step + 1.0)
        ema.update(model, step)
    assert ema.full_model().weight.item() == next(iter(ema.states().values()))["weight"].item()
    return {name: state["weight"].item() for name, state in ema.states().items()}


def test_each_average_follows_the_weights_at_its_own_pace():
    found = followed(EmaConfig((0.9, 0.2)), 30)
    assert list(found) == ["ema", "ema-0.2"]
    for name, decay in (("ema", 0.9), ("ema-0.2", 0.2)):
        expected = 0.0
        for step in range(30):
            expected += (1 - min(decay, (1 + step) / (10 + step))) * (step + 1 - expected)
        assert found[name] == pytest.approx(expected, rel=1e-9)


def test_lengths_that_cannot_be_are_refused():
    for decays in ((), (1.0,), (0.5, 0.5)):
        with pytest.raises(UsageError):
            EmaConfig(decays)
