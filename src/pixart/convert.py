"""`pixart convert`: a model in another form."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import arg

from pixart.errors import PixArtError, UsageError

FORMS = ("onnx",)
LARGEST_DIFFERENCE = 2  # of 255, between the engines on the same noise


@dataclass
class Convert:
    """Write a model in another form.

    onnx: add the graphs to a model folder that `pixart generate` draws without torch, and check that both engines draw
    the same picture. The graphs hold no weights: they point into the folder's safetensors files.
    """

    source: Annotated[Path, arg(metavar="FOLDER")]
    """Model folder, in the layout of Diffusers."""
    to: Annotated[str | None, arg(metavar="FORM", help_behavior_hint="(required)")] = None
    """The form: onnx."""


def convert(options: Convert) -> int:
    """Run `pixart convert`; prints the path of every file written."""
    if options.to not in FORMS:
        given = f"not {options.to!r}" if options.to else "with --to"
        raise UsageError(f"pixart convert needs the form to write, {given}; it is one of: {', '.join(FORMS)}.")
    from pixart.graphs.write import write_graphs
    from pixart.sampling.model_folder import open_model_folder
    from pixart.sampling.onnx_engine import OnnxEngine
    from pixart.sampling.pipeline import Pipeline

    folder = open_model_folder(options.source)

    def check(names: tuple[str, ...]) -> None:
        pictures = []
        for engine in ("torch", OnnxEngine(folder, graphs=names)):
            pipeline = Pipeline(folder, engine=engine)
            drawn = pipeline("a red apple", negative_prompt="a house", seed=0, steps=4).images[0]
            pictures.append(np.asarray(drawn).astype(int))
        difference = int(np.abs(pictures[0] - pictures[1]).max())
        if difference > LARGEST_DIFFERENCE:
            raise PixArtError(
                f"The engines differ by {difference} of 255 on {options.source}, more than {LARGEST_DIFFERENCE}; no "
                "graphs were written. Draw this model with --engine torch."
            )
        print(f"The engines draw the same picture (largest difference: {difference} of 255).", file=sys.stderr)

    for path in write_graphs(folder, check):
        print(path)
    return 0
