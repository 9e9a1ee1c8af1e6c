"""The emoji data set: seven free icon sets and Unicode's names, rendered, captioned, freed of duplicates and split.

Layout: DEST/{train,test_cells,test_concepts}/metadata.jsonl with its PNG files beside it (the imagefolder layout
of Hugging Face's datasets library), and DEST/summary.json.
"""

import json
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

from pixart.captions.captioner import Picture
from pixart.captions.colours import named_colours
from pixart.captions.metadata_captioner import EMOJI
from pixart.data import icon_sets, near_duplicates
from pixart.data.icon_sets import STYLES, Drawing, Unmatched
from pixart.data.npm import Package, fetch
from pixart.data.render import Rendered, render_all
from pixart.data.split import SPLITS, assign
from pixart.errors import PixArtError, UsageError

SMALLEST, LARGEST = 16, 1024


@dataclass(frozen=True)
class Summary:
    """What `build` did. Lists name every icon that is not in the data set, by style."""

    size: int
    seed: int
    pictures: int
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
    mean_distinct_colours: dict[str, float]
    richest_style: str
    packages: dict[str, str]
    licences: dict[str, str]


def build(
    dest: Path, *, size: int = 256, seed: int = 0, packages: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:  # fmt: skip
    """Builds the data set at `dest` (pictures size x size, RGB on white) and returns what is in it.

    `packages` is a folder of npm tarballs to use instead of npm; `report` is called with lines of progress.
    Raises UsageError for a size that makes no sense or a `dest` that is in use, PixArtError when a package
    cannot be had. `dest` appears only when it is complete.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"The picture size is {size}; give a size between {SMALLEST} and {LARGEST} pixels.")
    if packages is not None and not packages.is_dir():
        raise UsageError(f"There is no folder {packages} of npm tarballs; give an existing folder, or leave it out.")
    dest = Path(os.path.abspath(dest))
    _refuse_used(dest)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror}; choose another folder.") from None
    try:
        summary = _build_in(work, size, seed, packages, report)
        _refuse_used(dest)
        (work / "data").rename(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror}; make room or choose another folder.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    parts = ", ".join(f"{count} {name}" for name, count in summary.splits.items())
    unmatched = sum(len(icons) for icons in summary.unmatched_icons.values())
    report(f"{summary.pictures} pictures ({parts}) with {summary.captions} captions")
    report(f"{unmatched} icons fit no emoji name; every icon left out is named in {dest / 'summary.json'}")
    return summary


def _refuse_used(dest: Path) -> None:
    if not dest.exists():
        return
    if not dest.is_dir():
        raise UsageError(f"{dest} is a file; give a folder that does not exist yet.")
    if (dest / "summary.json").exists():
        raise UsageError(f"{dest} already holds an emoji data set; remove it first, or give another folder.")
    if any(dest.iterdir()):
        raise UsageError(f"{dest} is not empty and holds no emoji data set; give an empty or a new folder.")


def _build_in(work: Path, size: int, seed: int, packages: Path | None, report: Callable[[str], None]) -> Summary:
    fetched = {name: fetch(name, work, packages, report) for name in (icon_sets.NAMES_PACKAGE, *STYLES.values())}
    drawings, unmatched = _drawings(fetched)
    report(f"{len(drawings)} icons of {len({d.emoji.base_code for d in drawings})} base concepts to draw")
    pictures = work / "pictures"
    pictures.mkdir()
    paths = [pictures / f"{i}.png" for i in range(len(drawings))]
    rendered: list[Rendered] = []
    for result in render_all(drawings, paths, size):
        rendered.append(result)
        if len(rendered) % 1000 == 0:
            report(f"drawn {len(rendered)} of {len(drawings)}")

    failed = [f"{d.style}: {d.icon}: {r.error}" for d, r in zip(drawings, rendered, strict=True) if r.error]
    good = [i for i, r in enumerate(rendered) if r.error is None]
    if not good:
        raise PixArtError(f"None of {len(drawings)} icons could be drawn; the first: {failed[0]}.")
    same = near_duplicates.exact([rendered[i].pixel_hash for i in good])
    dropped = {i for i, _ in same}
    left = [k for k in range(len(good)) if k not in dropped]
    alike = near_duplicates.near(
        np.stack([rendered[good[k]].thumbnail for k in left]),
        [drawings[good[k]].emoji.code for k in left],
        [drawings[good[k]].style for k in left],
    )
    dropped_near = {left[i] for i, _ in alike}
    kept = [good[k] for k in left if k not in dropped_near]

    def named(index: int) -> str:
        return f"{drawings[index].emoji.concept}, {drawings[index].style}"

    report(f"dropped {len(same)} exact and {len(alike)} near duplicates; {len(failed)} icons failed to render")
    split = assign([drawings[i].emoji.base_concept for i in kept], [drawings[i].style for i in kept], seed)
    records = [_record(drawings[i], rendered[i]) for i in kept]
    _name_files(records)
    data = work / "data"
    _write(data, records, split, [paths[i] for i in kept])

    counts = Counter(record["style"] for record in records)
    colours = {
        style: round(float(np.mean([rendered[i].distinct_colours for i in kept if drawings[i].style == style])), 1)
        for style in counts
    }
    every = [caption for record in records for caption in record["captions"]]
    summary = Summary(
        size=size, seed=seed, pictures=len(records), captions=len(every), distinct_captions=len(set(every)),
        base_concepts=len({record["base_concept"] for record in records}),
        splits={name: split.count(name) for name in SPLITS}, styles=dict(counts),
        exact_duplicates=[f"{named(good[a])} = {named(good[b])}" for a, b in same],
        near_duplicates=[f"{named(good[left[a]])} ~ {named(good[left[b]])}" for a, b in alike],
        failed_renders=failed, unmatched_icons=unmatched.unknown, repeated_icons=unmatched.repeated,
        mean_distinct_colours=colours, richest_style=max(colours, key=lambda style: colours[style]),
        packages={p.name: p.version for p in fetched.values()}, licences={p.name: p.licence for p in fetched.values()},
    )  # fmt: skip
    text = json.dumps(asdict(summary), indent=1, ensure_ascii=False) + "\n"
    (data / "summary.json").write_text(text, encoding="utf-8")
    return summary


def _drawings(fetched: dict[str, Package]) -> tuple[list[Drawing], Unmatched]:
    """All drawings, base emoji before their skin tones, and within one emoji in the order of STYLES."""
    names = fetched[icon_sets.NAMES_PACKAGE]
    emoji = icon_sets.read_emoji(names)
    unmatched = Unmatched()
    drawings: list[Drawing] = []
    for style, package_name in STYLES.items():
        package = fetched[package_name]
        if style == "3D":
            drawings += icon_sets.read_bitmaps(style, package, emoji, unmatched)
            continue
        chars = package.read_json("chars.json")
        if style == "glossy":  # this set has no code points of its own; its names are those of the flat set
            chars = fetched[STYLES["flat"]].read_json("chars.json")
        elif style == "FxEmoji":
            chars, unknown, repeated = icon_sets.names_by_letters(package, names)
            unmatched.unknown[style] = unknown
            unmatched.repeated[style] = repeated
        drawings += icon_sets.read_icons(style, package, chars, emoji, unmatched)
    for style in STYLES.keys() - {drawing.style for drawing in drawings}:
        raise PixArtError(f"{fetched[STYLES[style]].source} holds no icon that fits an emoji name; fetch it again.")
    rank = {style: i for i, style in enumerate(STYLES)}
    drawings.sort(key=lambda d: (d.emoji.skin_tone is not None, d.emoji.order, d.emoji.code, rank[d.style]))
    return drawings, unmatched


def _record(drawing: Drawing, rendered: Rendered) -> dict:
    one = drawing.emoji
    colours = named_colours(rendered.colours or {})
    facts = {
        "name": one.concept, "tags": one.tags, "group": one.group, "subgroup": one.subgroup, "style": drawing.style,
        "colours": colours,
    }  # fmt: skip
    texts = [caption.text for caption in EMOJI.caption([Picture(drawing.icon, facts=facts)])[0]]
    return {
        "file_name": "", "text": texts[0], "captions": texts, "concept": one.concept, "base_concept": one.base_concept,
        "group": one.group, "subgroup": one.subgroup, "style": drawing.style, "skin_tone": one.skin_tone,
        "source": drawing.source, "licence": drawing.licence,
    }  # fmt: skip


def _name_files(records: list[dict]) -> None:
    """Gives each record a readable file name that no other has, such as red-apple.3d.png."""
    taken: set[str] = set()
    for record in records:
        stem, style = _slug(record["concept"]), _slug(record["style"])
        name, number = f"{stem}.{style}.png", 2
        while name in taken:
            name, number = f"{stem}-{number}.{style}.png", number + 1
        taken.add(name)
        record["file_name"] = name


def _slug(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower().replace("'", "")).strip("-")


def _write(data: Path, records: list[dict], split: list[str], paths: list[Path]) -> None:
    for name in SPLITS:
        (data / name).mkdir(parents=True)
        rows = [(record, path) for record, path, part in zip(records, paths, split, strict=True) if part == name]
        for record, path in rows:
            path.rename(data / name / record["file_name"])
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record, _ in rows]
        (data / name / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
