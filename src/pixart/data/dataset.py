"""One door to pictures with captions: finds out how a folder or a file is laid out, and streams its pairs.

`open_dataset(path)` detects the layout; `Dataset.pairs()` gives `Pair` and `Problem` in an order that is always the
same, without ever holding a manifest whole. Captions that `pixart data caption` wrote later are merged in. Layouts are
described in docs/data.md, one small file each in `pixart.data.layouts`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.pairs import Pair, Problem
from pixart.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """A data set that has been recognised, not read. May be opened anew from `path` in another process.

    `layout` is the human name of what was found; `notes` are remarks on what the layout holds that is not read (files
    of other kinds, pictures that no manifest names). They are complete once a `pairs()` has been read to its end.
    """

    path: Path
    layout: str
    notes: list[str] = field(default_factory=list)

    def pairs(self) -> Iterator[Pair | Problem]:
        """Every pair and every problem, streaming, in the same order each time; captions of all sources merged."""
        raise NotImplementedError

    def count_hint(self) -> int | None:
        """About how many pairs there are, where that is cheap to say (for a progress bar), else None."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """64 hex digits over the names, sizes and times of change of the data set's own files.

        Cheap: no file is read. Copied without its times (`cp` without `-p`) a data set gets another one.
        """
        raise NotImplementedError

    def captions_fingerprint(self) -> str:
        """The same for what `pixart data caption` has written for this data set (all sources)."""
        raise NotImplementedError


def open_dataset(
    path: Path,
    *,
    layout: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: Path | None = None,
) -> Dataset:
    """Recognise the data set at `path`: a folder, a file, or a brace range of shards such as `{00000..00099}.tar`.

    `layout` chooses one by its short name where more than one fits. `image_column` and `caption_column` name columns
    (or JSON keys) that are not called as usual. Paths in manifests are taken from the manifest's folder and must stay
    inside the data set; `image_root` sets another folder for both.

    Raises UsageError if there is nothing at `path`, if no layout fits (it says what was looked for) or if several do.
    """
    raise UsageError(f"{path} cannot be read yet: the readers are being written.")


def captions_folder(path: Path) -> Path:
    """Where captions written for the data set at `path` live: DIR/.pixart/captions or FILE.pixart/captions.

    One file per source in it, `<source>.jsonl`, a JSON object a line: {"key": the pair's key, "caption": text, ...}.
    Several lines may have the same key: an image with several captions of one source. Lines whose caption is null are
    the captioner's own business (refusals, failures) and give no caption.
    """
    path = Path(path)
    return path / ".pixart" / "captions" if path.is_dir() else Path(f"{path}.pixart") / "captions"
