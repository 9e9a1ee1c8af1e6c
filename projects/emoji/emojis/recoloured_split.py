"""A further split of the emoji data: training images in other colours, and in their own, with captions that say so.

The data shows nearly every thing in one colour only, so a model learns colour words as parts of things. Here the same
artwork comes in several, one word apart.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from emojis.captions import with_article
from emojis.colours import COLOURS, leading_colour
from emojis.prompts import things
from emojis.recolour import ANCHORS, Leading, leading, recoloured
from emojis.records import Record, read_split, write_split
from pixart.errors import PixArtError, UsageError
from pixart.files import replacing

SPLIT = "train_recoloured"
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
_AS_IS = 40  # images of a colour and a style that come in it as they are: half of all would be yellow faces
_NAMED = 0.45  # of a recoloured object that must have the new name


def build(
    data: Path, *, seed: int = 0, copies: int = 1, report: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Writes `data`/train_recoloured and returns how many images each colour has. The same data give the same split.

    Raises UsageError where the split is there already or `copies` makes no sense, PixArtError where the data is not
    whole. The folder appears only when it is complete.
    """
    dest = data / SPLIT
    if dest.exists():
        raise UsageError(f"{dest} is there already; remove it first.")
    if not 1 <= copies < len(ANCHORS):
        raise UsageError(f"copies is {copies}; it must be from 1 to {len(ANCHORS) - 1}.")
    apart = things()
    records = [record for record in read_split(data / "train") if suitable(record, apart)]
    report(f"looking at {len(records):,} training images")
    try:
        with replacing(dest) as partial:
            rows = _write(partial, records, seed, copies)
            if not rows:
                raise PixArtError(f"No training image in {data} has one leading colour that could be turned.")
    except OSError as error:
        raise PixArtError(f"{dest} cannot be written: {error.strerror or error}.") from error
    counts = Counter(row["colour"] for row in rows)
    turned = sum(row["changed"] is not None for row in rows)
    report(f"{len(rows):,} images, {turned:,} of them recoloured: {', '.join(f'{n} {c}' for c, n in counts.items())}")
    return dict(counts)


def suitable(record: Record, apart: set[str]) -> bool:
    """Whether the thing may have any colour, by what is known without looking at it.

    The things that the composition measure asks for, `apart`, are never recoloured, nor anything with one of them in
    its name: a blue one stays new to every model.
    """
    return (
        record.style != "black and white"
        and record.skin_tone is None
        and record.group in _GROUPS
        and record.subgroup not in _NOT_SUBGROUPS
        and not _NOT_NAMES.search(record.concept)
        and not any(re.search(rf"\b{name}s?\b", record.concept) for name in apart)
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


def _write(folder: Path, records: list[Record], seed: int, copies: int) -> list[dict]:
    folder.mkdir()
    rng = random.Random(seed)
    order = list(range(len(records)))
    rng.shuffle(order)
    made: Counter[tuple[str, str]] = Counter()  # by colour and style
    as_is: Counter[tuple[str, str]] = Counter()  # by colour and style
    of_concept: Counter[tuple[str, str]] = Counter()  # by concept and colour
    rows: dict[tuple[int, int], dict] = {}
    for k in order:
        record = records[k]
        image = record.open()
        found = leading(image)
        if found is None or not _one_colour(record, found):
            continue
        own = found.name, record.style
        if found.name in ANCHORS and leading_colour(image)[0] == found.name and as_is[own] < _AS_IS:
            as_is[own] += 1
            shutil.copyfile(record.path, folder / record.file_name)
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
            name, share = leading_colour(copy)
            if name != colour or share < _NAMED:
                continue
            copied += 1
            file_name = f"{record.path.stem}.{colour}.png"
            copy.save(folder / file_name)
            rows[k, copied] = _row(record, file_name, colour, changed=f"colour turned from {found.name} to {colour}")
            made[colour, record.style] += 1
            of_concept[record.base_concept, colour] += 1
            if copied == copies:
                break
    write_split(folder, [rows[key] for key in sorted(rows)])
    return list(rows.values())


def _one_colour(record: Record, found: Leading) -> bool:
    others = _OTHERS / 2 if record.group == "smileys & emotion" else _OTHERS
    return found.share >= _ONE_THING and found.other <= others and found.chroma >= _PALEST


def _near(anchor: tuple[float, float, float], rng: random.Random) -> tuple[float, float, float]:
    """A colour of the same name: artists do not all take the same blue."""
    lightness, chroma, hue = anchor
    return lightness + rng.uniform(-0.03, 0.03), chroma * rng.uniform(0.9, 1.1), hue + rng.uniform(-5, 5)


def _row(record: Record, file_name: str, colour: str, *, changed: str | None) -> dict:
    texts = captions(record.concept, colour, record.style, record.group)
    return {
        "file_name": file_name, "text": texts[0], "captions": texts, "concept": f"{colour} {record.concept}",
        "base_concept": record.base_concept, "group": record.group, "subgroup": record.subgroup, "style": record.style,
        "skin_tone": None, "source": record.source, "licence": record.licence, "colour": colour,
        "copied_from": f"train/{record.file_name}", "changed": changed,
    }  # fmt: skip
