"""What a training needs, estimated in a few lines before it begins."""

import torch

from pixart.training.distribution import World
from pixart.training.recipe import Recipe

STATE_BYTES = {"adamw": 8, "came": 4}  # of the optimizer, per trained parameter


def estimate(model: torch.nn.Module, recipe: Recipe, world: World) -> list[str]:
    """Lines for a person: parameters, images, and the memory that weights and what belongs to them take.

    Activations come on top: they grow with the images that are computed at once (batch_size over processes and
    loop.accumulate), and loop.checkpoint_activations makes them small.
    """
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    averages = len(recipe.ema.decays)
    per_process = world.size if recipe.loop.parallel == "fsdp" else 1
    averaged = count if recipe.trainable.method == "full" else trained
    state = trained * (4 + STATE_BYTES[recipe.optimizer.name]) + 4 * (count + averaged * averages)
    images = sum(phase.steps * phase.batch_size for phase in recipe.phases)
    what = f"{count / 1e6:,.1f} M parameters" + (
        "" if trained == count else f", {trained / 1e6:,.1f} M of them trained"
    )
    together = f", {world.size} processes" if world.size > 1 else ""
    return [
        f"{recipe.output}: {type(model).__name__} with {what}; {recipe.steps:,} steps, {images:,} images{together}",
        f"on {world.device}, products in {recipe.loop.precision}; weights, gradients, optimizer and averages take "
        f"{state / per_process / 1e9:,.2f} GB of each process, activations come on top",
    ]
