"""The emoji data set: seven free icon sets and Unicode's names, rendered, captioned, freed of duplicates and split.

Layout: DEST/{train,test_cells,test_concepts}/metadata.jsonl with its PNG files beside it, and DEST/summary.json.
"""

import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emojis import icon_sets, near_duplicates
from emojis.captions import captions
from emojis.colours import named_colours
from emojis.icon_sets import STYLES, Icon, Unmatched
from emojis.npm import Package, fetch
from emojis.records import SPLITS, write_split
from emojis.render import Rendered, render_all
from emojis.split import assign
from pixart.errors import PixArtError, UsageError
from pixart.files import write_json

SMALLEST, LARGEST = 16, 1024


@dataclass(frozen=True)
class Summary:
    """What `build` did. Lists name every icon that is not in the data set, by style."""

    size: int
    seed: int
    images: int
    captions: int
    distinct_captions: int
    base_concepts: int
    splits: dict[str, int]
    styles: dict[str, int]
    exact_duplicates: list[str]
    near_duplicates: list[str]
    failed_renders: list[str]
    unmatched_icons: dict[str, list[str]]
    repeated_icons: dict[str, list[str]]
    packages: dict[str, str]
    licences: dict[str, str]


def build(
    dest: Path, *, size: int = 256, seed: int = 0, packages: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:  # fmt: skip
    """Builds the data set at `dest` (images size x size, RGB on white) and returns what is in it.

    `packages` is a folder of npm tarballs to use instead of npm; `report` is called with lines of progress.
    Raises UsageError for a size that makes no sense or a `dest` that is in use, PixArtError when a package
    cannot be had. `dest` appears only when it is complete.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"The image size is {size}; give a size between {SMALLEST} and {LARGEST} pixels.")
    if packages is not None and not packages.is_dir():
        raise UsageError(f"There is no folder {packages} of npm tarballs; give an existing folder, or leave it out.")
    dest = Path(os.path.abspath(dest))
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is there already and not empty; remove it first, or give a new folder.")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as work:
            summary = _build_in(Path(work), size, seed, packages, report)
            (Path(work) / "data").rename(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror}; make room or choose another folder.") from error
    parts = ", ".join(f"{count} {name}" for name, count in summary.splits.items())
    unmatched = sum(len(icons) for icons in summary.unmatched_icons.values())
    report(f"{summary.images} images ({parts}) with {summary.captions} captions")
    report(f"{unmatched} icons fit no emoji name; every icon left out is named in {dest / 'summary.json'}")
    return summary


def _build_in(work: Path, size: int, seed: int, packages: Path | None, report: Callable[[str], None]) -> Summary:
    fetched = {name: fetch(name, work, packages, report) for name in (icon_sets.NAMES_PACKAGE, *STYLES.values())}
    icons, unmatched = _icons(fetched)
    report(f"{len(icons)} icons of {len({icon.emoji.base_code for icon in icons})} base concepts to render")
    (work / "images").mkdir()
    paths = [work / "images" / f"{i}.png" for i in range(len(icons))]
    rendered: list[Rendered] = []
    for result in render_all(icons, paths, size):
        rendered.append(result)
        if len(rendered) % 1000 == 0:
            report(f"rendered {len(rendered)} of {len(icons)}")

    failed = [f"{i.style}: {i.name}: {r.error}" for i, r in zip(icons, rendered, strict=True) if r.error]
    good = [i for i, r in enumerate(rendered) if r.error is None]
    if not good:
        raise PixArtError(f"None of {len(icons)} icons could be rendered; the first: {failed[0]}.")
    same = [(good[a], good[b]) for a, b in near_duplicates.exact([rendered[i].pixel_hash for i in good])]
    left = sorted(set(good) - {dropped for dropped, _ in same})
    alike = near_duplicates.near(
        np.stack([rendered[i].thumbnail for i in left]),
        [icons[i].emoji.code for i in left],
        [icons[i].style for i in left],
    )
    alike = [(left[a], left[b]) for a, b in alike]
    kept = sorted(set(left) - {dropped for dropped, _ in alike})
    report(f"dropped {len(same)} exact and {len(alike)} near duplicates; {len(failed)} icons failed to render")

    split = assign([icons[i].emoji.base_concept for i in kept], [icons[i].style for i in kept], seed)
    rows = [_row(icons[i], rendered[i]) for i in kept]
    _name_files(rows)
    for name in SPLITS:
        chosen = [k for k, part in enumerate(split) if part == name]
        write_split(work / "data" / name, [rows[k] for k in chosen])
        for k in chosen:
            paths[kept[k]].rename(work / "data" / name / rows[k]["file_name"])

    every = [caption for row in rows for caption in row["captions"]]

    def named(index: int) -> str:
        return f"{icons[index].emoji.concept}, {icons[index].style}"

    summary = Summary(
        size=size, seed=seed, images=len(rows), captions=len(every), distinct_captions=len(set(every)),
        base_concepts=len({row["base_concept"] for row in rows}),
        splits={name: split.count(name) for name in SPLITS}, styles=dict(Counter(row["style"] for row in rows)),
        exact_duplicates=[f"{named(a)} = {named(b)}" for a, b in same],
        near_duplicates=[f"{named(a)} ~ {named(b)}" for a, b in alike],
        failed_renders=failed, unmatched_icons=unmatched.unknown, repeated_icons=unmatched.repeated,
        packages={p.name: p.version for p in fetched.values()}, licences={p.name: p.licence for p in fetched.values()},
    )  # fmt: skip
    write_json(work / "data" / "summary.json", asdict(summary))
    shutil.rmtree(work / "images")
    return summary


def _icons(fetched: dict[str, Package]) -> tuple[list[Icon], Unmatched]:
    """All icons, base emoji before their skin tones, and within one emoji in the order of STYLES."""
    names = fetched[icon_sets.NAMES_PACKAGE]
    emoji = icon_sets.read_emoji(names)
    unmatched = Unmatched()
    icons: list[Icon] = []
    for style, package_name in STYLES.items():
        package = fetched[package_name]
        if style == "3D":
            icons += icon_sets.read_bitmaps(style, package, emoji, unmatched)
            continue
        chars = package.read_json("chars.json")
        if style == "glossy":  # this set has no code points of its own; its names are those of the flat set
            chars = fetched[STYLES["flat"]].read_json("chars.json")
        elif style == "FxEmoji":
            chars, unmatched.unknown[style], unmatched.repeated[style] = icon_sets.names_by_letters(package, names)
        icons += icon_sets.read_icons(style, package, chars, emoji, unmatched)
    for style in STYLES.keys() - {icon.style for icon in icons}:
        raise PixArtError(f"{fetched[STYLES[style]].source} holds no icon that fits an emoji name; fetch it again.")
    rank = {style: i for i, style in enumerate(STYLES)}
    icons.sort(key=lambda i: (i.emoji.skin_tone is not None, i.emoji.order, i.emoji.code, rank[i.style]))
    return icons, unmatched


def _row(icon: Icon, rendered: Rendered) -> dict:
    one, colours = icon.emoji, named_colours(rendered.colours or {})
    texts = captions(one.concept, one.tags, one.group, one.subgroup, icon.style, colours)
    return {
        "file_name": "", "text": texts[0], "captions": texts, "concept": one.concept, "base_concept": one.base_concept,
        "group": one.group, "subgroup": one.subgroup, "style": icon.style, "skin_tone": one.skin_tone,
        "source": icon.source, "licence": icon.licence,
    }  # fmt: skip


def _name_files(rows: list[dict]) -> None:
    """Gives each row a readable file name that no other has, such as red-apple.3d.png."""
    taken: set[str] = set()
    for row in rows:
        stem, style = _slug(row["concept"]), _slug(row["style"])
        name, number = f"{stem}.{style}.png", 2
        while name in taken:
            name, number = f"{stem}-{number}.{style}.png", number + 1
        taken.add(name)
        row["file_name"] = name


def _slug(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower().replace("'", "")).strip("-")
