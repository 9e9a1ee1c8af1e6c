"""A further split of the emoji data: training pictures in other colours, and in their own, with captions that say so.

The data shows nearly every thing in one colour only, so a model learns colour words as parts of things. Here the same
drawing comes in several, one word apart.
"""

import json
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from tyro.conf import arg

from pixart.captions.colours import COLOURS
from pixart.captions.metadata import with_article
from pixart.data.imagefolder import Record, read_split
from pixart.data.recolour import ANCHORS, Leading, leading, leading_name, recoloured
from pixart.errors import PixArtError, UsageError
from pixart.options import parsed

SPLIT = "train_recoloured"
# Never recoloured, nor anything with one of them in its name: a blue one of them stays new to every model, and can ask
# whether it combines (evaluation/prompt_sets/emoji.py).
KEPT_APART = (
    "apple", "banana", "frog", "elephant", "carrot", "fire engine", "pig", "cactus", "bear", "fox", "octopus", "crab",
    "turtle", "snake", "whale", "camel", "lemon", "pear", "tomato", "broccoli", "eggplant", "mushroom", "umbrella",
    "backpack", "dress", "crown", "bell", "key", "trumpet", "telephone", "balloon", "chair", "bucket", "taxi",
    "helicopter", "motor scooter", "rose", "evergreen tree", "pretzel", "croissant",
)  # fmt: skip
_GROUPS = ("smileys & emotion", "animals & nature", "food & drink", "travel & places", "activities", "objects")
# What is no one thing, or what its colour makes it.
_NOT_SUBGROUPS = (
    "emotions", "globes & maps", "geographic locations", "other places", "water transportation", "award medals", "money"
)  # fmt: skip
_NOT_NAMES = re.compile(
    r"\b(night|city\w*|cloud|clouds|water|wave|wind|Milky|cyclone|blood|stop|light|sign|suit|wedding|Statue|Tokyo|Japanese|"
    r"kaaba|DVD|X-ray|rainbow|gold|silver|blond|polar|gray|cooking|egg|smoke|medal|map|tan|liquid|snowman|pole|oden|"
    + "|".join(COLOURS) + r")\b"
)  # fmt: skip
_ONE_THING = 0.5  # of the object that must change with its leading colour
_OTHERS = 0.2  # of the object that may have other colours, faces half of that: people look closely at faces
_PALEST = 0.05  # chroma of a leading colour
_AS_IS = 40  # pictures of a colour and a style that come in it as they are: half of all would be yellow faces
_NAMED = 0.45  # of a recoloured object that must have the new name


@dataclass
class Recolour:
    """Add a split to an emoji data set: training pictures recoloured, with captions that name the colour.

    Held-out pictures stay out of it. To train on it, see extra_splits in docs/training.md.
    """

    data: Annotated[Path, arg(metavar="DATA")]
    """Folder of pixart data emoji."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides which picture gets which colour."""
    copies: Annotated[int, arg(metavar="N")] = 1
    """How many colours a picture gets at most, besides its own."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart data recolour`. Returns the exit code."""
    import sys

    def do(options: Recolour) -> int:
        build(
            options.data, seed=options.seed, copies=options.copies,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        return 0

    return parsed(Recolour, arguments, "pixart data recolour", do)


def build(
    data: Path, *, seed: int = 0, copies: int = 1, report: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Writes `data`/train_recoloured and returns how many pictures each colour has. The same data give the same split.

    Raises UsageError where the split is there already or `copies` makes no sense, PixArtError where the data is not
    whole. The folder appears only when it is complete.
    """
    dest = data / SPLIT
    if dest.exists():
        raise UsageError(f"{dest} is there already; remove it first.")
    if not 1 <= copies < len(ANCHORS):
        raise UsageError(f"copies is {copies}; it must be from 1 to {len(ANCHORS) - 1}.")
    records = [record for record in read_split(data / "train") if suitable(record)]
    report(f"looking at {len(records):,} training pictures")
    work = Path(tempfile.mkdtemp(prefix=f".{SPLIT}.", dir=data))
    try:
        rows = _write(work, records, seed, copies, report)
        if not rows:
            raise PixArtError(f"No training picture in {data} has one leading colour that could be turned.")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (work / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        os.chmod(work, 0o755)
        work.rename(dest)
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    counts = Counter(row["colour"] for row in rows)
    turned = sum(row["changed"] is not None for row in rows)
    report(f"{len(rows):,} pictures, {turned:,} of them recoloured: {', '.join(f'{n} {c}' for c, n in counts.items())}")
    return dict(counts)


def suitable(record: Record) -> bool:
    """Whether the thing may have any colour, by what is known without looking."""
    return (
        record.style != "black and white"
        and record.skin_tone is None
        and record.group in _GROUPS
        and record.subgroup not in _NOT_SUBGROUPS
        and not _NOT_NAMES.search(record.concept)
        and not any(re.search(rf"\b{name}s?\b", record.concept) for name in KEPT_APART)
    )


def captions(name: str, colour: str, style: str, group: str = "") -> list[str]:
    """Captions of one thing in one colour: the words in several orders, the short form first."""
    own = with_article(name, group)
    bare = own == name
    one = f"{colour} {name}" if bare else f"{_article(colour)} {colour} {name}"
    found = [
        f"{colour} {name}, {style}",
        f"{one}, {style}",
        f"{style} picture of {one}",
        f"{one} in {style} style",
        f"{style} {colour} {name}" if bare else f"{_article(style)} {style} {colour} {name}",
        f"{own}, {colour}, {style}",
        f"{_article(style)} {style} icon of {one} on a white background",
    ]
    return list(dict.fromkeys(found))


def _article(word: str) -> str:
    return "an" if word.startswith(("a", "e", "i", "o", "FxE")) else "a"


def _write(work: Path, records: list[Record], seed: int, copies: int, report: Callable[[str], None]) -> list[dict]:
    rng = random.Random(seed)
    order = list(range(len(records)))
    rng.shuffle(order)
    made: Counter[tuple[str, str]] = Counter()  # by colour and style
    as_is: Counter[tuple[str, str]] = Counter()  # by colour and style
    of_concept: Counter[tuple[str, str]] = Counter()  # by concept and colour
    rows: dict[tuple[int, int], dict] = {}
    for done, k in enumerate(order, 1):
        record = records[k]
        if done % 1000 == 0:
            report(f"looked at {done:,}")
        with Image.open(record.path) as opened:
            image = opened.convert("RGB")
        found = leading(image)
        if found is None or not _one_colour(record, found):
            continue
        own = found.name, record.style
        if found.name in ANCHORS and leading_name(image)[0] == found.name and as_is[own] < _AS_IS:
            as_is[own] += 1
            shutil.copyfile(record.path, work / record.file_name)
            rows[k, 0] = _row(record, record.file_name, found.name, changed=None)
        face = record.group == "smileys & emotion"  # a brown one would be read as a skin tone
        colours = [c for c in ANCHORS if c != found.name and not (face and c == "brown")]
        # The rarest first: those that this thing has least, then those that this style has least.
        jitter = {colour: rng.random() for colour in colours}
        ranks = {c: (of_concept[record.base_concept, c], made[c, record.style] + 10 * jitter[c]) for c in colours}
        colours.sort(key=lambda colour: ranks[colour])
        copied = 0
        for colour in colours:
            copy = recoloured(image, found, _near(ANCHORS[colour], rng))
            name, share = leading_name(copy)
            if name != colour or share < _NAMED:
                continue
            copied += 1
            file_name = f"{record.path.stem}.{colour}.png"
            copy.save(work / file_name)
            rows[k, copied] = _row(record, file_name, colour, changed=f"colour turned from {found.name} to {colour}")
            made[colour, record.style] += 1
            of_concept[record.base_concept, colour] += 1
            if copied == copies:
                break
    return [rows[key] for key in sorted(rows)]


def _one_colour(record: Record, found: Leading) -> bool:
    others = _OTHERS / 2 if record.group == "smileys & emotion" else _OTHERS
    return found.share >= _ONE_THING and found.other <= others and found.chroma >= _PALEST


def _near(anchor: tuple[float, float, float], rng: random.Random) -> tuple[float, float, float]:
    """A colour of the same name: artists do not all take the same blue."""
    lightness, chroma, hue = anchor
    return lightness + rng.uniform(-0.03, 0.03), chroma * rng.uniform(0.9, 1.1), hue + rng.uniform(-5, 5)


def _row(record: Record, file_name: str, colour: str, *, changed: str | None) -> dict:
    told = captions(record.concept, colour, record.style, record.group)
    return {
        "file_name": file_name, "text": told[0], "captions": told, "concept": f"{colour} {record.concept}",
        "base_concept": record.base_concept, "group": record.group, "subgroup": record.subgroup, "style": record.style,
        "skin_tone": None, "source": record.source, "licence": record.licence, "colour": colour,
        "copied_from": f"train/{record.file_name}", "changed": changed,
    }  # fmt: skip
