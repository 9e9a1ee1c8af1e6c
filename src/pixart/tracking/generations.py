"""Every drawing as a record in Weights & Biases or trackio, under the names that W&B's Diffusers integration uses.

`wandb.integration.diffusers` (0.31) logs one call of a Diffusers pipeline as `workflow` in the configuration, the
pictures at "Generated-Image/Pipeline-Call-n" and a table at "Result-Table/Pipeline-Call-n". Dashboards that were made
for it show ours. It drops all but the first picture of a prompt; here, each has its place and its row.
"""

import contextlib
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pixart.errors import UsageError
from pixart.tracking.tracker import Cell, Tracker, TrackingConfig

TOOLS = ("wandb", "trackio")
RESULT_COLUMNS = ["Prompt", "Negative-Prompt", "Generated-Image"]
# Of a second table, so that the first has W&B's columns only; and what stands there, by the names of our settings.
SETTINGS_COLUMNS = {
    "Seed": "seed",
    "Prompt-As-Given": "prompt",
    "Style": "style",
    "Sampler": "sampler",
    "Steps": "steps",
    "Guidance-Scale": "guidance_scale",
    "Width": "width",
    "Height": "height",
    "Pixels-SHA256": "pixels_sha256",
}
# What Diffusers calls it in a pipeline's call, where it has a name there.
PARAMETERS = {
    "steps": "num_inference_steps",
    "resolved_prompt": "prompt",
    "resolved_negative_prompt": "negative_prompt",
}
# Of a picture's settings: what belongs to the model and the machine, not to the call.
PIPELINE = ("model", "model_hash", "weights", "source", "engine", "device", "dtype", "threads", "memory", "versions")
PER_PICTURE = ("seed", "steps", "prompt", "resolved_prompt", "resolved_negative_prompt", "pixels_sha256", "format")


class Drawn(Protocol):
    """What is tracked: `pixart.pipeline.pipeline.Picture`."""

    image: Any
    seed: int
    settings: dict[str, Any]


class GenerationTracker:
    """One run of a tracking service, in which every `log` is one pipeline call. Nothing in it waits but `close`.

    The service works in a process of its own (tracker.py): if it is down, slow or not installed, that is reported in
    one line and the drawing goes on.
    """

    def __init__(
        self,
        tool: str,
        folder: Path,
        *,
        report: Callable[[str], None] | None = None,
        close_timeout: float = 30.0,
    ):
        """Begin a new run of `tool`, "wandb" or "trackio".

        W&B's own files go into `folder`/wandb (WANDB_MODE=offline keeps them there), and what the service says into
        `folder`/tracking.log. `report` takes a line when the service fails; None prints it to stderr. `close` waits
        for at most `close_timeout` seconds.

        Raises:
            UsageError: there is no such tool.
        """
        if tool not in TOOLS:
            raise UsageError(f'There is no tracker "{tool}" for drawings; choose one of: {", ".join(TOOLS)}.')
        self.report = report or (lambda line: print(line, file=sys.stderr, flush=True))
        self.calls = 0
        self.pictures: Path | None = None
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self.pictures = Path(tempfile.mkdtemp(prefix=".tracking-", dir=folder))
        kept = "The drawing goes on without it, and the pictures are written as ever"
        config = TrackingConfig(to=tool, close_timeout=close_timeout)
        self.tracker = Tracker(config, folder, report=self.report, identity=uuid.uuid4().hex[:8], kept=kept)

    def log(self, pictures: Sequence[Drawn], seconds: float) -> None:
        """Record one call, which took `seconds` for all its pictures: configuration, texts, seeds, time, pictures."""
        if not pictures:
            return
        self.calls += 1
        call, step = f"Pipeline-Call-{self.calls}", self.calls
        self.tracker.call(step, {**describe([picture.settings for picture in pictures]), "stage": call})
        count = len(pictures)
        figures = {"seconds": seconds, "seconds-per-image": seconds / count, "images": count}
        self.tracker.figures(step, {f"Generation/{name}": figure for name, figure in figures.items()})
        files = self._write(pictures)
        if not files:
            return
        texts = [picture.settings["resolved_prompt"] for picture in pictures]
        negatives = [picture.settings["resolved_negative_prompt"] for picture in pictures]
        results: list[list[Cell]] = [list(row) for row in zip(texts, negatives, files, strict=True)]
        self.tracker.pictures(step, f"Generated-Image/{call}", list(zip(files, texts, strict=True)))
        self.tracker.table(step, f"Result-Table/{call}", RESULT_COLUMNS, results)
        settings = [[picture.settings.get(key) for key in SETTINGS_COLUMNS.values()] for picture in pictures]
        self.tracker.table(step, f"Settings-Table/{call}", list(SETTINGS_COLUMNS), settings)

    def table(self, name: str, columns: list[str], rows: list[list[Cell]]) -> None:
        """Record a table of one's own; a path in it is a picture file, which must stay until `close`."""
        self.tracker.table(max(self.calls, 1), name, columns, rows)

    def close(self) -> None:
        """Let the service finish what it has, then end it, and say what it did not get."""
        self.tracker.close()
        if self.pictures is not None:
            shutil.rmtree(self.pictures, ignore_errors=True)

    def __enter__(self) -> "GenerationTracker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, pictures: Sequence[Drawn]) -> list[Path]:
        """Copies for the service, which reads them later than now."""
        if self.pictures is None:
            return []
        files = [self.pictures / f"{self.calls}-{number}.png" for number in range(len(pictures))]
        try:
            for file, picture in zip(files, pictures, strict=True):
                picture.image.save(file, compress_level=1)
        except OSError as error:
            self.report(f"The pictures cannot be tracked: {error.strerror or error}.")
            return []
        return files


def describe(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of one call's pictures -> `pipeline` and `params` of W&B's `workflow`, by Diffusers' names."""
    first = settings[0]
    prompts = list(dict.fromkeys(one["resolved_prompt"] for one in settings))
    call = {key: value for key, value in first.items() if key not in (*PIPELINE, *PER_PICTURE)}
    call |= {
        "prompt": prompts[0] if len(prompts) == 1 else prompts,
        "negative_prompt": first["resolved_negative_prompt"],
        "num_inference_steps": first["steps"],
        "num_images_per_prompt": len(settings) // len(prompts),
        "generator": {"seed": [one["seed"] for one in settings], "device": "cpu", "random_state": None},
    }
    pipeline = {key: first[key] for key in PIPELINE if key in first}
    return {"pipeline": {**pipeline, "pipeline-name": "PixArtAlphaPipeline"}, "params": call}
