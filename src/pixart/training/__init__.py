"""Training: one loop, and one file in `tasks` for each thing that is trained."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pixart.training.recipe import Recipe
    from pixart.training.task import Loss, Task


def train(task: "Task", recipe: "Recipe", loss: "Loss | None" = None) -> "Path":
    """Train `task` in the run folder `recipe.output`, or go on with a run that was stopped there; see `run.train`."""
    from pixart.training.run import train  # torch is imported when something is trained

    return train(task, recipe, loss)
