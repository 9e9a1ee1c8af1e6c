"""What to say when a loss or a gradient is not a number any more: which step, which noise levels, which pictures."""

import contextlib
import json
import math
from pathlib import Path

import torch

from pixart.errors import PixArtError
from pixart.training.distributed import World
from pixart.training.files import write_whole

NAMED = 8  # pictures in the sentence; the file has them all


def error(step: int, loss: float, norm: float, batches: list[dict], run: Path, world: World) -> PixArtError:
    """The error to raise instead of the update of step `step`. All processes must ask for it.

    Args:
        batches: what this process has computed of the step. `keys` names the pictures of a batch; a loss leaves
            `levels` (B,), the noise levels, and `losses` (B,) in it. What is missing is not named.

    Writes `nonfinite.json` with every picture of the step, or only with those whose own loss is not finite.
    """
    mine = [picture for batch in batches for picture in _pictures(batch)]
    pictures = [picture for part in world.from_all(mine) for picture in part]
    guilty = [picture for picture in pictures if not math.isfinite(picture.get("loss", 0.0))]
    shown = guilty or pictures
    named = ", ".join(_named(picture) for picture in shown[:NAMED])
    more = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
    which = "Pictures whose loss is not finite" if guilty else "Pictures of the step"
    if world.main and shown:
        shown = [{key: _plain(value) for key, value in picture.items()} for picture in shown]
        report = {"step": step, "loss": _plain(loss), "gradient_norm": _plain(norm), "pictures": shown}
        with contextlib.suppress(PixArtError):  # a full disk is not the news
            write_whole(run / "nonfinite.json", json.dumps(report, indent=1))
        named = f" {which}: {named}{more} (all in {run / 'nonfinite.json'})."
    return PixArtError(
        f"Step {step}: loss {loss}, gradient norm {norm}; stopped before the update.{named} "
        f"The last good checkpoint in {run} is kept. Look at those pictures, or try a lower --optimizer.learning-rate."
    )


def _pictures(batch: dict) -> list[dict]:
    columns = {}
    for name, column in (("keys", "key"), ("levels", "noise_level"), ("losses", "loss")):
        if name in batch:
            values = batch[name]
            columns[column] = values.tolist() if torch.is_tensor(values) else list(values)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _named(picture: dict) -> str:
    name = str(picture.get("key", "a picture without a key"))
    return f"{name} at noise level {picture['noise_level']:.3f}" if "noise_level" in picture else name


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
