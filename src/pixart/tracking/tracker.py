"""The face: `Tracker.figures` and `Tracker.pictures`, which never wait, never raise and never slow the caller down.

The service runs in a process of its own (worker.py), fed by a thread from a bounded queue. A thread alone is not
enough: with no network, Weights & Biases kept a finished program from ending for 13 to 22 seconds, since it waits when
Python exits. A process that hangs is ended, its prints go to a log file, and its work is done on another core.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixart.errors import UsageError
from pixart.tracking.energy import EnergySource

QUEUE_SIZE = 256  # records that wait for a slow service; more are dropped and counted
LOG_NAME = "tracking.log"
Service = Literal["none", "wandb", "trackio", "tensorboard"]
Cell = str | int | float | Path | None  # of a table


@dataclass(frozen=True)
class TrackingConfig:
    """Where the figures of a run go besides its metrics.jsonl. No service is asked unless it is named here.

    `offline` (wandb only) keeps everything in the run folder, for `wandb sync` later; trackio and TensorBoard are local
    anyway. `close_timeout` is how many seconds the end of a run may wait for the service. `energy` says who measures
    electricity for the receipt (see energy.py).
    """

    to: Service = "none"
    project: str = "pixart"
    offline: bool = False
    close_timeout: float = 30.0
    energy: EnergySource = "auto"

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
        run: Path,
        *,
        settings: dict[str, Any] | None = None,
        report: Callable[[str], None] = print,
        identity: str | None = None,
        kept: str = "The run goes on without it; metrics.jsonl has all figures",
    ):
        """Start the service for the run folder `run`, which must exist; a folder tracked before is the same run again.

        Args:
            settings: the configuration that the service shows beside the curves; JSON values.
            report: takes one line when the service fails, and one at the end if it did not get everything.
            identity: a name for the run, by which the service knows it; else the folder keeps one.
            kept: what to say of the records that a service did not get.
        """
        self.config, self.report, self.kept = config, report, kept
        self.offered = self.delivered = 0
        self.said = self.closed = False
        self.queue: queue.Queue[str | None] = queue.Queue(QUEUE_SIZE)
        self.log = run / LOG_NAME
        self.process: subprocess.Popen | None = None
        if config.to == "none":
            return
        identity = identity or _identity(run)
        opening = {
            "service": config.to,
            "run": str(run.resolve()),
            "name": f"{run.resolve().name}-{identity}",
            "id": identity,
            "project": config.project,
            "offline": config.offline,
            "settings": settings or {},
        }
        try:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "pixart.tracking.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the training; the service then gets its last figures
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._fail(f"cannot be started: {error.strerror}")
            return
        self.writer = threading.Thread(target=self._write, args=(json.dumps(opening),), daemon=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.writer.start()
        self.reader.start()

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Hand over named figures of a step."""
        self._offer({"step": step, "figures": figures})

    def pictures(self, step: int, name: str, pictures: list[tuple[Path, str]]) -> None:
        """Hand over pictures that are files already, each with its caption, under one name such as "validation"."""
        rows = [{"path": str(path.resolve()), "caption": caption} for path, caption in pictures]
        self._offer({"step": step, "name": name, "pictures": rows})

    def table(self, step: int, name: str, columns: list[str], rows: list[list[Cell]]) -> None:
        """Hand over a table; a path in it is a picture file. Weights & Biases and trackio only."""
        cells = [[{"picture": str(cell.resolve())} if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self._offer({"step": step, "name": name, "columns": columns, "rows": cells})

    def call(self, step: int, entry: dict[str, Any]) -> None:
        """Add a drawing to `workflow` in the run's configuration; JSON values. Weights & Biases and trackio only."""
        self._offer({"step": step, "call": entry})

    def close(self) -> None:
        """Let the service finish, for at most `close_timeout` seconds; then end it and say what it did not get."""
        if self.closed or self.process is None:
            return
        self.closed = True
        deadline = time.monotonic() + self.config.close_timeout
        while self.writer.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Full):
                self.queue.put(None, timeout=0.1)
                break
        self.writer.join(max(0.0, deadline - time.monotonic()))
        try:
            self.process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join(1.0)
        lost = self.offered - self.delivered
        if lost:
            self.report(
                f"{self.config.to} did not get {lost:,} of {self.offered:,} records. {self.kept}; {self.log} has what "
                f"{self.config.to} said."
            )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _offer(self, record: dict[str, Any]) -> None:
        if self.process is None or self.closed:
            return
        self.offered += 1
        with contextlib.suppress(queue.Full):  # lost, and counted in the end
            self.queue.put_nowait(json.dumps(record))

    def _write(self, opening: str) -> None:
        """The feeding thread: one line of JSON per record, until the end or until the process is gone."""
        try:
            line: str | None = opening
            while line is not None:
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()
                line = self.queue.get()
            self.process.stdin.close()
        except OSError:
            pass

    def _read(self) -> None:
        """The listening thread: the process says "ok" for each record, or what went wrong."""
        for line in self.process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                self._fail(answer["error"])
            else:
                self.delivered += 1

    def _fail(self, why: str) -> None:
        if not self.said:
            self.said = True
            self.report(f"{self.config.to}: {why}. {self.kept}.")


def _identity(run: Path) -> str:
    """A name for the run that it keeps when it is continued."""
    path = run / "tracking.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        identity = uuid.uuid4().hex[:8]
    with contextlib.suppress(OSError):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"id": identity}), encoding="utf-8")
        partial.replace(path)
    return identity
