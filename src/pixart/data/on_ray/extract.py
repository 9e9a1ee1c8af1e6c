"""Extraction as a Ray Data pipeline: the same batches, computed by the same code, by actors on many machines."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pixart.data.extract import Job, Runner
from pixart.data.extract_batch import Batch, Extractor, quarantined, work
from pixart.data.extract_workers import load
from pixart.data.feature_writer import BatchRecord
from pixart.data.on_ray.cloud import Fetched
from pixart.data.on_ray.session import Cluster


@dataclass
class ExtractTask:
    """Extracts a batch and writes it; its record comes back."""

    job: Job
    extractor: Extractor | None = None
    fetched: Fetched = field(default_factory=Fetched)

    def __call__(self, batch: Batch) -> BatchRecord:
        if self.extractor is None:
            import torch

            self.extractor = load(self.job, device="cuda" if torch.cuda.is_available() else "cpu")
            self.extractor.read = self.fetched.read
        return work(self.extractor, batch, self.job.folder, self.job.origin)

    def given_up(self, batch: Batch) -> BatchRecord:
        return quarantined(batch, "its process was ended by the system each time, perhaps for want of memory.")


def runner(cluster: Cluster) -> Runner:
    """Who computes the batches for `extract`: the actors of a Ray cluster. They all must reach the paths."""

    def run(job: Job, batches: Iterator[Batch]) -> Iterator[BatchRecord]:
        yield from cluster.each(ExtractTask(job), ((batch.number, batch) for batch in batches))

    return run
