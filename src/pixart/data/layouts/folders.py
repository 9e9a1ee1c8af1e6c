"""Folders of images: with a text file of the same name beside each, in folders of repeats or of classes, or alone.

`cat.jpg` takes its caption from `cat.txt` or `cat.caption` (or `cat.jpg.txt`); where both are there, it has both, and
`cat-masklabel.png` is its mask, as OneTrainer has them. In a
folder called `10_sks dog` (as kohya's trainer has them), every image has 10 repeats, and the caption "sks dog" if it
has no file of its own. In class folders, as ImageNet has them, the folder's name is the label.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pixart.data.layouts.layout import (
    Columns,
    Folder,
    Layout,
    Notes,
    ending,
    gather,
    is_image,
    other_file,
    read_caption_file,
    walk,
)
from pixart.data.pairs import InFile, Pair, Problem

CAPTION_ENDINGS = (".txt", ".caption")
REPEATS = re.compile(r"([1-9][0-9]{0,3})_(.+)")
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"))


def read(root: Path, classes: int | None, notes: Notes) -> Iterator[Pair | Problem]:
    """Folder by folder, images by name. `classes`: how deep the class folders lie (0: in `root`); None without."""
    for folder in walk(root, notes):
        if isinstance(folder, Problem):
            yield folder
        else:
            yield from _read_folder(folder, classes, notes)


def find_images(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """Images at `path`, with or without captions; None where there are none."""
    images = [folder for folder in first if any(map(is_image, folder.files))]
    if not images:
        return None
    captioned = has_captions(first)
    repeats = any(folder.rel and REPEATS.fullmatch(os.path.basename(folder.rel)) for folder in images)
    title = f"images {'with caption files' if captioned else 'without captions'}"
    name = "sidecars" if captioned or repeats else "images"
    return Layout(name, title + (" in folders of repeats" if repeats else ""), partial(read, path, None))


def has_captions(first: list[Folder]) -> bool:
    """Whether an image has a caption file."""
    for folder in first:
        stems = {_stem(name) for name in folder.files if ending(name) in CAPTION_ENDINGS}
        if any(_stem(name) in stems or _composed(name) in stems for name in folder.files if is_image(name)):
            return True
    return False


def find_classes(path: Path, first: list[Folder], columns: Columns) -> Layout | None:
    """Class folders at `path`: two folders of images or more, perhaps in folders of splits, and none above."""
    top = first[0].folders
    depth = int(bool(top) and all(name.lower() in SPLITS for name in top))
    parts = [folder.rel.split("/") if folder.rel else [] for folder in first if any(map(is_image, folder.files))]
    if any(len(part) <= depth for part in parts) or len({tuple(part[: depth + 1]) for part in parts}) < 2:
        return None
    title = "class folders" + (" in split folders" if depth else "")
    return Layout("class-folders", title, partial(read, path, depth))


def _composed(name: str) -> str:
    """A name in Unicode's composed form: macOS writes names decomposed, others their captions."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _composed(os.path.splitext(name)[0])


MASK = "-masklabel.png"


def _is_mask(name: str) -> bool:
    return name.lower().endswith(MASK)


def _read_folder(folder: Folder, classes: int | None, notes: Notes) -> Iterator[Pair | Problem]:
    images = [name for name in folder.files if is_image(name) and not _is_mask(name)]
    stems = Counter(map(_stem, images))
    masks = {_composed(name[: -len(MASK)]): name for name in folder.files if _is_mask(name)}
    texts: dict[str, list[str]] = {}  # stem -> caption files
    for name in folder.files:
        if ending(name) in CAPTION_ENDINGS:
            texts.setdefault(_stem(name), []).append(name)
    matched = REPEATS.fullmatch(os.path.basename(folder.rel)) if classes is None else None
    parts = folder.rel.split("/") if folder.rel else []
    for name in images:
        key = folder.key(name)
        if classes is not None and len(parts) <= classes:
            yield Problem(key, "no-class", "The image lies in no class folder.")
            continue
        shared = texts.get(_stem(name), [])
        if stems[_stem(name)] > 1 and shared:
            others = ", ".join(other for other in images if _stem(other) == _stem(name))
            reason = f"{shared[0]} could belong to each of {others}; rename the images that it is not for."
            yield Problem(key, "same-stem", reason)
            continue
        files = sorted(texts.get(_composed(name), []) + shared, key=lambda f: CAPTION_ENDINGS.index(ending(f)))
        values = [read_caption_file(os.path.join(folder.path, file), key) for file in files]
        if len(files) > 1:
            notes.count("images with two caption files, of which both are taken", key)
        captions, problem = gather(values or ([matched[2]] if matched else []), key)
        mask = masks.get(_stem(name))
        yield Pair(
            key, captions, parts[classes] if classes is not None else None, InFile(os.path.join(folder.path, name)),
            repeats=int(matched[1]) if matched else 1, caption_problem=problem,
            mask=InFile(os.path.join(folder.path, mask)) if mask else None,
        )  # fmt: skip
    used = {*stems, *map(_composed, images)}
    for name in folder.files:
        if _is_mask(name):
            if _composed(name[: -len(MASK)]) not in stems:
                notes.count(f"masks ({MASK}) without an image", folder.key(name))
        elif ending(name) in CAPTION_ENDINGS:
            if _stem(name) not in used:
                notes.count("caption files without an image", folder.key(name))
        elif not is_image(name):
            yield from other_file(folder.key(name), notes)
