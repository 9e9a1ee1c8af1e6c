"""The PixArt that starts stage 2 equals the class-free DiT of stage 1 at one timestep."""

import pytest
import torch
from test_model import randomise, relative

from pixart.errors import UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.model.reparameterize import reparameterize

SIZES = {"in_channels": 4, "out_channels": 8, "width": 32, "depth": 3, "num_heads": 2, "sample_size": 32}
CHOSEN = 775.0


def trained_pair() -> tuple[DiT, PixArt]:
    """A DiT with random weights everywhere, as after training, and a PixArt with nothing at zero either."""
    dit = randomise(DiT(DiTConfig(class_counts=(5, 3), **SIZES)))
    with torch.no_grad():
        for embedder in dit.y_embedders:
            embedder.embedding_table.weight.mul_(3)
    return dit, randomise(PixArt(PixArtConfig(text_dim=12, **SIZES)), 1)


@torch.no_grad()
def predictions(dit: DiT, pixart: PixArt, timestep: float, null: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 4, 8, 12, generator=generator)
    text, text_mask = torch.randn(2, 6, 12, generator=generator), torch.ones(2, 6, dtype=torch.bool)
    when = torch.full((2,), timestep)
    classes = torch.tensor([[5, 3], [5, 3]]) if null else None
    return dit(x_t, when, classes), pixart(x_t, when, text, text_mask)


@pytest.mark.parametrize("class_free", ["null", "timestep"])
def test_equals_the_class_free_dit_at_the_chosen_timestep(class_free):
    dit, pixart = trained_pair()
    theirs, ours = predictions(dit, pixart, CHOSEN, null=class_free == "null")
    assert relative(ours, theirs) > 0.1  # not already true before
    reparameterize(dit, pixart, CHOSEN, class_free)
    theirs, ours = predictions(dit, pixart, CHOSEN, null=class_free == "null")
    assert relative(ours, theirs) < 1e-5
    other, _ = predictions(dit, pixart, CHOSEN, null=class_free != "null")
    assert relative(ours, other) > 1e-3  # the two meanings of "without class" are told apart


def test_still_depends_on_the_timestep():
    dit, pixart = trained_pair()
    reparameterize(dit, pixart, CHOSEN)
    _, at_chosen = predictions(dit, pixart, CHOSEN, null=True)
    theirs, elsewhere = predictions(dit, pixart, 300.0, null=True)
    assert relative(elsewhere, at_chosen) > 1e-2  # not constant: t_block moves with the timestep
    assert relative(elsewhere, theirs) > 1e-3  # and the identity holds at the chosen timestep only


@torch.no_grad()
def test_t_block_is_the_mean_and_the_tables_hold_the_difference():
    dit, pixart = trained_pair()
    reparameterize(dit, pixart, CHOSEN, "timestep")
    weights = torch.stack([block.adaLN_modulation[1].weight for block in dit.blocks])
    assert torch.allclose(pixart.t_block[1].weight, weights.mean(0), atol=1e-6)
    tables = torch.stack([block.scale_shift_table for block in pixart.blocks])
    assert tables.mean(0).abs().max() < 1e-5  # what the mean layer explains is in no table
    assert tables.abs().max() > 0.1


def test_networks_of_different_sizes_are_refused():
    dit, _ = trained_pair()
    with pytest.raises(UsageError, match="width"):
        reparameterize(dit, PixArt(PixArtConfig(text_dim=12, **(SIZES | {"width": 64}))), CHOSEN)
    with pytest.raises(UsageError, match="class_free"):
        reparameterize(dit, PixArt(PixArtConfig(text_dim=12, **SIZES)), CHOSEN, "none")
