"""Every generation as a record in Weights & Biases or trackio, under the names that W&B's Diffusers integration uses.

`wandb.integration.diffusers` (0.31) logs one call of a Diffusers pipeline as `workflow` in the configuration, the
images at "Generated-Image/Pipeline-Call-n" and a table at "Result-Table/Pipeline-Call-n". Dashboards made for
it show ours. It drops all but the first image of a prompt; here, each has its place and its row.
"""

import atexit
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pixart.config import unknown
from pixart.errors import UsageError
from pixart.tracking.tracker import Images, Setting, Table, Tracker, TrackingConfig

TOOLS = ("wandb", "trackio")
WAITING = 16  # calls with their images that wait for a slow service; more are dropped and counted
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
# Of an image's settings: what belongs to the model and the machine, not to the call.
PIPELINE = ("model", "model_hash", "weights", "source", "engine", "device", "dtype", "threads", "memory", "versions")
PER_IMAGE = ("seed", "steps", "prompt", "resolved_prompt", "resolved_negative_prompt", "pixels_sha256", "format")


class Generated(Protocol):
    """What is tracked: an image, its seed, and its settings as image metadata has them."""

    image: Any
    seed: int
    settings: dict[str, Any]


class GenerationTracker:
    """One run of a tracking service, in which every `log` is one pipeline call. Nothing in it waits but `close`.

    If the service is down, slow or not installed, that is reported in one line and nothing else happens.
    """

    def __init__(
        self,
        tool: str,
        folder: Path,
        *,
        project: str = "pixart",
        offline: bool = False,
        report: Callable[[str], None] | None = None,
        close_timeout: float = 30.0,
    ):
        """Begin a new run of `tool`, "wandb" or "trackio".

        W&B's own files go into `folder`/wandb (WANDB_MODE=offline keeps them there). `report`
        takes a line when the service fails; None prints it to stderr. `close` waits
        for at most `close_timeout` seconds.

        Raises:
            UsageError: there is no such tool.
        """
        if tool not in TOOLS:
            raise UsageError(f'There is no tracker "{tool}" for generations; choose one of: {", ".join(TOOLS)}.')
        self.calls = 0
        self.tracker = Tracker(
            TrackingConfig(to=tool, project=project, offline=offline, close_timeout=close_timeout),
            folder,
            say=report or (lambda line: print(line, file=sys.stderr, flush=True)),
            identity=uuid.uuid4().hex[:8],
            queue_size=WAITING,
        )

    def log(self, images: Sequence[Generated], seconds: float) -> None:
        """Record one call, which took `seconds` for all its images: configuration, texts, seeds, time, images."""
        if not images:
            return
        self.calls += 1
        call, count = f"Pipeline-Call-{self.calls}", len(images)
        kept = [one.image.copy() for one in images]  # the service reads them later than now
        texts = [one.settings["resolved_prompt"] for one in images]
        negatives = [one.settings["resolved_negative_prompt"] for one in images]
        settings = [[one.settings.get(key) for key in SETTINGS_COLUMNS.values()] for one in images]
        values = {
            "workflow": Setting({**describe([one.settings for one in images]), "stage": call}),
            "Generation/seconds": seconds,
            "Generation/seconds-per-image": seconds / count,
            "Generation/images": count,
            f"Generated-Image/{call}": Images(list(zip(kept, texts, strict=True))),
            f"Result-Table/{call}": Table(RESULT_COLUMNS, [list(r) for r in zip(texts, negatives, kept, strict=True)]),
            f"Settings-Table/{call}": Table(list(SETTINGS_COLUMNS), settings),
        }
        self.tracker.log(self.calls, values)

    def close(self) -> None:
        """Let the service finish what it has, then end it, and say what it did not get."""
        self.tracker.close()

    def __enter__(self) -> "GenerationTracker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def describe(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of one call's images -> `pipeline` and `params` of W&B's `workflow`, by Diffusers' names."""
    first = settings[0]
    prompts = list(dict.fromkeys(one["resolved_prompt"] for one in settings))
    call = {key: value for key, value in first.items() if key not in (*PIPELINE, *PER_IMAGE)}
    call |= {
        "prompt": prompts[0] if len(prompts) == 1 else prompts,
        "negative_prompt": first["resolved_negative_prompt"],
        "num_inference_steps": first["steps"],
        "num_images_per_prompt": len(settings) // len(prompts),
        "generator": {"seed": [one["seed"] for one in settings], "device": "cpu", "random_state": None},
    }
    pipeline = {key: first[key] for key in PIPELINE if key in first}
    return {"pipeline": {**pipeline, "pipeline-name": "PixArtAlphaPipeline"}, "params": call}


AUTOLOG = ("project", "dir", "mode")  # what `autolog` takes of wandb.init's arguments
_automatic: GenerationTracker | None = None


def autolog(init: dict[str, str] | None = None, *, tool: str = "wandb") -> GenerationTracker:
    """Record every call of every `pixart.Pipeline` from now on, as `wandb.integration.diffusers.autolog` does.

    The run ends with the program, or with `close()` of what is returned.

    Args:
        init: "project", "dir" and "mode" (such as "offline") as wandb.init takes them.

    Raises:
        UsageError: other arguments, or another tool.
    """
    global _automatic
    init = init or {}
    for name in init:
        if name not in AUTOLOG:
            raise UsageError(unknown("argument of autolog", name, AUTOLOG))
    if _automatic is not None:
        _automatic.close()
    folder, offline = Path(init.get("dir") or "."), init.get("mode") == "offline"
    _automatic = GenerationTracker(tool, folder, project=init.get("project") or "pixart", offline=offline)
    atexit.register(_automatic.close)
    return _automatic


def log_call(images: Sequence[Generated], seconds: float) -> None:
    """Record one call, where `autolog` has been called."""
    if _automatic is not None:
        _automatic.log(images, seconds)
