"""What is seen of a run while it trains: its figures at a tracker, pictures in `samples/`, and its receipt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pixart.tracking.tracker import Tracker
from pixart.training.batches import phase_at, total_steps
from pixart.training.model_card import write_card
from pixart.training.receipt import NAME, Meter, done, write
from pixart.training.samples import Sampler

BANDS = 5  # of noise levels, for the loss by noise level
NAMES = {"loss": "train_loss"}  # what the loop calls it -> what trackers have called it since the official trainer


class Watch:
    """Stands between the loop and those who look on. A context manager; the main process has the only one.

    `record`, `evaluate` and `receipt` are what the loop takes. Nothing here changes what is trained: pictures have
    noise of their own, and neither a tracker nor a picture that fails stops the run.
    """

    def __init__(
        self,
        recipe,
        evaluate: Callable[[torch.nn.Module, int], dict[str, float]],
        *,
        settings: dict[str, Any],
        pictures: int | None = None,
        sampler: Sampler | None = None,
        processes: int = 1,
        report: Callable[[str], None] = print,
    ):
        """`settings` is the recipe as JSON; `pictures` the size of the data set, for `epoch`, None where not known."""
        recipe.run.mkdir(parents=True, exist_ok=True)
        self.recipe, self.plain_evaluate, self.pictures, self.sampler = recipe, evaluate, pictures, sampler
        self.report, self.steps = report, total_steps(recipe.phases)
        self.held_out: dict[str, float] = {}
        self.meter = Meter(recipe, energy=recipe.tracking.energy, processes=processes)
        self.tracker = Tracker(recipe.tracking, recipe.run, settings=settings, report=report)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.meter.close()
        self.tracker.close()

    def record(self, step: int, figures: dict[str, float]) -> None:
        """The loop's hook for every line of metrics.jsonl."""
        shown = {NAMES.get(name, name): figure for name, figure in figures.items()}
        if "loss" in figures:
            shown |= self.meter.look(step, figures)
            if self.pictures:
                shown["epoch"] = done(self.meter.works, step)[0] / self.pictures
        self.tracker.figures(step, shown)

    def evaluate(self, ema: torch.nn.Module, step: int) -> dict[str, float]:
        """The stage's own evaluation, and pictures where they are due."""
        self.held_out = self.plain_evaluate(ema, step)
        number = -(-step // self.recipe.loop.evaluate_every)
        if self.sampler and (number % self.sampler.config.every == 0 or step == self.steps):
            self._draw(ema, step)
        return self.held_out

    def finish(self, result: Path) -> None:
        """The run is over and has written `result`: a last receipt, and a card beside a model."""
        write(self.recipe.run / NAME, self.meter.receipt(self.steps))
        self.report(f"{self.recipe.run} {self.meter.summary(self.steps)}")
        if (result / "model_index.json").is_file():
            write_card(result, self.recipe, figures=self.held_out)

    def receipt(self, step: int) -> dict[str, Any]:
        """The loop's hook for a checkpoint."""
        return self.meter.receipt(step)

    def _draw(self, ema: torch.nn.Module, step: int) -> None:
        size = self.sampler.config.size or phase_at(self.recipe.phases, step - 1).size
        try:
            drawn = self.sampler.draw(ema, step, size)
        except Exception as error:  # pictures are for looking at; training does not depend on them
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.report(f"step {step:,}: no samples could be drawn: {reason}")
            return
        self.report(f"step {step:,}: {len(drawn)} samples in {drawn[0][0].parent}")
        self.tracker.pictures(step, "validation", drawn)


def loss_by_level(levels: torch.Tensor, losses: torch.Tensor) -> dict[str, float]:
    """Mean loss in each of five bands of the noise level, `held_out_loss_0.0_0.2` to `held_out_loss_0.8_1.0`.

    levels and losses are (N,), levels from 0 (picture) to 1 (noise). A band in which no level fell is left out.
    """
    band = (levels * BANDS).long().clamp(0, BANDS - 1)
    return {
        f"held_out_loss_{index / BANDS:.1f}_{(index + 1) / BANDS:.1f}": losses[band == index].mean().item()
        for index in range(BANDS)
        if (band == index).any()
    }
