"""`pixart data check PATH`: what a data set holds, what will be dropped and why, and what mends it."""

import contextlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.buckets import bucket_table
from pixart.checkpoints.model_folder import DEFAULT_MODEL
from pixart.commands.dataset_options import DatasetOptions
from pixart.config import shown
from pixart.data.check.report import Report, as_json, show
from pixart.data.check.tally import NOTE, Tally
from pixart.encoders.tokenizer import MAX_TOKENS, SIGMA_TOKENS, Tokenizer
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object, replacing, write_whole
from pixart.progress import Progress


@dataclass(frozen=True)
class Check:
    """Look a data set over before anything is trained on it: what is broken, double, cut or dropped, and what to do.

    Prints a report; nothing in the data set is changed.
    """

    path: Annotated[Path, arg(metavar="PATH")]
    """Folder or file with images; docs/data.md lists what is read."""
    html: Annotated[Path | None, shown("FILE", "none")] = None
    """Write the report as a page with images too: one file that needs no network."""
    list: Annotated[Path | None, shown("FILE", "none")] = None
    """Write every single finding, one JSON object a line: kind, key, reason, path, same_as."""
    json: bool = False
    """Print the report as one JSON object."""
    strict: bool = False
    """Exit with 1 if anything but notes was found."""
    base_size: Annotated[int, arg(metavar="PIXELS")] = 256
    """The size to train at: buckets have about as many pixels as a square of this side."""
    step: Annotated[int | None, shown("PIXELS", "the official buckets, else 16")] = None
    """Compute buckets whose sides are multiples of this."""
    sample: Annotated[float, arg(metavar="SHARE")] = 1.0
    """Open only this share of the images, 0 to 1, always the same ones; captions are all read."""
    max_tokens: Annotated[int | None, shown("N", "what the model reads")] = None
    """Tokens of a caption that the text encoder reads."""
    model: Annotated[Path, shown("FOLDER", "the model in the package")] = DEFAULT_MODEL
    """Model folder whose tokenizer and encoders will be used."""
    dataset: Annotated[DatasetOptions, arg(name="")] = field(default_factory=DatasetOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise UsageError(f"--sample is {self.sample:g}; it is a share, so give 0 to 1.")
        if self.base_size > 4096:
            raise UsageError(f"The base size is {self.base_size} px; give at most 4096.")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UsageError(f"--max-tokens is {self.max_tokens}; give at least 2.")
        for name, file in (("--html", self.html), ("--list", self.list)):
            if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
                raise UsageError(f"{name} {file} cannot be written: give a file in a folder that is there.")


def check(options: Check) -> int:
    """Run `pixart data check`. Returns the exit code."""
    model = options.model
    longest = options.max_tokens or longest_caption(model)
    tokenizer = Tokenizer(model / "tokenizer", model / "text_encoder", longest)
    vae, text = (read_json_object(model / part / "config.json") for part in ("vae", "text_encoder"))
    table = bucket_table(options.base_size, step=options.step)
    dataset = options.dataset.open(options.path)
    with contextlib.ExitStack() as held:
        file = None
        if options.list is not None:
            file = held.enter_context(held.enter_context(replacing(options.list)).open("w", encoding="utf-8"))
        tally = Tally(table, tokenizer, file)
        progress = held.enter_context(Progress())
        progress.start("checking", dataset.count_hint(), unit="images")
        tally.read(dataset, options.sample, progress.update)
    text_dim = text.get("hidden_size", text.get("d_model", 0))
    report = Report(options.path, dataset.layout, dataset.notes, tally, vae.get("latent_channels", 4), text_dim)
    if options.json:
        print(json.dumps(as_json(report)), flush=True)
    else:
        show(report)
    if options.html is not None:
        from pixart.data.check.report import page

        write_whole(options.html, page(replace(report, path=report.path.absolute())))
        print(f"{options.html} shows it with images.", file=sys.stderr)
    if not tally.rows:
        raise PixArtError(f"{options.path} ({dataset.layout}) holds no images that can be read.")
    return int(options.strict and any(finding.level != NOTE for finding in report.findings))


def longest_caption(model: Path) -> int:
    """Tokens that the model in a folder reads: 300 for PixArt-Σ's, else 120."""
    index = model / "model_index.json"
    sigma = index.is_file() and read_json_object(index).get("_class_name") == "PixArtSigmaPipeline"
    return SIGMA_TOKENS if sigma else MAX_TOKENS
