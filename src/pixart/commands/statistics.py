"""`pixart data statistics PATH`: how rich the captions of a data set are, beside the paper's table."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pixart.config import shown
from pixart.data.dataset import open_dataset
from pixart.data.pairs import printable
from pixart.data.statistics import PAPER, TAGGER, VALID_ABOVE, count
from pixart.errors import PixArtError, UsageError
from pixart.files import write_json
from pixart.progress import Progress


@dataclass(frozen=True)
class Statistics:
    """Count the nouns in the captions of a data set, by their source, beside table 1 of the PixArt-α paper."""

    path: Annotated[Path, arg(metavar="PATH")]
    """Folder or file with captions; docs/data.md lists what is read."""
    json: Annotated[Path | None, shown("FILE", "none")] = None
    """Write all counts and the most frequent nouns as JSON."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with images or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with the captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""


def statistics(options: Statistics) -> int:
    """Run `pixart data statistics`; prints the table, and writes the JSON file."""
    # Counting may take an hour: what is wrong with the file comes first.
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise UsageError(f"{options.json} cannot be written: it is a folder, or its folder is not there.")
    dataset = open_dataset(
        options.path,
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )
    with Progress() as progress:
        progress.start("counting", dataset.count_hint(), unit="images")
        rows, images = count(dataset.pairs(), progress.update)
    if not rows:
        raise PixArtError(f"{options.path} ({dataset.layout}) has no captions: {images:,} images, none with one.")
    if options.json is not None:
        counted = {"path": str(options.path), "images": images, "sources": rows, "paper": PAPER}
        write_json(options.json, counted | {"valid_above": VALID_ABOVE, "tagger": {"name": "TextBlob"} | TAGGER})
    _print(rows)
    return 0


def _print(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("captions", overflow="fold")
    for name in ("images", "nouns/image", "nouns", "distinct", "valid", "valid/distinct"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = (f"{row[name]:,}" for name in ("nouns", "distinct", "valid"))
        each, ratio = f"{row['nouns_per_image']:.1f}", f"{row['ratio']:.1%}"
        table.add_row(printable(row["name"]), f"{row['images']:,}", each, *numbers, ratio)
    table.add_section()
    for row in PAPER:
        numbers = (f"{row['nouns'] / 1e6:.1f}M", f"{row['distinct'] // 1000}K", f"{row['valid'] // 1000}K")
        table.add_row(f"paper: {row['name']}", "", str(row["nouns_per_image"]), *numbers, f"{row['ratio']:.1%}")
    # A pipe has no width; 100 columns hold the table.
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, emoji=False, markup=False)
    console.print(table)
    console.print(
        f"Valid nouns occur more than {VALID_ABOVE} times in the data set. An image with several captions of a source "
        "counts with their mean. The paper's rows stand for about 11 million images each, and distinct and valid nouns "
        "grow with the number of images; nouns/image compares with any. The tagger (the paper used another), on "
        f"{TAGGER['words']} words tagged by hand: of what it calls nouns {TAGGER['precision']:.0%} are, it finds "
        f"{TAGGER['recall']:.0%} of the nouns, and its count is off by {TAGGER['excess']:+.1%}."
    )
