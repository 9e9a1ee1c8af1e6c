"""The seven icon sets and the Unicode names, read from their npm packages into one list of icons."""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from emojis.captions import TONES, phrase
from emojis.npm import Package

# Style word in the captions -> npm package, in the order in which near duplicates are kept.
STYLES = {
    "3D": "@lobehub/fluent-emoji-3d",
    "glossy": "@iconify-json/fluent-emoji",
    "flat": "@iconify-json/fluent-emoji-flat",
    "black and white": "@iconify-json/fluent-emoji-high-contrast",
    "Noto": "@iconify-json/noto",
    "Twemoji": "@iconify-json/twemoji",
    "FxEmoji": "@iconify-json/fxemoji",
}
NAMES_PACKAGE = "emojibase-data"


@dataclass(frozen=True)
class Emoji:
    """One emoji with its skin tones. `code` is its code points in hexadecimal without variation selectors."""

    code: str
    base_code: str
    concept: str
    base_concept: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    skin_tone: str | None
    order: int


@dataclass(frozen=True)
class Icon:
    """One image to render: an SVG text, or the path of a bitmap file (`svg` is None)."""

    emoji: Emoji
    style: str
    source: str
    licence: str
    name: str
    svg: str | None
    bitmap: Path | None


@dataclass
class Unmatched:
    """Icons that no emoji name fits, by style, and icons left out because their emoji already had one in that style."""

    unknown: dict[str, list[str]] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)


def code_points(hexcode: str) -> str:
    """'0023-FE0F-20E3' -> '23-20E3': upper case, no FE0F, no leading zeros, '-' between, so that all sets agree."""
    parts = [part.lstrip("0").upper() or "0" for part in hexcode.replace("_", "-").split("-")]
    return "-".join(part for part in parts if part != "FE0F")


def read_emoji(names: Package) -> dict[str, Emoji]:
    """All emoji of emojibase's English data by code, base emoji before their skin tones."""
    messages = names.read_json("en/messages.json")
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    entries = names.read_json("en/data.json")
    # Common keywords first: those name kinds of things ("food", "bird"), rare ones are often jokes.
    uses = Counter(tag for entry in entries for tag in entry.get("tags", ()))
    found: dict[str, Emoji] = {}
    for entry in entries:
        base = code_points(entry["hexcode"])
        base_concept = phrase(entry["label"])
        # Regional indicators (the letters that flags are spelt with) are the only entries without a group.
        group = groups.get(entry.get("group"), "symbols")
        subgroup = subgroups.get(entry.get("subgroup"), "alphanumeric symbols")
        for variant in (entry, *entry.get("skins", [])):
            tone = variant.get("tone", ())
            tones = [TONES[index - 1] for index in ((tone,) if isinstance(tone, int) else tone)]
            code = code_points(variant["hexcode"])
            found[code] = Emoji(
                code=code, base_code=base, concept=phrase(entry["label"], tones), base_concept=base_concept,
                tags=tuple(sorted(entry.get("tags", ()), key=lambda tag: -uses[tag])), group=group, subgroup=subgroup,
                skin_tone=" and ".join(tones) or None, order=variant.get("order", 1_000_000),
            )  # fmt: skip
    return found


def read_bitmaps(style: str, package: Package, emoji: dict[str, Emoji], unmatched: Unmatched) -> list[Icon]:
    """Bitmap files named by code points in the package's assets/ folder."""
    found: dict[str, Icon] = {}
    for path in sorted((package.folder / "assets").glob("*.webp")):
        _add(found, unmatched, emoji.get(code_points(path.stem)), style, package, path.stem, bitmap=path)
    return list(found.values())


def read_icons(
    style: str, package: Package, names: dict[str, str], emoji: dict[str, Emoji], unmatched: Unmatched
) -> list[Icon]:
    """SVG icons of an Iconify set; `names` maps hexcodes to icon names.

    An alias (another icon, perhaps mirrored or turned) is rendered only for an emoji that no icon of the set shows.
    """
    sets = package.read_json("icons.json")
    icons, aliases = sets["icons"], sets.get("aliases", {})
    found: dict[str, Icon] = {}
    for hexcode, name in names.items():
        if name in icons:
            _add(found, unmatched, emoji.get(code_points(hexcode)), style, package, name, svg=_svg(sets, icons[name]))
    slugs = {_letters(one.concept.replace(" with ", " ")): one for one in emoji.values()}
    for name, alias in aliases.items():
        tone = re.search(r"-(medium-light|medium-dark|light|medium|dark)$", name)
        one = slugs.get(_letters(f"{name} skin tone" if tone else name))
        if one is not None and one.code not in found and alias["parent"] in icons:
            _add(found, unmatched, one, style, package, name, svg=_svg(sets, icons[alias["parent"]], alias))
    return list(found.values())


def names_by_letters(icons: Package, names: Package) -> tuple[dict[str, str], list[str], list[str]]:
    """Hexcode -> icon name for a set that has names only; the names that fit no emoji; those whose emoji is taken.

    A name fits when its letters and digits equal those of the emoji's label, Unicode character name or a short code.
    """
    by_letters: dict[str, str] = {}
    entries = names.read_json("en/data.json")
    for entry in entries:
        by_letters.setdefault(_letters(entry["label"]), entry["hexcode"])
    for entry in entries:
        points = code_points(entry["hexcode"]).split("-")
        if len(points) == 1:
            by_letters.setdefault(_letters(unicodedata.name(chr(int(points[0], 16)), "")), entry["hexcode"])
    for path in sorted((names.folder / "en/shortcodes").glob("*.json")):
        for hexcode, codes in json.loads(path.read_text(encoding="utf-8")).items():
            for code in [codes] if isinstance(codes, str) else codes:
                by_letters.setdefault(_letters(code), hexcode)
    by_letters.pop("", None)
    found: dict[str, str] = {}
    unknown, repeated = [], []
    for name in icons.read_json("icons.json")["icons"]:
        hexcode = by_letters.get(_letters(name))
        if hexcode is None:
            unknown.append(name)
        elif found.setdefault(hexcode, name) != name:
            repeated.append(name)
    return found, unknown, repeated


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _add(
    found: dict[str, Icon], unmatched: Unmatched, one: Emoji | None, style: str, package: Package, icon: str,
    svg: str | None = None, bitmap: Path | None = None,
) -> None:  # fmt: skip
    if one is None:
        unmatched.unknown.setdefault(style, []).append(icon)
    elif one.code in found:
        unmatched.repeated.setdefault(style, []).append(icon)
    else:
        found[one.code] = Icon(one, style, package.source, package.licence, icon, svg, bitmap)


def _svg(sets: dict, icon: dict, alias: dict | None = None) -> str:
    """A whole SVG document; `currentColor` in the body is black. Transforms as Iconify's icon format has them."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", sets.get("width", 16)), icon.get("height", sets.get("height", 16))
    body = icon["body"]
    alias = alias or {}
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    if alias.get("vFlip"):
        body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
    if alias.get("rotate"):
        middle = f"{left + width / 2} {top + height / 2}"
        body = f'<g transform="rotate({90 * (alias["rotate"] % 4)} {middle})">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{left} {top} {width} {height}" width="SIZE" height="SIZE">{body}</svg>'
    )
