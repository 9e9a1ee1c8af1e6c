"""What the loop writes and says: `metrics.jsonl`, the speed, and which images a loss that is not finite comes from."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pixart.errors import PixArtError, reason_of
from pixart.files import write_whole
from pixart.training.distribution import World

METRICS = "metrics.jsonl"
NAMED = 8  # images in the sentence
BANDS = 5  # of noise levels, for the loss by noise level


class Clock:
    """Measures between two reports; what happens in `paused` (validation, sampling) does not count."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.images, self.loading_s = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Since the last call: images per second, and the share of the time that went into loading batches."""
        now = time.perf_counter()
        passed = now - self.last
        metrics = {"images_per_second": self.images / passed, "loading_share": self.loading_s / passed}
        self.last, self.images, self.loading_s = now, 0, 0.0
        return metrics

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.loading_s += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.last += time.perf_counter() - begun


def log(run: Path, step: int, metrics: dict[str, float], record: Callable[[int, dict[str, float]], None]) -> None:
    """Append a line to metrics.jsonl. Raises PixArtError where the disk refuses."""
    path = run / METRICS
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {reason_of(error)}. The checkpoints are kept.") from None
    record(step, metrics)


def forget_after(run: Path, step: int) -> None:
    """Drop the metrics of steps that are about to be taken again, and a line that a kill cut short."""
    path = run / METRICS
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    write_whole(path, "".join(kept))


def not_finite(step: int, loss: float, norm: float, batches: list[dict], run: Path, world: World) -> PixArtError:
    """The error to raise instead of the update of step `step`. All processes must call it.

    `batches`: what this process has computed of the step. The error names the images whose own loss is not finite, or
    those of the step where that of none is.
    """
    images = [
        image for part in world.from_all([_images(batch) for batch in batches]) for each in part for image in each
    ]
    guilty = [image for image in images if not math.isfinite(image.get("losses", 0.0))]
    shown = guilty or images
    named = ", ".join(_named(image) for image in shown[:NAMED])
    more = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
    which = "Images whose loss is not finite" if guilty else "Images of the step"
    return PixArtError(
        f"Step {step}: loss {loss}, gradient norm {norm}; stopped before the update. {which}: {named}{more}. "
        f"The last good checkpoint in {run} is kept. Look at those images, or try a lower --optimizer.learning-rate."
    )


def loss_by_level(levels: torch.Tensor, losses: torch.Tensor) -> dict[str, float]:
    """Mean loss in each of five bands of the noise level, `validation_loss_0.0_0.2` to `validation_loss_0.8_1.0`.

    levels and losses are (N,), levels from 0 (image) to 1 (noise). A band in which no level fell is left out.
    """
    band = (levels * BANDS).long().clamp(0, BANDS - 1)
    return {
        f"validation_loss_{index / BANDS:.1f}_{(index + 1) / BANDS:.1f}": losses[band == index].mean().item()
        for index in range(BANDS)
        if (band == index).any()
    }


def _images(batch: dict) -> list[dict]:
    """The key, noise level and loss of each image, as far as the batch has them."""
    columns = {}
    for name in ("keys", "levels", "losses"):
        values = batch.get(name, ())
        values = values.flatten().tolist() if torch.is_tensor(values) else list(values)
        if len(values) == batch["count"]:  # a loss of one's own may be one number for all
            columns[name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _named(image: dict) -> str:
    name = str(image.get("keys", "an image without a key"))
    return f"{name} at noise level {image['levels']:.3f}" if "levels" in image else name
