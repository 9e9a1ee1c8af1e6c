"""A folder for each class, as ImageNet has them: the folder's name is the label of its pictures, for stage 1."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts.layout import SPLITS, Notes
from pixart.data.layouts.texts import as_caption
from pixart.data.layouts.walk import Glance, count_other, is_picture, walk
from pixart.data.pairs import InFile, Pair, Problem

LOOKED_FOR = "a folder of pictures for each class (class-folders)"


@dataclass(frozen=True)
class ClassFolders:
    """DIR/class/.../picture, or DIR/split/class/.../picture if `split`."""

    path: Path
    split: bool
    name: str = "class-folders"

    @property
    def title(self) -> str:
        return "class folders" + (" in split folders" if self.split else "")

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """Class by class. A picture that lies above the class folders has no class and is a problem."""
        depth = 1 if self.split else 0
        for folder in walk(self.path, notes):
            if isinstance(folder, Problem):
                yield folder
                continue
            parts = folder.rel.split("/") if folder.rel else []
            for name in folder.files:
                key = folder.key(name)
                if not is_picture(name):
                    problem = count_other(folder, name, notes)
                    if problem is not None:
                        yield problem
                elif len(parts) <= depth:
                    yield Problem(key, "no-class", "The picture lies in no class folder.")
                else:
                    missing = as_caption(None, key)
                    image = InFile(os.path.join(folder.path, name))
                    yield Pair(key, (), parts[depth], image, caption_problem=missing)

    def count_hint(self) -> int | None:
        return None


def find(top: Glance) -> ClassFolders | None:
    """Class folders at `top`: at least two folders with pictures, no pictures above them."""
    if any(map(is_picture, top.files)):
        return None
    splits = [name for name in top.folders if name.lower() in SPLITS]
    if splits and len(splits) == len(top.folders):
        below = [top.below(name) for name in splits]
        if any(is_picture(name) for glance in below for name in glance.files):
            return None
        return ClassFolders(top.path, split=True) if any(map(_classes, below)) else None
    return ClassFolders(top.path, split=False) if _classes(top) else None


def _classes(top: Glance) -> bool:
    found = 0
    for name in top.folders:
        below = top.below(name)
        found += any(map(is_picture, below.files)) or any(
            any(map(is_picture, below.below(deeper).files)) for deeper in below.folders[:4]
        )
        if found == 2:
            return True
    return False
