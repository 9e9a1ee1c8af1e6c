"""Captioning as a Ray Data pipeline: the same batches to the same rows, by actors that each hold the model."""

from collections.abc import Iterator
from dataclasses import dataclass

from pixart.data.captioning.captioner import Captioner, Item
from pixart.data.captioning.rows import caption_batch, lost
from pixart.data.on_ray.session import Cluster


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
