"""One interface to the three services. Calls never wait and never raise: a thread hands the records over in order."""

import contextlib
import functools
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixart.errors import PixArtError, UsageError
from pixart.extras import missing_extra
from pixart.files import read_json_object, write_json

QUEUE_SIZE = 256  # records that wait for a slow service; more are dropped and counted
Cell = str | int | float | Path | None  # of a table; a Path is an image file


@dataclass(frozen=True)
class TrackingConfig:
    """Where the metrics of a run go besides its metrics.jsonl. No service is contacted unless it is named here.

    `offline` (wandb only) keeps everything in the run folder, for `wandb sync` later; trackio and TensorBoard are local
    anyway. `close_timeout` is how many seconds the end of a run may wait for the service.
    """

    to: Literal["none", "wandb", "trackio", "tensorboard"] = "none"
    project: str = "pixart"
    offline: bool = False
    close_timeout: float = 30.0

    def __post_init__(self):
        if not 0 <= self.close_timeout <= 3600:
            raise UsageError(f"tracking: close_timeout {self.close_timeout} must be from 0 to 3600 seconds.")
        if not self.project.strip():
            raise UsageError("tracking: project must have a name.")


class Tracker:
    """A service, opened in the background. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        *,
        settings: dict[str, Any] | None = None,
        say: Callable[[str], None] = print,
        identity: str | None = None,
    ):
        """Start the service; a folder that was tracked before is the same run again, unless `identity` names one.

        `settings`: what the service shows beside the curves, JSON values. `say` gets one line when the service fails,
        and one at the end if it did not get everything.
        """
        self.config, self.folder, self.say = config, folder, say
        self.offered = self.delivered = 0
        self.failed = False
        self.queue: queue.Queue[tuple[str, tuple] | None] = queue.Queue(QUEUE_SIZE)
        self.thread: threading.Thread | None = None
        if config.to != "none":
            opening = (identity or _identity(folder), settings or {})
            self.thread = threading.Thread(target=self._deliver, args=opening, daemon=True)
            self.thread.start()

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        self._offer("metrics", step, metrics)

    def images(self, step: int, name: str, images: list[tuple[Path, str]]) -> None:
        """Image files with their captions, under one name such as "validation"."""
        self._offer("images", step, name, images)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Cell]]) -> None:
        """Weights & Biases and trackio only."""
        self._offer("table", step, name, columns, rows)

    def call(self, step: int, entry: dict[str, Any]) -> None:
        """Add a generation to `workflow` in the run's configuration. Weights & Biases and trackio only."""
        self._offer("call", step, entry)

    def close(self) -> None:
        """Let the service finish, for at most `close_timeout` seconds."""
        if self.thread is None:
            return
        end = time.monotonic() + self.config.close_timeout
        with contextlib.suppress(queue.Full):
            self.queue.put(None, timeout=self.config.close_timeout)
        self.thread.join(max(0.0, end - time.monotonic()))
        if self.delivered < self.offered and not self.failed:
            lost = self.offered - self.delivered
            self.say(
                f"{self.config.to} did not get {lost} of {self.offered} records; the run is complete without them."
            )
        self.thread = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _offer(self, kind: str, *record: Any) -> None:
        if self.thread is not None:
            self.offered += 1
            with contextlib.suppress(queue.Full):  # lost, and counted in the end
                self.queue.put_nowait((kind, record))

    def _deliver(self, identity: str, settings: dict[str, Any]) -> None:
        """The thread. After a failure it goes on taking records, so that nobody waits for it."""
        service = None
        try:
            service = SERVICES[self.config.to](self.config, self.folder.resolve(), identity, settings)
        except BaseException as error:  # a service may raise anything, SystemExit too
            self._fail(error)
        while (record := self.queue.get()) is not None:
            if service is not None:
                try:
                    getattr(service, record[0])(*record[1])
                    self.delivered += 1
                except BaseException as error:
                    self._fail(error)
        if service is not None:
            with contextlib.suppress(BaseException):
                service.finish()

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            known = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
            reason = (str(known or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            self.say(f"{self.config.to}: {reason}. The run goes on without it.")
        self.failed = True


class Wandb:
    """Weights & Biases. Its files go into the run folder, where `wandb sync` finds them if the network was away."""

    def __init__(self, config: TrackingConfig, folder: Path, identity: str, settings: dict[str, Any]):
        import wandb

        self.wandb, self.workflow = wandb, []
        self.run = wandb.init(
            project=config.project,
            name=f"{folder.name}-{identity}",
            id=identity,
            resume="allow",
            dir=folder,
            config=settings,
            mode="offline" if config.offline else None,  # None: what WANDB_MODE says, else online
            settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True, init_timeout=60),
        )
        # Our step, not a count of records: a run that was killed takes some steps again, with the same numbers.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log({"step": step, **metrics})

    def images(self, step: int, name: str, images: list[tuple[Path, str]]) -> None:
        self.run.log({"step": step, name: [self.wandb.Image(str(path), caption=text) for path, text in images]})

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Cell]]) -> None:
        cells = [[self.wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self.run.log({"step": step, name: self.wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})

    def call(self, step: int, entry: dict[str, Any]) -> None:
        self.workflow.append(entry)
        self.run.config.update({"workflow": self.workflow}, allow_val_change=True)

    def finish(self) -> None:
        self.run.finish()


class Trackio:
    """trackio, local: `trackio show --project pixart` shows it."""

    def __init__(self, config: TrackingConfig, folder: Path, identity: str, settings: dict[str, Any]):
        import trackio

        # It prints to stdout, which is for results; redirecting that here would take those of the main thread along.
        for module in (trackio, trackio.run, trackio.utils):
            module.print = functools.partial(print, file=sys.stderr)
        name = f"{folder.name}-{identity}"
        local = {"embed": False, "auto_log_cpu": False}
        self.trackio = trackio
        self.run = trackio.init(project=config.project, name=name, config=settings, resume="allow", **local)

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def images(self, step: int, name: str, images: list[tuple[Path, str]]) -> None:
        # It knows single images only, so each gets a name of its own.
        numbered = {f"{name}/{i}": self.trackio.Image(str(path), caption=text) for i, (path, text) in enumerate(images)}
        self.run.log(numbered, step=step)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Cell]]) -> None:
        cells = [[self.trackio.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self.run.log({name: self.trackio.Table(columns=columns, data=cells)}, step=step)

    def call(self, step: int, entry: dict[str, Any]) -> None:
        # Its configuration is fixed when a run begins; what comes later stands among the records.
        self.run.log({"workflow": entry}, step=step)

    def finish(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in `tensorboard/` of the run folder: `tensorboard --logdir runs`."""

    def __init__(self, config: TrackingConfig, folder: Path, identity: str, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.folder = None, folder / "tensorboard"
        self.make = SummaryWriter

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._at(step).add_scalar(name, value, step)

    def images(self, step: int, name: str, images: list[tuple[Path, str]]) -> None:
        import numpy as np
        from PIL import Image

        for number, (path, _) in enumerate(images):
            with Image.open(path) as image:
                self._at(step).add_image(f"{name}/{number}", np.asarray(image), step, dataformats="HWC")

    def finish(self) -> None:
        if self.writer:
            self.writer.close()

    def _at(self, step: int):
        """Of a continued run, what an earlier file holds from this step on is taken again and hidden there."""
        self.writer = self.writer or self.make(str(self.folder), purge_step=step)
        return self.writer


SERVICES = {"wandb": Wandb, "trackio": Trackio, "tensorboard": TensorBoard}


def _identity(folder: Path) -> str:
    """A name for the run that it keeps when it is continued."""
    path = folder / "tracking.json"
    with contextlib.suppress(PixArtError):
        known = read_json_object(path).get("id")
        if isinstance(known, str) and known.isalnum():
            return known
    identity = uuid.uuid4().hex[:8]
    with contextlib.suppress(OSError):
        write_json(path, {"id": identity})
    return identity
