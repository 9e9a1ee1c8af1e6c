"""Captioning as a Ray Data pipeline: the same batches to the same rows, by actors that each hold the model."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pixart.captions.captioner import Captioner
from pixart.captions.metadata_captioner import MetadataCaptioner
from pixart.captions.vision_language import VisionLanguageCaptioner, VisionLanguageSettings
from pixart.data.caption import Answers
from pixart.data.caption_batch import Uncaptioned, caption_batch, row_settings
from pixart.data.on_ray.cloud import Fetched
from pixart.data.on_ray.session import Cluster
from pixart.data.pairs import ImageProblem


@dataclass
class CaptionTask:
    """The rows of a batch of pictures."""

    settings: VisionLanguageSettings | MetadataCaptioner
    openings: str
    captioner: Captioner | None = None
    fetched: Fetched = field(default_factory=Fetched)

    def __call__(self, batch: list[Uncaptioned]) -> list[dict]:
        if self.captioner is None:
            if isinstance(self.settings, VisionLanguageSettings):
                self.captioner = VisionLanguageCaptioner(self.settings)
            else:
                self.captioner = self.settings
        return caption_batch(self.captioner, [self._here(item) for item in batch], openings=self.openings)

    def _here(self, item: Uncaptioned) -> Uncaptioned:
        """With the bytes of its picture; a picture that cannot be read is left to `caption_batch` to name."""
        if item.data is None or isinstance(item.data, bytes):
            return item
        try:
            return replace(item, data=self.fetched.read(item.data))
        except ImageProblem:
            return item

    def given_up(self, batch: list[Uncaptioned]) -> list[dict]:
        about = row_settings(self.settings.about(), self.openings)
        lost = {"caption": None, "rejected": "failed", "error": "its process was ended by the system each time"}
        return [{"key": item.key} | lost | about for item in batch]


def answers(cluster: Cluster, settings: VisionLanguageSettings | MetadataCaptioner, openings: str) -> Answers:
    """Who answers for `caption_dataset`: the actors of a Ray cluster. Rows come in the order of the batches."""

    def run(batches: Iterator[list[Uncaptioned]]) -> Iterator[list[dict]]:
        # Large windows: at each the model is loaded anew, and batches are small.
        yield from cluster.each(CaptionTask(settings, openings), enumerate(batches), window_size=100_000)

    return run
