"""The held-out denoising error: two objectives measured with one ruler."""

import math

import pytest
import torch

from pixart.diffusion import ddpm
from pixart.evaluation.denoising_error import LOG_SNRS, denoising_error
from pixart.model.pixart import PixArt, PixArtConfig

SHAPE = (6, 4, 8, 8)


class Same(torch.nn.Module):
    """Believes that every picture is `guess`, and says so as velocity or as eps, whatever it is asked for."""

    def __init__(self, guess: torch.Tensor, objective: str):
        super().__init__()
        self.guess, self.objective = guess, objective

    def forward(self, x_t, timestep, text, text_mask):
        if self.objective == "flow":
            return (x_t - self.guess) / (timestep / 1000).view(-1, 1, 1, 1)
        abar = ddpm.process().abar[timestep].float().view(-1, 1, 1, 1)
        return (x_t - abar.sqrt() * self.guess) / (1 - abar).sqrt()


def measure(model, latent, objective, **options):
    text, mask = torch.randn(len(latent), 3, 16), torch.ones(len(latent), 3, dtype=torch.bool)
    return denoising_error(model, latent, text, mask, objective=objective, **options)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_error_is_that_of_the_picture_which_the_prediction_implies(objective):
    latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    found = measure(Same(torch.zeros(SHAPE[1:]), objective), latent, objective, batch_size=4)
    expected = latent.square().mean().item()
    assert found.x_0 == pytest.approx([expected] * len(LOG_SNRS), rel=2e-3)
    # In the variance-preserving process s^2 = 1 / (1 + SNR), and an error of x_0 is s times one of v.
    assert found.velocity == pytest.approx([expected * (1 + math.exp(x)) for x in found.log_snr], rel=2e-3)
    assert found.log_snr == pytest.approx(LOG_SNRS, abs=0.06)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_who_knows_the_picture_has_no_error(objective):
    latent = torch.randn(SHAPE)
    assert measure(Same(latent, objective), latent, objective, batch_size=6).mean == pytest.approx(0, abs=1e-3)


def test_a_learned_variance_is_not_read_and_batches_do_not_matter():
    torch.manual_seed(0)
    model = PixArt(PixArtConfig(width=32, depth=1, num_heads=2, text_dim=16, in_channels=4, out_channels=8))
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    latent = torch.randn(SHAPE)
    torch.manual_seed(1)
    whole = measure(model, latent, "ddpm", batch_size=6)
    # The official layout: each patch's output has its channels last, the variance's in the second half of them.
    with torch.no_grad():
        rows = model.final_layer.linear.weight.view(4, 8, -1)
        rows[:, 4:] += 1.0
    torch.manual_seed(1)
    assert measure(model, latent, "ddpm", batch_size=2).x_0 == pytest.approx(whole.x_0, rel=1e-4)
