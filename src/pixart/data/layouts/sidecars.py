"""Pictures with a text file of the same name beside each, kohya's folders of repeats, and pictures without any text.

`cat.jpg` takes its caption from `cat.txt` or `cat.caption` (or `cat.jpg.txt`); where both are there, it has both. In a
folder called `10_sks dog`, every picture has 10 repeats, and the caption "sks dog" if it has no file of its own.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.layouts.layout import Notes
from pixart.data.layouts.texts import gather, read_caption_file
from pixart.data.layouts.walk import Folder, Glance, count_other, ending, is_picture, look_around, walk
from pixart.data.pairs import InFile, Pair, Problem, printable

LOOKED_FOR = "pictures with .txt or .caption files of the same name (sidecars), or pictures alone"
CAPTION_ENDINGS = (".txt", ".caption")
REPEATS = re.compile(r"([1-9][0-9]{0,3})_(.+)")


@dataclass(frozen=True)
class Sidecars:
    """`captioned` is False for pictures without any caption file, which are read all the same."""

    path: Path
    captioned: bool = True
    repeats: bool = False

    @property
    def name(self) -> str:
        return "sidecars" if self.captioned or self.repeats else "pictures"

    @property
    def title(self) -> str:
        title = "pictures with caption files" if self.captioned else "pictures without captions"
        return title + (" in folders of repeats" if self.repeats else "")

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, notes: Notes) -> Iterator[Pair | Problem]:
        """Folder by folder, pictures by name."""
        for folder in walk(self.path, notes):
            if isinstance(folder, Problem):
                yield folder
            else:
                yield from _read_folder(folder, notes)

    def count_hint(self) -> int | None:
        return None


def find(top: Glance) -> Sidecars | None:
    """Pictures at `top`, with or without captions; None where there are none."""
    pictures = captioned = repeats = False
    for rel, glance in look_around(top):
        if any(map(is_picture, glance.files)):
            pictures = True
            names = [unicodedata.normalize("NFC", name) for name in glance.files if is_picture(name)]
            partners = {*names, *map(_stem, names)}
            captioned = captioned or any(
                ending(name) in CAPTION_ENDINGS and _stem(name) in partners for name in glance.files
            )
            repeats = repeats or (bool(rel) and REPEATS.fullmatch(os.path.basename(rel)) is not None)
    return Sidecars(top.path, captioned, repeats) if pictures else None


def _stem(name: str) -> str:
    """A name without its ending, in Unicode's composed form: macOS writes names decomposed, others their captions."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _read_folder(folder: Folder, notes: Notes) -> Iterator[Pair | Problem]:
    images = [name for name in folder.files if is_picture(name) and not _is_mask(name)]
    stems = Counter(map(_stem, images))
    texts: dict[str, list[str]] = {}  # stem -> caption files; cat.txt before cat.caption
    for name in folder.files:
        if ending(name) in CAPTION_ENDINGS:
            texts.setdefault(_stem(name), []).append(name)
    matched = REPEATS.fullmatch(os.path.basename(folder.rel))
    repeats, class_tokens = (int(matched[1]), matched[2]) if matched else (1, None)
    used: set[str] = set()
    for name in images:
        key, stem = folder.key(name), _stem(name)
        own = texts.get(unicodedata.normalize("NFC", name), [])  # cat.jpg.txt
        shared = texts.get(stem, [])
        used.update((unicodedata.normalize("NFC", name), stem))
        if stems[stem] > 1 and shared:
            others = ", ".join(printable(other) for other in images if _stem(other) == stem)
            reason = f"{printable(shared[0])} could belong to each of {others}; rename the images that it is not for."
            yield Problem(key, "same-stem", reason)
            continue
        files = sorted(own + shared, key=lambda file: CAPTION_ENDINGS.index(ending(file)))
        captions, problem = gather([read_caption_file(os.path.join(folder.path, file), key) for file in files], key)
        if len(files) > 1:
            notes.count("images with two caption files, of which both are taken", key)
        if not captions and class_tokens and not files:
            captions, problem = gather([class_tokens], key)
        if problem is not None and not files:
            near = [other for other in texts if other.lower() == stem.lower()]
            hint = f" ({printable(texts[near[0]][0])} differs in its letters)" if near else ""
            problem = Problem(key, problem.kind, f"There is no .txt or .caption file{hint}.")
        image = InFile(os.path.join(folder.path, name))
        yield Pair(key, captions, None, image, repeats=repeats, caption_problem=problem)
    for name in folder.files:
        if _is_mask(name):
            notes.count("masks (-masklabel.png) that are not read", folder.key(name))
        elif ending(name) in CAPTION_ENDINGS:
            if _stem(name) not in used:
                notes.count("caption files without an image", folder.key(name))
        elif not is_picture(name):
            problem = count_other(folder, name, notes)
            if problem is not None:
                yield problem


def _is_mask(name: str) -> bool:
    """OneTrainer's masks stand beside their pictures."""
    return name.lower().endswith("-masklabel.png")
