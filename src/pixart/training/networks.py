"""From a recipe to its network: the sizes that the recipe sets, with those that the data and the encoders bring."""

import json
from pathlib import Path

from pixart.errors import UsageError
from pixart.model.dit import DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.masking import MaskedPixArt
from pixart.training.recipe import ClassRecipe, TextRecipe
from pixart.training.tread import TreadPixArt


def class_config(recipe: ClassRecipe, channels: int, class_counts: tuple[int, ...]) -> DiTConfig:
    """The network of stage 1 for latents of so many channels and so many classes of each kind."""
    size = recipe.model
    return DiTConfig(
        class_counts=class_counts,
        in_channels=channels,
        out_channels=channels * (2 if recipe.objective == "ddpm" else 1),  # the second half is the variance
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        sample_size=size.sample_size,
    )


def text_config(recipe: TextRecipe, channels: int, text_dim: int) -> PixArtConfig:
    """The network of stages 2 and 3 for latents of so many channels and text states of that width."""
    size = recipe.model
    return PixArtConfig(
        in_channels=channels,
        out_channels=channels * (2 if recipe.objective == "ddpm" else 1),
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        text_dim=text_dim,
        sample_size=size.sample_size,
        micro_conditions=size.micro_conditions,
    )


def text_network(recipe: TextRecipe, config: PixArtConfig) -> PixArt:
    """A fresh PixArt, of the kind that can spare tokens where a phase of the recipe asks for that."""
    routes = any(phase.route_share for phase in recipe.phases)
    masks = any(phase.mask_share for phase in recipe.phases)
    if routes and masks:
        raise UsageError("A recipe can have phases with route_share or with mask_share, not both.")
    kind = TreadPixArt if routes else MaskedPixArt if masks else PixArt
    return kind(config)


def expected_config(recipe: ClassRecipe | TextRecipe) -> DiTConfig | PixArtConfig:
    """The network as training will build it, without opening the data: for plans.

    What the encoders' own config.json say, and `recipe.expected` where they are not there yet.
    """
    channels = _setting(recipe.autoencoder, ("latent_channels",)) or recipe.expected.latent_channels
    if isinstance(recipe, ClassRecipe):
        kinds = 1 if recipe.features else len(recipe.classes)
        return class_config(recipe, channels, (recipe.expected.classes,) * kinds)
    width = _setting(recipe.text_encoder, ("d_model", "hidden_size")) or recipe.expected.text_dim
    return text_config(recipe, channels, width)


def _setting(folder: Path | None, names: tuple[str, ...]) -> int | None:
    """The first of `names` in the config.json of an encoder; None where there is none or it says something else."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return None  # building the parts will say what is wrong with it
    found = next((settings[name] for name in names if name in settings), None) if isinstance(settings, dict) else None
    return found if type(found) is int and found > 0 else None
