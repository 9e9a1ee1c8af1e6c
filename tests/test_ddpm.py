"""The official objective equals the published losses; noise levels are drawn as the recipe says.

PUBLISHED was computed once, on the inputs of `inputs()`, by OpenAI's own `GaussianDiffusion.training_losses` as the
PyPI package guided-diffusion-sdk 1.0.0 carries it (linear betas, 1000 steps, EPSILON, LEARNED_RANGE, MSE: the
settings of PixArt-alpha `diffusion/iddpm.py`, whose function is the same). Its gradients are the norms, per image,
of the gradient of the summed loss with respect to each half of the network's output.
"""

import math

import numpy as np
import pytest
import torch

from pixart.diffusion import ddpm
from pixart.diffusion.objective import Objective, Timesteps, draw_levels
from pixart.errors import UsageError

TIMESTEPS = [0, 0, 1, 7, 120, 500, 875, 999]
PUBLISHED = {
    "mse": [0.04491885, 0.04495037, 0.04517666, 0.04470975, 0.04538182, 0.04455563, 0.04547318, 0.04453395],
    "vb": [1.076596, 1.085647, 0.1143398, 0.01113155, 0.0006046361, 0.0003544319, 0.0005855279, 0.0006556448],
    "eps_gradient": [0.03532344, 0.03533584, 0.03542467, 0.03524113, 0.03550502, 0.03518034, 0.03554074, 0.03517178],
    "variance_gradient": [
        0.01174984, 0.01190685, 0.008852912, 0.0006007636, 4.275958e-06, 1.327116e-08, 2.264191e-10, 2.560113e-11,
    ],
}  # fmt: skip
SHAPE = (len(TIMESTEPS), 4, 6, 6)


def wave(speed: float, phase: float) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(SHAPE), dtype=torch.float64) * speed + phase).reshape(SHAPE).float()


def inputs() -> tuple[torch.Tensor, ...]:
    """x_0 (beyond [-1, 1] too, so that the open outer cells count), eps, prediction, timestep."""
    eps = 1.4 * wave(1.93, 0.5)
    prediction = torch.cat([eps + 0.3 * wave(0.71, 0.2), 1.2 * wave(0.11, 0.3)], dim=1)
    return 1.4 * wave(0.37, 0.1), eps, prediction, torch.tensor(TIMESTEPS)


def test_the_loss_and_its_gradients_equal_the_published_ones():
    x_0, eps, prediction, timestep = inputs()
    x_t = ddpm.add_noise(x_0, eps, timestep)
    bound = ddpm.variational_bound(prediction[:, :4], prediction[:, 4:], x_0, x_t, timestep).mean(dim=(1, 2, 3))
    assert bound.tolist() == pytest.approx(PUBLISHED["vb"], rel=1e-4)
    assert ddpm.losses(prediction[:, :4], x_0, x_t, eps, timestep).tolist() == pytest.approx(PUBLISHED["mse"], rel=1e-5)
    prediction.requires_grad_()
    losses = ddpm.losses(prediction, x_0, x_t, eps, timestep)
    expected = np.add(PUBLISHED["mse"], PUBLISHED["vb"])
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    losses.sum().backward()
    for half, name in ((slice(0, 4), "eps_gradient"), (slice(4, 8), "variance_gradient")):
        norms = prediction.grad[:, half].square().sum(dim=(1, 2, 3)).sqrt().tolist()
        # Above all: the bound adds nothing to the gradient of eps.
        assert norms == pytest.approx(PUBLISHED[name], rel=1e-4, abs=1e-9)


def test_the_process_is_the_one_that_stock_schedulers_draw_with():
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert torch.allclose(ddpm.process().abar.float(), stock.alphas_cumprod, rtol=1e-5)
    x_0, eps, _, timestep = inputs()
    assert torch.allclose(ddpm.add_noise(x_0, eps, timestep), stock.add_noise(x_0, eps, timestep), atol=5e-5)
    # The posterior, from the definition: product of the two densities, in numpy's fp64 at one step.
    beta, abar, before = (figures[500].item() for figures in (ddpm.process().betas, *[ddpm.process().abar] * 2))
    before = ddpm.process().abar[499].item()
    precision = 1 / (1 - before) + (1 - beta) / beta  # of x_{t-1} given x_0, and of x_{t-1} given x_t
    assert ddpm.process().posterior_log_variance[500].item() == pytest.approx(-math.log(precision), rel=1e-9)
    weight = math.sqrt(before) / (1 - before) / precision
    assert ddpm.process().posterior_x_0_weight[500].item() == pytest.approx(weight, rel=1e-9)
    assert abar == pytest.approx(before * (1 - beta), rel=1e-12)


def test_min_snr_caps_what_easy_timesteps_weigh():
    """2303.09556: the weight min(SNR, gamma) of an x_0 prediction, which for eps is divided by the SNR."""
    x_0, eps, prediction, timestep = inputs()
    x_t = ddpm.add_noise(x_0, eps, timestep)
    plain = ddpm.losses(prediction[:, :4], x_0, x_t, eps, timestep)
    weighted = ddpm.losses(prediction[:, :4], x_0, x_t, eps, timestep, min_snr_gamma=5.0)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[TIMESTEPS]
    snr = abar / (1 - abar)
    assert (weighted / plain).tolist() == pytest.approx(np.minimum(snr, 5) / snr, rel=1e-5)
    assert (weighted / plain)[0] < 1e-3 and (weighted / plain)[-1] == 1
    both = ddpm.losses(prediction, x_0, x_t, eps, timestep, min_snr_gamma=5.0)
    assert (both - weighted).tolist() == pytest.approx(PUBLISHED["vb"], rel=1e-3)  # the bound keeps its weight


def test_a_network_that_knows_the_noise_has_no_error_and_gets_whole_timesteps():
    x_0 = torch.randn(512, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    objective = Objective("ddpm", timesteps=Timesteps(sampler="uniform"))
    noised = objective.add_noise(x_0, np.random.default_rng(0))
    assert torch.equal(noised.timestep, (noised.levels * 1000).long()) and noised.timestep.dtype == torch.int64
    assert 0 <= noised.timestep.min() < 20 and 980 < noised.timestep.max() <= 999
    abar = ddpm.process().abar[noised.timestep].float().view(-1, 1, 1, 1)
    eps = (noised.x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
    assert objective.losses(eps, noised).max() < 1e-5
    assert objective.losses(torch.cat([eps, torch.zeros_like(eps)], dim=1), noised).mean() > 1e-3  # the variance


def levels(shift: float = 1.0, **settings: float) -> torch.Tensor:
    return draw_levels(np.random.default_rng(0), 20_000, Timesteps(**settings), shift)


def test_noise_levels_are_logit_normal_with_a_uniform_share():
    drawn = levels(uniform_share=0.0)
    assert drawn.min() > 0 and drawn.max() < 1
    logit = torch.logit(drawn)
    assert logit.mean().item() == pytest.approx(0, abs=0.03) and logit.std().item() == pytest.approx(1, abs=0.03)
    deciles = torch.linspace(0.1, 0.9, 9)
    for uniform in (levels(uniform_share=1.0), levels(sampler="uniform")):
        assert torch.quantile(uniform, deciles).tolist() == pytest.approx(deciles.tolist(), abs=0.02)
    # Beyond 0.02 and 0.98 the logit-normal has 1 in 10,000; nearly all that is there comes from the uniform share.
    ends = ((levels(uniform_share=0.1) - 0.5).abs() > 0.48).float().mean().item()
    assert ends == pytest.approx(0.1 * 0.04, abs=0.0015)


def test_whole_timesteps_are_all_sampled_equally_often():
    counts = torch.bincount(ddpm.whole(levels(sampler="uniform")) // 100, minlength=10)
    assert counts.shape == (10,) and (counts - 2000).abs().max() < 200
    assert ddpm.whole(torch.tensor([0.0, 0.9999, 1.0])).tolist() == [0, 999, 999]


def test_shift_moves_noise_levels_towards_noise_and_grows_with_the_image():
    plain, shifted = levels(1.0), levels(3.0)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain))
    assert shifted.median().item() == pytest.approx(0.75, abs=0.01) and shifted.max() < 1
    assert Timesteps(shift=2.0).shift_for(512, 512) == 2.0
    by_size = Timesteps(shift=1.5, shift_base=256)
    assert by_size.shift_for(256, 256) == 1.5 and by_size.shift_for(1024, 1024) == 6.0
    assert by_size.shift_for(512, 2048) == 6.0  # the area counts, not the longer side
    with pytest.raises(UsageError, match="shift_base 0"):
        Timesteps(shift_base=0)


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_offset_noise_is_the_same_all_over_a_channel(name):
    x_0, rng = torch.zeros(64, 4, 8, 8), np.random.default_rng
    plain, offset = (Objective(name, noise_offset=n).add_noise(x_0, rng(3)).eps for n in (0.0, 0.5))
    more = offset - plain
    assert (more - more[:, :, :1, :1]).abs().max() < 1e-6 and 0.4 < more[:, :, 0, 0].std() < 0.6
