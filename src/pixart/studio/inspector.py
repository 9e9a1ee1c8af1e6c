"""Word attention of an image: where in it each word of its prompt was read."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from pixart.pipeline.attention_maps import generate_with_maps, overlay, torch_pipeline
from pixart.pipeline.request import make_request
from pixart.pipeline.restore import fit_to_model, restore_settings
from pixart.studio import markup
from pixart.studio.preview import data_uri
from pixart.studio.studio import Stopped, Studio

MOST_WORDS = 40  # that are shown


class Inspection:
    """The image of a file generated once more, with torch, which hands its attention out; for `Studio.follow`."""

    def __init__(self, studio: Studio, path: Path):
        self.studio, self.path = studio, path
        self.shown = "Loading the model"

    def view(self) -> list:
        return [self.shown]

    def run(self, stop: threading.Event) -> None:
        pipeline = self.studio.models.require().pipeline
        request = make_request(pipeline.folder, **fit_to_model(restore_settings(self.path), pipeline.folder).request)

        def on_step(index: int, step: Any) -> None:
            if stop.is_set():
                raise Stopped
            self.shown = markup.lines([f"Step {step.index + 1} of {request.steps}"])

        generated, maps = generate_with_maps(torch_pipeline(pipeline), request, on_step)
        words = [
            (word, float(share.mean()), data_uri(np.asarray(overlay(generated.image, share)), small=True))
            for word, share in list(zip(maps.words, maps.shares, strict=True))[:MOST_WORDS]
        ]
        self.shown = markup.word_maps(words, float(maps.rest.mean()))
