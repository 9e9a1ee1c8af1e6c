"""Extraction as a Ray Data pipeline: the same batches, computed by the same code, by actors on many machines."""

from collections.abc import Iterator
from dataclasses import dataclass

from pixart.data.extract import Batch, Extractor, Job, Runner, load, torch_device, work
from pixart.data.features import BatchRecord
from pixart.data.on_ray.session import Cluster
from pixart.data.pairs import printable
from pixart.errors import PixArtError


@dataclass
class ExtractTask:
    """Extracts a batch and writes it; its record comes back."""

    job: Job
    extractor: Extractor | None = None

    def __call__(self, batch: Batch) -> BatchRecord:
        self.extractor = self.extractor or load(self.job, device=torch_device())
        return work(self.extractor, batch, self.job.folder)

    def given_up(self, batch: Batch) -> BatchRecord:
        first, last = printable(batch.pairs[0].key), printable(batch.pairs[-1].key)
        which = f"batch {batch.number} ({first} to {last})"
        raise PixArtError(f"The process that extracts {which} was ended each time, perhaps for want of memory.")


def runner(cluster: Cluster) -> Runner:
    """Who computes the batches for `extract`: the actors of a Ray cluster. They all must reach the paths."""

    def run(job: Job, batches: Iterator[Batch]) -> Iterator[BatchRecord]:
        yield from cluster.each(ExtractTask(job), ((batch.number, batch) for batch in batches))

    return run
