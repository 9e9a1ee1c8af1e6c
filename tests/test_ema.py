"""Moving averages: constant lengths follow their recursion, power-function ones their profile."""

import numpy as np
import pytest
import torch

from pixart.errors import UsageError
from pixart.training.ema import Ema, EmaConfig, power_exponent


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


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_function_average_has_the_profile_of_its_width(width):
    """2312.02696, eq. 2: weights t^gamma, whose standard deviation is `width` of the training."""
    steps = 2000
    profile = np.linspace(0, 1, 200_001) ** power_exponent(width)
    times = np.linspace(0, 1, 200_001)
    mean = (profile * times).sum() / profile.sum()
    deviation = ((profile * (times - mean) ** 2).sum() / profile.sum()) ** 0.5
    assert deviation == pytest.approx(width, rel=1e-3)
    found = followed(EmaConfig((), (width,)), steps)["ema"]
    assert found / steps == pytest.approx(mean, rel=2e-3)


def test_lengths_that_cannot_be_are_refused():
    for decays, widths in (((), ()), ((1.0,), ()), ((0.5, 0.5), ()), ((), (0.5,)), ((), (0.1, 0.1))):
        with pytest.raises(UsageError):
            EmaConfig(decays, widths)
