"""A Ray Data pipeline of one stage: batches in, results out in their order; actors that die are replaced."""

import logging
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from pixart.errors import PixArtError, UsageError, reason_of

ATTEMPTS = 3  # how often an item is tried when the actor's process ends with it
WINDOW = 4096  # items that are planned before they are computed, so that the plan of a huge data set fits in memory


class Task(Protocol):
    """What an actor does. Made once in the driver and pickled; loads what it needs at its first item.

    A PixArtError ends the run. Other failures are the task's own to retry. `given_up` stands in for an item at which
    the actor's process ended `ATTEMPTS` times.
    """

    def __call__(self, item: Any) -> Any: ...

    def given_up(self, item: Any) -> Any: ...


@dataclass(frozen=True)
class Cluster:
    """A running Ray, and how many workers to use on it (None: one per CPU, or per share of a GPU)."""

    workers: int | None = None
    gpus_per_worker: float = 0.0

    def size(self) -> int:
        """The number of actors. Raises UsageError where the cluster has no GPU for them."""
        import ray

        if self.workers is not None:
            return self.workers
        there = ray.cluster_resources()
        if self.gpus_per_worker == 0:
            return max(1, int(there.get("CPU", 1)))
        count = int(there.get("GPU", 0) / self.gpus_per_worker)
        if count < 1:
            raise UsageError(f"Ray has {there.get('GPU', 0):g} GPUs; leave --gpus-per-worker out, or add some.")
        return count

    def each(
        self, task: Task, items: Iterator[tuple[int, Any]], *, cpus: float = 1.0, window_size: int = WINDOW
    ) -> Iterator[Any]:
        """The result of `task` on each numbered item, in the order of the items. Each window has actors of its own."""
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        attempts = ray.remote(num_cpus=0)(Attempts).remote()
        while window := [{"number": n, "item": pickle.dumps(item)} for n, item in islice(items, window_size)]:
            results = ray.data.from_items(window, override_num_blocks=len(window)).map_batches(
                Actor,
                fn_constructor_args=(task, attempts),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(self.size(), len(window)), max_tasks_in_flight_per_actor=2),
                num_cpus=cpus,
                num_gpus=self.gpus_per_worker if cpus else 0,
            )
            try:
                for row in results.iter_rows():
                    result = pickle.loads(row["result"])
                    if isinstance(result, PixArtError):
                        raise result
                    yield result
            except ray.exceptions.RayError as error:
                last = ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[
                    -1
                ]
                raise PixArtError(
                    f"Ray could not go on: {last} Every machine needs the same pixart and must reach the same paths; "
                    "run the same command again to go on."
                ) from None


class Attempts:
    """Counts how often each item was begun; it outlives the actors that compute."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, number: int) -> int:
        self._counts[number] = self._counts.get(number, 0) + 1
        return self._counts[number]


class Actor:
    """What Ray Data runs: a batch of one item, pickled, becomes its result, pickled."""

    def __init__(self, task: Task, attempts: Any):
        self._task, self._attempts = task, attempts

    def __call__(self, batch):
        import pyarrow
        import ray

        (row,) = batch.to_pylist()
        item = pickle.loads(row["item"])
        tries = ray.get(self._attempts.begin.remote(row["number"]))
        try:
            result = self._task(item) if tries <= ATTEMPTS else self._task.given_up(item)
        except PixArtError as error:
            result = error
        return pyarrow.table({"result": [pickle.dumps(result)]})


def start(address: str, *, workers: int | None = None, gpus_per_worker: float = 0.0) -> Cluster:
    """For Ray Data, on the cluster at `address`; see `connect`."""
    if gpus_per_worker < 0 or (workers is not None and workers < 1):
        raise UsageError(f"{workers} workers with {gpus_per_worker:g} GPUs each cannot be; give 1 or more, 0 or more.")
    connect(address)
    import ray.data  # noqa: F401  it sets the level of its logger

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return Cluster(workers, gpus_per_worker)


def connect(address: str) -> None:
    """Join the Ray cluster at `address` ("auto": the one that this machine is part of), or start one: "local".

    Nothing is sent to Ray's makers. Raises PixArtError where no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        dashboard = False if address == "local" else None
        try:
            ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PixArtError(
                f"No Ray cluster answers at {address}: {reason_of(error)}. Start one with ray start --head, or "
                "give --ray local."
            ) from None
