"""Number formats: bf16 and fp16 train like fp32, and an overflow in fp16 costs one update, not the run."""

import pytest
import torch
from tiny_run import figures, tiny_loss, tiny_train

from pixart.errors import PixArtError
from pixart.training import checkpoint
from pixart.training.precision import LossScale, autocast


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.02), ("fp16", 0.004)])
def test_half_precision_follows_full_precision(tmp_path, precision, tolerance):
    dtypes = set()

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        dtypes.add(model.blocks[0].mlp.fc1(torch.ones(1, 32)).dtype)
        return tiny_loss(model, batch)

    tiny_train(tmp_path / "full")
    ema = tiny_train(tmp_path / "half", precision=precision, loss=loss)
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {p.dtype for p in ema.parameters()} == {torch.float32}
    for (_, half), (_, full) in zip(figures(tmp_path / "half"), figures(tmp_path / "full"), strict=True):
        assert half == pytest.approx(full, rel=tolerance) and half != full


def test_an_overflow_halves_the_scale_and_leaves_the_weights(tmp_path):
    """A loss a hundred times as large overflows at first; the run goes on, also after a stop in between."""

    def large(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        return 100 * tiny_loss(model, batch)

    tiny_train(tmp_path / "run", precision="fp16", loss=large, steps=12)
    states = [checkpoint.verified(folder).state["loss_scale"] for folder in checkpoint.found(tmp_path / "run")]
    assert states[-1]["scale"] < 2**16
    norms = [norm for _, norm in figures(tmp_path / "run", "grad_norm")]
    assert not torch.tensor(norms[0]).isfinite() and torch.tensor(norms[-1]).isfinite()
    tiny_train(tmp_path / "run", precision="fp16", loss=large, steps=13)
    assert checkpoint.newest(tmp_path / "run").state["loss_scale"]["scale"] <= states[-1]["scale"]
    with pytest.raises(PixArtError, match=r"Step 0: loss .*, gradient norm nan|gradient norm inf"):
        tiny_train(tmp_path / "bf16", precision="bf16", loss=lambda model, batch: tiny_loss(model, batch) * torch.inf)


def test_the_loss_scale_grows_after_good_steps_and_only_in_fp16():
    scale = LossScale("fp16")
    for _ in range(LossScale.GROW_AFTER):
        scale.good_step()
    assert scale.scale == 2.0**17 and scale.halve() and scale.scale == 2.0**16
    restored = LossScale("fp16")
    restored.load_state(scale.state())
    assert restored.state() == scale.state() == {"scale": 2.0**16, "good_steps": 0}
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([2.0**16, 2.0**17])
    scale.unscale([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    other = LossScale("bf16")
    assert other.scale == 1.0 and not other.halve()
    with autocast("fp32", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
