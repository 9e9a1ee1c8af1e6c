"""Train a model with a loss of your own: here Huber's, which cares less about the few worst cells of a latent.

A loss is a function of the network and a batch, and gives a number for each image. Everything else (data, phases,
checkpoints, samples, the model folder in the end) stays the task's.

    pixart data extract MY_IMAGES runs/features
    python examples/custom_loss.py runs/features runs/huber
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import huber_loss

import pixart
from pixart.diffusion.objective import Objective
from pixart.training import train
from pixart.training.batches import Phase
from pixart.training.loop import LoopConfig
from pixart.training.recipe import Recipe
from pixart.training.tasks.text_to_image import TextToImage

DEFAULT_MODEL = Path(pixart.__file__).parent / "default_model"


def huber(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """The loss of each image, (B,), for a network that predicts the velocity of a rectified flow."""
    noised = Objective("flow").add_noise(batch["latent"], batch["rng"])
    velocity = model(noised.x_t, noised.timestep, batch["text"], batch["text_mask"])
    return huber_loss(velocity.float(), noised.target, reduction="none", delta=0.5).mean(dim=(1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path, help="made by pixart data extract")
    parser.add_argument("output", type=Path, help="run folder")
    parser.add_argument("--init", default=str(DEFAULT_MODEL), help="model folder to start from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    recipe = Recipe(
        output=options.output,
        phases=(Phase(options.steps, options.batch_size, features=options.features),),
        loop=LoopConfig(log_every=10),
    )
    print(train(TextToImage(init=options.init), recipe, loss=huber))


if __name__ == "__main__":
    main()
