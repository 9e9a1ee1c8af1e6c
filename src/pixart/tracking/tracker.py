"""One interface to the three services. Calls never wait and never raise: a thread hands the records over in order."""

import contextlib
import functools
import importlib
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from pixart.errors import PixArtError, UsageError, reason_of
from pixart.extras import missing_extra
from pixart.files import read_json_object, write_json

QUEUE_SIZE = 256  # records that wait for a slow service; more are dropped and counted
Cell = str | int | float | Path | Image | None  # of a table; a path is an image file


@dataclass(frozen=True)
class Images:
    """Images, or their files, with captions."""

    images: list[tuple[Path | Image, str]]


@dataclass(frozen=True)
class Table:
    """For Weights & Biases and trackio; TensorBoard has none."""

    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Setting:
    """One more entry of a list in the run's configuration; among the records where the service keeps that fixed."""

    value: dict[str, Any]


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
        queue_size: int = QUEUE_SIZE,
    ):
        """Start the service; a folder that was tracked before is the same run again, unless `identity` names one.

        `settings`: what the service shows beside the curves, JSON values. `say` gets one line when the service fails,
        and one at the end if it did not get everything.
        """
        self.config, self.folder, self.say = config, folder, say
        self.offered = self.delivered = 0
        self.failed = False
        self.queue: queue.Queue[tuple[int, dict[str, Any]] | None] = queue.Queue(queue_size)
        self.thread: threading.Thread | None = None
        if config.to != "none":
            opening = (identity or _identity(folder), settings or {})
            self.thread = threading.Thread(target=self._deliver, args=opening, daemon=True)
            self.thread.start()

    def log(self, step: int, values: dict[str, float | Images | Table | Setting]) -> None:
        """Record values by name; those of one step may come in several calls."""
        if self.thread is not None:
            self.offered += 1
            with contextlib.suppress(queue.Full):  # lost, and counted in the end
                self.queue.put_nowait((step, values))

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

    def _deliver(self, identity: str, settings: dict[str, Any]) -> None:
        """The thread. After a failure it goes on taking records, so that nobody waits for it."""
        service = None
        try:
            kind = TensorBoard if self.config.to == "tensorboard" else Dashboard
            service = kind(self.config, self.folder.resolve(), identity, settings)
        except BaseException as error:  # a service may raise anything, SystemExit too
            self._fail(error)
        while (record := self.queue.get()) is not None:
            if service is not None:
                try:
                    service.log(*record)
                    self.delivered += 1
                except BaseException as error:
                    self._fail(error)
        if service is not None:
            with contextlib.suppress(BaseException):
                service.finish()

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            known = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
            self.say(f"{self.config.to}: {reason_of(known or error)}. The run goes on without it.")
        self.failed = True


class Dashboard:
    """Weights & Biases, whose files go into the run folder, where `wandb sync` finds them if the network was away;
    or trackio, which has its calls and is local: `trackio show --project pixart`."""

    def __init__(self, config: TrackingConfig, folder: Path, identity: str, settings: dict[str, Any]):
        self.library, self.wandb = importlib.import_module(config.to), config.to == "wandb"
        self.lists: dict[str, list[dict[str, Any]]] = {}
        given = {"project": config.project, "name": f"{folder.name}-{identity}", "config": settings, "resume": "allow"}
        if not self.wandb:
            # It prints to stdout, which is for results; redirecting that would take those of the main thread along.
            for module in (self.library, self.library.run, self.library.utils):
                module.print = functools.partial(print, file=sys.stderr)
            self.run = self.library.init(**given, embed=False, auto_log_cpu=False)
            return
        quiet = {"console": "off", "silent": True, "disable_code": True, "disable_git": True, "init_timeout": 60}
        # wandb reads the environment once in a process, perhaps for another run before this one.
        mode = "offline" if config.offline else os.environ.get("WANDB_MODE")
        options = {"id": identity, "dir": folder, "mode": mode, "settings": self.library.Settings(**quiet)}
        self.run = self.library.init(**given, **options)
        # Our step, not a count of records: a run that was killed takes some steps again, with the same numbers.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, Any]) -> None:
        record: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Images):
                images = [self._image(image, caption=text) for image, text in value.images]
                # trackio knows single images only, so each gets a name of its own.
                record |= {name: images} if self.wandb else {f"{name}/{i}": image for i, image in enumerate(images)}
            elif isinstance(value, Table):
                cells = [[self._image(c) if isinstance(c, Path | Image) else c for c in row] for row in value.rows]
                mixed = {"allow_mixed_types": True} if self.wandb else {}
                record[name] = self.library.Table(columns=value.columns, data=cells, **mixed)
            elif isinstance(value, Setting) and self.wandb:
                self.lists.setdefault(name, []).append(value.value)
                self.run.config.update({name: self.lists[name]}, allow_val_change=True)
            else:
                record[name] = value.value if isinstance(value, Setting) else value
        if self.wandb:
            self.run.log({"step": step, **record})
        else:
            self.run.log(record, step=step)

    def finish(self) -> None:
        self.run.finish()

    def _image(self, image: Path | Image, **caption: str) -> Any:
        return self.library.Image(str(image) if isinstance(image, Path) else image, **caption)


class TensorBoard:
    """Event files in `tensorboard/` of the run folder: `tensorboard --logdir runs`."""

    def __init__(self, config: TrackingConfig, folder: Path, identity: str, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.open = functools.partial(SummaryWriter, str(folder / "tensorboard"))
        self.writer: Any = None

    def log(self, step: int, values: dict[str, Any]) -> None:
        import numpy as np
        from PIL import Image

        # Of a continued run, what an earlier file holds from this step on is taken again and hidden there.
        self.writer = self.writer or self.open(purge_step=step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)
            elif isinstance(value, Images):
                for number, (path, _) in enumerate(value.images):
                    with Image.open(path) as image:
                        self.writer.add_image(f"{name}/{number}", np.asarray(image), step, dataformats="HWC")

    def finish(self) -> None:
        if self.writer:
            self.writer.close()


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
