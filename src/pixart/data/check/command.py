"""`pixart data check PATH`."""

import json
import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.buckets import bucket_table
from pixart.config import run_command, shown
from pixart.data.check.duplicates import PictureTable
from pixart.data.check.flagged import FlaggedFile, check_aside, set_aside
from pixart.data.check.measure import measure, read_encoders
from pixart.data.check.report import GROUPS, Report, as_json, make_report
from pixart.data.check.tally import Tally, Tick, gather
from pixart.data.check.tokens import TokenCounter
from pixart.data.dataset import Dataset, open_dataset
from pixart.errors import PixArtError, UsageError
from pixart.files import write_whole
from pixart.progress import Progress

FEW = 256  # pictures for which no other process is started


@dataclass(frozen=True)
class CheckOptions:
    """Look a data set over before anything is trained on it: what is broken, double, cut or dropped, and what to do.

    Prints a report; nothing in the data set is changed (but see --set-aside).
    """

    path: Annotated[Path, arg(metavar="PATH")]
    """Folder or file with pictures; docs/data.md lists what is read."""
    html: Annotated[Path | None, shown("FILE", "none")] = None
    """Write the report as a page with pictures too: one file that needs no network."""
    list: Annotated[Path | None, shown("FILE", "none")] = None
    """Write every single finding, one JSON object a line: kind, key, reason, path."""
    set_aside: Annotated[Path | None, shown("FOLDER", "none")] = None
    """Move pictures that cannot be used, and later copies of duplicates, with their captions out of the data set."""
    json: bool = False
    """Print the report as one JSON object."""
    strict: bool = False
    """Exit with 1 if there is anything to look at."""
    base_size: Annotated[int, arg(metavar="PIXELS")] = 256
    """The size to train at: buckets have about as many pixels as a square of this side."""
    step: Annotated[int | None, shown("PIXELS", "the official buckets, else 16")] = None
    """Compute buckets whose sides are multiples of this."""
    batch_size: Annotated[int, arg(metavar="N")] = 32
    """Buckets with fewer pictures than this are named."""
    sample: Annotated[int | None, shown("N", "all")] = None
    """Open only N pictures, drawn evenly from the whole data set; captions are all read."""
    no_images: bool = False
    """Open no picture: only the names and captions."""
    max_tokens: Annotated[int | None, shown("N", "the text encoder's, at most 120")] = None
    """Tokens of a caption that the text encoder reads."""
    model: Annotated[Path | None, shown("FOLDER", "the model in the package")] = None
    """Model folder whose tokenizer and encoders will be used."""
    tokenizer: Annotated[Path | None, shown("FOLDER", "the model's")] = None
    """Another tokenizer, in Hugging Face layout."""
    measure: bool = False
    """Run the model's encoders for some seconds to estimate how long extraction will take here. Needs torch."""
    workers: Annotated[int | None, shown("N", "one per core, at most 8")] = None
    """Processes that open pictures."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with pictures or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with the captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart data check`. Returns the exit code; raises PixArtError with one sentence."""
    return run_command(CheckOptions, arguments, "pixart data check", _run)


def _run(options: CheckOptions) -> int:
    _check_options(options)
    dataset = open_dataset(
        options.path,
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )
    with (
        tempfile.TemporaryDirectory(prefix="pixart-check-", ignore_cleanup_errors=True) as scratch,
        closing(FlaggedFile(Path(scratch) / "findings.jsonl")) as flagged,
    ):
        report = _check(options, dataset, Path(scratch), flagged)
        _tell(options, report, flagged)
    if not report.tally.rows:
        raise PixArtError(f"{options.path} ({dataset.layout}) holds no images that can be read.")
    return 1 if options.strict and report.troubles else 0


def _check_options(options: CheckOptions) -> None:
    for name, value, least in (
        ("--sample", options.sample, 1), ("--workers", options.workers, 1), ("--batch-size", options.batch_size, 1)
    ):  # fmt: skip
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}; give {least} or more.")
    if options.sample is not None and options.no_images:
        raise UsageError("--sample and --no-images do not go together; give one of them.")
    if options.base_size > 4096:
        raise UsageError(f"The base size is {options.base_size} px; give at most 4096.")
    if options.set_aside is not None:
        check_aside(options.path, options.set_aside)
        if options.no_images or options.sample is not None:
            raise UsageError("--set-aside needs every picture to be opened; leave --sample and --no-images out.")
    for name, file in (("--html", options.html), ("--list", options.list)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"{name} {file} cannot be written: give a file in a folder that is there.")


def _check(options: CheckOptions, dataset: Dataset, scratch: Path, flagged: FlaggedFile) -> Report:
    model = options.model or Path(__file__).parents[2] / "default_model"
    begun = time.monotonic()
    table = bucket_table(options.base_size, step=options.step)
    encoders = read_encoders(model, shipped=options.model is None)
    counter = TokenCounter(options.tokenizer or model / "tokenizer", model / "text_encoder", options.max_tokens)
    tally = Tally(table, counter.max_tokens)
    if options.list or options.set_aside:
        tally.record = flagged.add
    hint = dataset.count_hint()
    sample = 0 if options.no_images else options.sample
    workers = options.workers or min(8, os.cpu_count() or 1)
    to_open = min(part for part in (hint, sample, sys.maxsize) if part is not None)
    if options.workers is None and to_open <= FEW:
        workers = 1
    with closing(PictureTable(scratch / "pictures.sqlite")) as pictures:
        with Progress() as progress:
            tick = _ticks(progress, hint, sample)
            gather(dataset, tally, counter, pictures, sample=sample, workers=workers, tick=tick)
            progress.start("comparing")
            near = pictures.near(GROUPS)
            if options.list or options.set_aside:
                flagged.add_duplicates(pictures, near)
            if options.measure:
                progress.start("measuring")
                encoders = measure(model, encoders, tally, options.base_size)
        return make_report(
            options.path, dataset.layout, list(dataset.notes), tally, pictures, encoders,
            near=near, batch_size=options.batch_size, workers=workers, seconds=time.monotonic() - begun,
        )  # fmt: skip


def _tell(options: CheckOptions, report: Report, flagged: FlaggedFile) -> None:
    if options.json:
        print(json.dumps(as_json(report)), flush=True)
    else:
        from rich.console import Console

        from pixart.data.check.terminal import show

        show(report, Console(markup=False, highlight=False, emoji=False))
    if options.html is not None:
        from pixart.data.check.page import page

        _write(options.html, page(replace(report, path=report.path.absolute())))
        _say(f"{options.html} shows it with pictures.")
    if options.list is not None:
        flagged.copy_to(options.list)
        _say(f"{options.list} lists every finding.")
    if options.set_aside is not None:
        moved, stay = set_aside(options.path, options.set_aside, flagged.read())
        stays = f"; {stay:,} cannot be moved (inside a shard or table, or the name is taken)" if stay else ""
        _say(f"{moved:,} pictures were moved to {options.set_aside}{stays}.")


def _write(target: Path, text: str) -> None:
    try:
        write_whole(target, text)
    except OSError as error:
        raise PixArtError(f"{target} cannot be written: {error.strerror}.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ticks(progress: Progress, pairs: int | None, sample: int | None) -> Tick:
    """What `gather` reports to: `pairs` is about how many there are, `sample` how many are opened (None: all)."""

    def tick(doing: str, done: int) -> None:
        if doing == "reading" and sample is None:
            return  # images are opened beside reading
        total = pairs if doing == "reading" or sample is None else min(sample, pairs or sample)
        if progress.doing != doing:
            progress.start(doing, total, unit="images")
        progress.update(done)

    return tick
