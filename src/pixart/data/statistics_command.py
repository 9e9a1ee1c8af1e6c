"""`pixart data statistics PATH [--json FILE] [--plot FILE]`: the table on stdout, the rest into files."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.captions.nouns import MEASURED, VALID_ABOVE
from pixart.config import run_command, shown
from pixart.data.dataset import open_dataset
from pixart.data.pairs import printable
from pixart.data.statistics import PAPER, Row, as_json, count
from pixart.errors import PixArtError, UsageError
from pixart.files import write_whole

COMPARABLE = 1_000_000  # below so many images the shares of valid nouns say little beside the paper's 11 million


@dataclass(frozen=True)
class StatisticsOptions:
    """Count the nouns in the captions of a data set, by their source, beside the figures of the PixArt-α paper."""

    path: Annotated[Path, arg(metavar="PATH")]
    """Folder or file with captions; docs/data.md lists what is read."""
    json: Annotated[Path | None, shown("FILE", "none")] = None
    """Write all figures and the most frequent nouns as JSON."""
    plot: Annotated[Path | None, shown("FILE", "none")] = None
    """Write a drawing; the ending .svg or .png says which."""
    workers: Annotated[int, shown("N", "one per core")] = 0
    """Processes that count."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with pictures or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with the captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart data statistics`. Returns the exit code; raises PixArtError with one sentence."""
    return run_command(StatisticsOptions, arguments, "pixart data statistics", _run)


def _run(options: StatisticsOptions) -> int:
    if options.workers < 0:
        raise UsageError(f"--workers is {options.workers}; give 1 or more.")
    # Counting may take an hour: what is wrong with a file is said first.
    if options.plot is not None and options.plot.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"--plot is {options.plot}; its name must end in .svg or .png.")
    for path in (options.json, options.plot):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{path} cannot be written: it is a folder, or its folder is not there.")
    dataset = open_dataset(
        options.path,
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )
    total = dataset.count_hint()
    started = said = time.monotonic()

    def progress(pictures: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= 10:
            said = now
            seconds = max(total - pictures, 0) * (now - started) / pictures if total else 0
            left = f", about {_duration(seconds)} left" if total else ""
            print(f"{pictures:,} pictures counted{left}.", file=sys.stderr, flush=True)

    workers = options.workers or os.cpu_count() or 1
    rows, pictures = count(dataset.pairs(), workers=workers, progress=progress)
    if not rows:
        raise PixArtError(f"{options.path} ({dataset.layout}) has no captions: {pictures:,} pictures, none with one.")
    # The files first: a reader of stdout may have left.
    if options.json is not None:
        _write(options.json, as_json(rows, options.path, pictures).encode())
    if options.plot is not None:
        from pixart.data.statistics_plot import png, svg

        title = f"Nouns in the captions of {printable(dataset.path.name)}"
        drawn = svg(rows, title).encode() if options.plot.suffix.lower() == ".svg" else png(rows, title)
        _write(options.plot, drawn)
    _print(rows)
    return 0


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _print(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("captions", overflow="fold")
    for name in ("images", "nouns/image", "nouns", "distinct", "valid", "valid/distinct"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(printable(row.name), *_cells(row))
    table.add_section()
    for row in PAPER:
        table.add_row(f"paper: {row.name}", *_cells(row), style="dim")
    # A pipe has no width; 100 columns hold the table.
    width = None if sys.stdout.isatty() else 100
    console = Console(width=width, highlight=False, emoji=False, markup=False)
    console.print(table)
    notes = [
        f"Valid nouns occur more than {VALID_ABOVE} times in the data set. An image with several captions of a source "
        f"counts with their mean.",
        f"The tagger, on {MEASURED.tokens} words tagged by hand: of what it calls nouns {MEASURED.precision:.0%} are, "
        f"it finds {MEASURED.recall:.0%} of the nouns, and its count is off by {MEASURED.excess:+.1%}. The paper used "
        "another.",
    ]
    if max(row.images or 0 for row in rows) < COMPARABLE:
        notes.append(
            "The paper's rows stand for about 11 million images each. Distinct and valid nouns grow with the number of "
            "images, so compare those with data sets of like size; nouns/image compares with any."
        )
    for note in notes:
        console.print(note)


def _cells(row: Row) -> list[str]:
    counted = row.images is not None
    return [
        f"{row.images:,}" if counted else "",
        f"{row.nouns_per_image:.1f}",
        f"{row.nouns:,}" if counted else f"{row.nouns / 1e6:.1f}M",
        f"{row.distinct:,}" if counted else f"{row.distinct // 1000}K",
        f"{row.valid:,}" if counted else f"{row.valid // 1000}K",
        f"{row.ratio:.1%}",
    ]


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror}.") from None
