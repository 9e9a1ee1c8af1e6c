"""One door to images with captions: finds out how a folder or a file is laid out, and streams its pairs.

`open_dataset(path)` detects the layout; `Dataset.pairs()` gives `Pair` and `Problem` in an order that is always the
same, without ever holding a manifest whole. Captions that `pixart data caption` wrote later are merged in. Layouts are
described in docs/data.md; `pixart.data.layouts` reads them."""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pixart.data.layouts import folders, tables, tars
from pixart.data.layouts.layout import Columns, Layout, Notes, ending, first_folders
from pixart.data.pairs import Pair, Problem, printable
from pixart.data.written_captions import WrittenCaptions
from pixart.errors import PixArtError, UsageError

FINDERS = {
    "imagefolder": tables.find_imagefolder,
    "sidecars": folders.find_images,
    "images": folders.find_images,
    "tar": tars.find,
    "table": tables.find_tables,
    "class-folders": folders.find_classes,
    "sam": tables.find_pixart,
    "interndata": tables.find_pixart,
    "huggingface": tables.find_hub_folder,
}
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


@dataclass(frozen=True)
class Dataset:
    """A data set that has been recognised, not read. It can be pickled, or opened anew from `path` elsewhere.

    `notes` are remarks on what is there and not read (files of other kinds, images that no manifest names); they are
    complete once a `pairs()` has been read to its end.
    """

    path: Path
    found: Layout
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        """The layout's name for people; `found.name` is what `open_dataset(layout=...)` takes."""
        return self.found.title

    def pairs(self) -> Iterator[Pair | Problem]:
        """Every pair and every problem, streaming, in the same order each time; captions of all sources merged.

        Raises PixArtError where the data set as a whole cannot be read (a manifest is gone, a table is damaged).
        """
        notes = Notes()
        with WrittenCaptions(captions_folder(self.path)) as written:
            yield from written.problems()
            for one in self.found.read(notes):
                yield written.merged(one) if isinstance(one, Pair) else one
            written.count_strangers(notes)
        self.notes[:] = notes.lines()

    def count_hint(self) -> int | None:
        """About how many pairs there are, where that is cheap to say (for a progress bar), else None."""
        return self.found.count()


def open_dataset(
    path: Path,
    *,
    layout: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: Path | None = None,
) -> Dataset:
    """Recognise the data set at `path`: a folder, a file, or a brace range of shards such as `{00000..00099}.tar`.

    `layout` is one of FINDERS and chooses where more than one fits. `image_column` and `caption_column` name columns
    (or JSON keys) that are not called as usual. Paths in manifests are taken from the manifest's folder and must stay
    inside the data set; `image_root` sets another folder for both.

    Raises UsageError if there is nothing at `path`, if no layout fits (it says what was looked for) or if several do.
    """
    if layout is not None and layout not in FINDERS:
        raise UsageError(f"There is no layout {layout!r}; choose among {', '.join(FINDERS)}.")
    path = Path(os.path.abspath(path))
    if image_root is not None and not os.path.isdir(image_root):
        raise UsageError(f"There is no folder {image_root} for the images.")
    columns = Columns(image_column, caption_column, image_root and Path(os.path.abspath(image_root)))
    try:
        mode = path.stat().st_mode
        readable = os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    except PermissionError:
        readable = False
    except (OSError, ValueError):
        shards = tars.brace_range(path, columns)
        if shards is None:
            raise UsageError(f"There is nothing at {printable(str(path))}; give a folder or a file.") from None
        return Dataset(path, shards)
    if not readable:
        raise PixArtError(f"{printable(str(path))} may not be read by this user; change its permissions.")
    if stat.S_ISDIR(mode):
        return Dataset(path, _in_folder(path, layout, columns))
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is a pipe, socket or device; give a folder or a file.")
    return Dataset(path, _one_file(path, columns))


def _in_folder(path: Path, layout: str | None, columns: Columns) -> Layout:
    """The one layout that fits, or the one that was asked for."""
    first = first_folders(path)
    if layout is not None:
        chosen = FINDERS[layout](path, first, columns)
        if chosen is None or (layout in ("sam", "interndata") and chosen.name != layout):
            raise UsageError(f"{path} does not look like {layout}; docs/data.md describes the layouts.")
        return chosen
    for name in ("huggingface", "sam"):  # these two have marks that nothing else has
        if special := FINDERS[name](path, first, columns):
            return special
    fitting = [one for name in ("tar", "imagefolder", "table") if (one := FINDERS[name](path, first, columns))]
    images = folders.find_images(path, first, columns)
    if images and folders.has_captions(first):
        fitting.append(images)
    elif not fitting and images:
        # A manifest explains images without captions. `10_dog` may be a class, or ten repeats of a dog.
        classes = folders.find_classes(path, first, columns)
        fitting = [one for one in (classes, images if not classes or images.name == "sidecars" else None) if one]
    if not fitting:
        looked_for = "a manifest or table, a Hugging Face data set, tar shards, and images with or without captions"
        raise UsageError(f"{path} holds no data set: looked for {looked_for} (docs/data.md describes the layouts).")
    if len(fitting) > 1:
        titles = " and ".join(f"{one.title} (layout {one.name})" for one in fitting)
        raise UsageError(f"{path} could be {titles}; choose with --layout.")
    return fitting[0]


def _one_file(path: Path, columns: Columns) -> Layout:
    kind = ending(path.name)
    if kind == ".tar":
        return tars.layout(path.parent, [path.name], columns, whole=False)
    if kind in (*tables.ENDINGS, ".json"):
        return tables.one_file(path, columns)
    if kind in PACKED:
        raise UsageError(f"{path} is packed; unpack it first, tar shards to plain .tar files.")
    allowed = ", ".join((*tables.ENDINGS, ".tar", ".json"))
    raise UsageError(f"{path} is no data set; give a folder, or a {allowed} file.")


def captions_folder(path: Path) -> Path:
    """Where captions written for the data set at `path` live: DIR/.pixart/captions or FILE.pixart/captions.

    One file per source in it, `<source>.jsonl`, a JSON object a line: {"key": the pair's key, "caption": text, ...}.
    Several lines may have the same key: an image with several captions of one source. Lines whose caption is null are
    the captioner's own business (refusals, failures) and give no caption.
    """
    path = Path(path)
    return path / ".pixart" / "captions" if os.path.isdir(path) else Path(f"{path}.pixart") / "captions"


ALLOWED = 0.01  # share of the images that `extract` and `train` may drop before they stop


def check_dropped(
    dropped: int,
    total: int,
    *,
    allowed: float = ALLOWED,
    examples: Iterable[str] = (),
    unknown: Iterable[str] = (),
    flag: str = "--allow-dropped",
) -> None:
    """Raise PixArtError if more than the share `allowed` (0 to 1) of `total` images was dropped.

    `unknown` ("name: reason") are losses of a number that nobody knows, such as the rest of a damaged shard: they are
    more than any share below 1. The sentence has the counts, the first three of `examples` ("name: reason" of what was
    dropped) and the flag that allows more. Also raises where nothing is left at all, whatever is allowed.
    """
    damaged, named = "; ".join(islice(unknown, 3)), "; ".join(islice(examples, 3))
    if damaged and allowed < 1:
        raise PixArtError(
            f"An unknown number of images is lost ({damaged}), besides {dropped:,} of {total:,} that were dropped. "
            f"Mend or replace what is damaged; {flag} 1 goes on without it."
        )
    if total == 0:
        raise PixArtError("There are no images.")
    which = f" (such as {named})" if named else ""
    if dropped >= total:
        raise PixArtError(f"All {total:,} images were dropped{which}.")
    share = dropped / total
    if share > allowed:
        raise PixArtError(
            f"{dropped:,} of {total:,} images were dropped{which}: {share:.2%}, and {allowed:.2%} is allowed. pixart "
            f"data check shows what is wrong with them; {flag} {math.ceil(100 * share) / 100} goes on without them."
        )
