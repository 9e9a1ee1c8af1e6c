"""What a training needs, estimated in a few lines before it begins."""

import time

import torch

from pixart.data.encode import autocast
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.distribution import World
from pixart.training.recipe import Recipe

STATE_BYTES = {"adamw": 8, "came": 4}  # of the optimizer, per trained parameter


MEASURED_BLOCKS = 2


def seconds_per_image(
    transformer: dict, side: int, device: torch.device, precision: str, *, rows: int, trained: bool
) -> float:
    """What one image takes in a training step, forward and backward, measured on two blocks with random weights.

    Args:
        transformer: config.json of the network. side: of the latent.
        rows: images that are computed at once. trained: all weights are, not an adapter beside them.
    """
    names = {"width": "cross_attention_dim", "num_heads": "num_attention_heads", "text_dim": "caption_channels"}
    sizes = {name: transformer[theirs] for name, theirs in names.items()}
    channels = transformer["in_channels"]
    with device:
        model = PixArt(PixArtConfig(**sizes, depth=MEASURED_BLOCKS, in_channels=channels, out_channels=channels))
        x_t = torch.randn(rows, channels, side, side, requires_grad=True)
        text, mask = torch.randn(rows, 64, sizes["text_dim"]), torch.ones(rows, 64, dtype=torch.bool)
        timestep = torch.full((rows,), 500.0)
    model.requires_grad_(trained)
    found = []
    for _ in range(3):  # the first is slower
        begun = time.perf_counter()
        with autocast(precision, device):
            loss = model(x_t, timestep, text, mask).square().mean()
        loss.backward()
        x_t.grad.sum().item()  # waits for a GPU
        found.append(time.perf_counter() - begun)
    return min(found) / rows * transformer["num_layers"] / MEASURED_BLOCKS


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
