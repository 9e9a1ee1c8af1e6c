"""One door to pictures with captions: finds out how a folder or a file is laid out, and streams its pairs.

`open_dataset(path)` detects the layout; `Dataset.pairs()` gives `Pair` and `Problem` in an order that is always the
same, without ever holding a manifest whole. Captions that `pixart data caption` wrote later are merged in. Layouts are
described in docs/data.md, one small file each in `pixart.data.layouts`.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.layouts import class_folders, pixart_layouts, sidecars, tables, tar_shards
from pixart.data.layouts.layout import Columns, Layout, Notes
from pixart.data.layouts.walk import Folder, Glance, ending, glance, walk
from pixart.data.pairs import Pair, Problem, kind_of_file, printable
from pixart.data.written_captions import WrittenCaptions
from pixart.errors import PixArtError, UsageError

LAYOUTS = (
    "imagefolder", "sidecars", "pictures", "tar", "table", "class-folders", "sam", "interndata", "huggingface",
)  # fmt: skip
_LOOKED_FOR = "; ".join(one.LOOKED_FOR for one in (tables, sidecars, tar_shards, class_folders, pixart_layouts))


@dataclass(frozen=True)
class Dataset:
    """A data set that has been recognised, not read. It can be pickled, or opened anew from `path` elsewhere.

    `layout` is the human name of what was found, `layout_name` what `open_dataset(layout=...)` takes. `notes` are
    remarks on what is there and not read (files of other kinds, pictures that no manifest names); they are complete
    once a `pairs()` has been read to its end.
    """

    path: Path
    found: Layout
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        return self.found.title

    @property
    def layout_name(self) -> str:
        return self.found.name

    def pairs(self) -> Iterator[Pair | Problem]:
        """Every pair and every problem, streaming, in the same order each time; captions of all sources merged.

        Raises PixArtError where the data set as a whole cannot be read (a manifest is gone, a table is damaged).
        """
        notes = Notes()
        with WrittenCaptions(captions_folder(self.path)) as written:
            yield from written.problems()
            for one in self.found.read(notes):
                yield written.merged(one) if isinstance(one, Pair) else one
            written.say_strangers(notes)
        self.notes[:] = notes.all()

    def count_hint(self) -> int | None:
        """About how many pairs there are, where that is cheap to say (for a progress bar), else None."""
        return self.found.count_hint()

    def fingerprint(self) -> str:
        """64 hex digits over the names, sizes and times of change of the data set's own files.

        Cheap: no file is read. A single table with paths answers for itself, not for the pictures that it names. Copied
        without its times (`cp` without `-p`) a data set gets another fingerprint.
        """
        return _fingerprint(self.layout_name, self.found.roots)

    def captions_fingerprint(self) -> str:
        """The same for what `pixart data caption` has written for this data set (all sources)."""
        folder = captions_folder(self.path)
        return _fingerprint("captions", (folder,) if os.path.isdir(folder) else ())


def open_dataset(
    path: Path,
    *,
    layout: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: Path | None = None,
) -> Dataset:
    """Recognise the data set at `path`: a folder, a file, or a brace range of shards such as `{00000..00099}.tar`.

    `layout` is one of LAYOUTS and chooses where more than one fits. `image_column` and `caption_column` name columns
    (or JSON keys) that are not called as usual. Paths in manifests are taken from the manifest's folder and must stay
    inside the data set; `image_root` sets another folder for both.

    Raises UsageError if there is nothing at `path`, if no layout fits (it says what was looked for) or if several do.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}; choose among {', '.join(LAYOUTS)}.")
    path = Path(os.path.abspath(path))
    if image_root is not None and not os.path.isdir(image_root):
        raise UsageError(f"There is no folder {image_root} for the pictures.")
    columns = Columns(image_column, caption_column, image_root and Path(os.path.abspath(image_root)))
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise PixArtError(f"{printable(str(path))} may not be read by this user; change its permissions.") from None
    except (OSError, ValueError):
        shards = tar_shards.brace_range(path, columns)
        if shards is None:
            raise UsageError(f"There is nothing at {printable(str(path))}; give a folder or a file.") from None
        return Dataset(path, shards)
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PixArtError(f"{printable(str(path))} may not be read by this user; change its permissions.")
    if stat.S_ISDIR(mode):
        return Dataset(path, _in_folder(glance(path), layout, columns))
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is a {kind_of_file(mode)}; give a folder or a file.")
    return Dataset(path, _one_file(path, columns))


def _in_folder(top: Glance, layout: str | None, columns: Columns) -> Layout:
    """The one layout that fits, or the one that was asked for."""
    finders = {
        "huggingface": lambda: tables.find_hub_folder(top, columns),
        "interndata": lambda: pixart_layouts.find(top, columns),
        "sam": lambda: pixart_layouts.find(top, columns),
        "tar": lambda: tar_shards.find(top, columns),
        "imagefolder": lambda: tables.find_imagefolder(top, columns),
        "table": lambda: tables.find_tables(top, columns),
        "class-folders": lambda: class_folders.find(top),
        "sidecars": lambda: sidecars.find(top),
        "pictures": lambda: sidecars.find(top),
    }
    if layout is not None:
        chosen = finders[layout]()
        if chosen is None or (layout in ("sam", "interndata") and chosen.name != layout):
            raise UsageError(f"{top.path} does not look like {layout}; looked for {_LOOKED_FOR}.")
        return chosen
    for name in ("huggingface", "sam"):  # these two have marks that nothing else has
        special = finders[name]()
        if special is not None:
            return special
    manifests = [finders[name]() for name in ("tar", "imagefolder", "table")]
    fitting: list[Layout] = [one for one in manifests if one is not None]
    pictures, classes = sidecars.find(top), class_folders.find(top)
    if pictures is not None and pictures.captioned:
        fitting.append(pictures)
    elif not fitting and pictures is not None:
        # A manifest explains pictures without captions. `10_dog` may be a class, or ten repeats of a dog.
        fitting = [one for one in (classes, pictures if classes is None or pictures.repeats else None) if one]
    if not fitting:
        inside = f"{len(top.files):,} files and {len(top.folders):,} folders"
        raise UsageError(f"{top.path} ({inside}) holds no data set that is known: looked for {_LOOKED_FOR}.")
    if len(fitting) > 1:
        titles = " and ".join(f"{one.title} (layout {one.name})" for one in fitting)
        raise UsageError(f"{top.path} could be {titles}; choose with --layout.")
    return fitting[0]


def _one_file(path: Path, columns: Columns) -> Layout:
    kind = ending(path.name)
    if kind == ".tar":
        return tar_shards.TarShards(path.parent, (path.name,), columns, single=True)
    if kind in tables.ENDINGS:
        return tables.one_file(path, columns)
    if kind == ".json":
        return pixart_layouts.one_file(path, columns)
    if kind in (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"):
        raise UsageError(f"{path} is packed; unpack it first, tar shards to plain .tar files.")
    raise UsageError(
        f"{path} is no data set; give a folder, or a {', '.join((*tables.ENDINGS, '.tar', '.json'))} file."
    )


def captions_folder(path: Path) -> Path:
    """Where captions written for the data set at `path` live: DIR/.pixart/captions or FILE.pixart/captions.

    One file per source in it, `<source>.jsonl`, a JSON object a line: {"key": the pair's key, "caption": text, ...}.
    Several lines may have the same key: an image with several captions of one source. Lines whose caption is null are
    the captioner's own business (refusals, failures) and give no caption.
    """
    path = Path(path)
    return path / ".pixart" / "captions" if os.path.isdir(path) else Path(f"{path}.pixart") / "captions"


def _fingerprint(name: str, roots: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(name.encode())
    for root in roots:
        digest.update(b"\0root\0")
        if os.path.isfile(root):
            _add(digest, root.name, root)
            continue
        for folder in walk(root, Notes()):
            if isinstance(folder, Folder):
                for file in folder.files:
                    _add(digest, folder.key(file), Path(folder.path) / file)
            else:
                digest.update(f"\0{folder.key}\0{folder.kind}".encode())
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", key: str, path: Path) -> None:
    try:
        about = path.stat()
        digest.update(f"\0{key}\0{about.st_size}\0{about.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    except OSError as error:
        digest.update(f"\0{key}\0{error.errno}".encode("utf-8", "surrogateescape"))
