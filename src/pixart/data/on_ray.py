"""Captioning and extraction past one machine: Ray Data pipelines of one stage over local or cloud paths.

Batches go in, results come out in their order, and actors that die are replaced. Of data sets in the cloud, tar shards
and Parquet files are listed here, and fetched by the workers to find keys, captions and places; images are read one by
one.
"""

import logging
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pixart.data.captioner import Captioner, Item, caption_batch, lost
from pixart.data.dataset import open_dataset
from pixart.data.layouts.layout import Columns
from pixart.data.pairs import Pair, Problem, printable
from pixart.data.storage import Folder
from pixart.data.written_captions import WrittenCaptions
from pixart.errors import PixArtError, UsageError, reason_of

if TYPE_CHECKING:
    from pixart.data.extract import Batch, Extractor, Job, Runner
    from pixart.data.features import BatchRecord

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
    """Counts how often each item was begun; it outlives the actors that compute.

    Ray Data tries for ever, and the argument that limits it goes with Ray 2.64.
    """

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


@dataclass
class CaptionTask:
    """The rows of a batch of images."""

    captioner: Captioner

    def __call__(self, batch: list[Item]) -> list[dict]:
        self.captioner.load()
        return caption_batch(self.captioner, batch)

    def given_up(self, batch: list[Item]) -> list[dict]:
        why = "its process was ended by the system each time"
        return [lost(item.key, "failed", why, self.captioner.about()) for item in batch]


def caption_on(cluster: Cluster, captioner: Captioner, batches: Iterator[list[Item]]) -> Iterator[list[dict]]:
    """The rows of each batch, in the order of the batches, by the actors of a Ray cluster."""
    # Large windows: at each the model is loaded anew, and batches are small.
    return cluster.each(CaptionTask(captioner), enumerate(batches), window_size=100_000)


@dataclass
class ExtractTask:
    """Extracts a batch and writes it; its record comes back."""

    job: "Job"
    extractor: "Extractor | None" = None

    def __call__(self, batch: "Batch") -> "BatchRecord":
        from pixart.data.extract import load, torch_device, work

        self.extractor = self.extractor or load(self.job, device=torch_device())
        return work(self.extractor, batch, self.job.folder)

    def given_up(self, batch: "Batch") -> "BatchRecord":
        first, last = printable(batch.pairs[0].key), printable(batch.pairs[-1].key)
        which = f"batch {batch.number} ({first} to {last})"
        raise PixArtError(f"The process that extracts {which} was ended each time, perhaps for want of memory.")


def runner(cluster: Cluster) -> "Runner":
    """Who computes the batches for `extract`: the actors of a Ray cluster. They all must reach the paths."""

    def run(job: "Job", batches: "Iterator[Batch]") -> "Iterator[BatchRecord]":
        yield from cluster.each(ExtractTask(job), ((batch.number, batch) for batch in batches))

    return run


ENDINGS = (".tar", ".parquet")


@dataclass(frozen=True)
class CloudDataset:
    """`shards` are (URL, name relative to `path`). It is read as `Dataset` is, by the workers of a Ray cluster."""

    path: str
    shards: tuple[tuple[str, str], ...]
    cluster: Cluster
    columns: Columns
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        return f"{len(self.shards):,} shards in the cloud"

    @property
    def captions(self) -> Path:
        """Where the captions written for it are kept: on this machine, in the folder that one works in."""
        return Path.cwd() / f"{self.path.rstrip('/').rsplit('/', 1)[-1]}.pixart" / "captions"

    def pairs(self) -> Iterator[Pair | Problem]:
        """Every pair and problem, in the order of the shards."""
        items = enumerate(self.shards)
        with WrittenCaptions(self.captions) as written:
            yield from written.problems()
            # Without a CPU of their own: these workers wait for the network, and those that encode need the CPUs.
            for found in self.cluster.each(ListShard(self.columns), items, cpus=0):
                for one in found:
                    yield written.merged(one) if isinstance(one, Pair) else one

    def count_hint(self) -> int | None:
        return None


def open_cloud(url: str, cluster: Cluster, columns: Columns) -> CloudDataset:
    """The shards at a URL: of a folder, of a pattern with *, or one. Raises UsageError where there are none."""
    filesystem, root = Folder(url).filesystem()
    is_pattern = any(sign in root for sign in "*?[")
    try:
        found = filesystem.glob(root) if is_pattern else filesystem.find(root)
    except (OSError, ValueError) as error:
        raise PixArtError(f"{url} cannot be listed: {error}.") from None
    shards = sorted(path for path in found if path.lower().endswith(ENDINGS))
    if not shards:
        raise UsageError(
            f"There are no .tar or .parquet shards at {url}; in the cloud only these are read. Copy other layouts to "
            "this machine."
        )
    if is_pattern or root in shards:  # names start from the folder
        root = re.split(r"[*?\[]", root)[0].rpartition("/")[0]
    named = tuple((filesystem.unstrip_protocol(path), path[len(root) :].lstrip("/")) for path in shards)
    return CloudDataset(url, named, cluster, columns)


@dataclass(frozen=True)
class ListShard:
    """The pairs of one shard, with their places in the cloud."""

    columns: Columns

    def __call__(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        url, name = shard
        parent = name.rpartition("/")[0]
        with tempfile.TemporaryDirectory(prefix="pixart-cloud-") as folder:
            local = Path(folder) / name.rpartition("/")[2]
            filesystem, path = Folder(url).filesystem()
            try:
                filesystem.get_file(path, str(local))
            except OSError as error:
                raise PixArtError(f"{url} cannot be read: {error}.") from None
            columns = {"image_column": self.columns.image, "caption_column": self.columns.caption}
            return [_there(one, url, f"{parent}/" if parent else "") for one in open_dataset(local, **columns).pairs()]

    def given_up(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        raise PixArtError(f"The process that lists {shard[0]} was ended each time, perhaps for want of memory.")


def _there(one: Pair | Problem, url: str, parent: str) -> Pair | Problem:
    if isinstance(one, Problem):
        return replace(one, key=parent + one.key)
    problem = one.caption_problem and replace(one.caption_problem, key=parent + one.key)
    return replace(one, key=parent + one.key, image=replace(one.image, path=url), caption_problem=problem)
