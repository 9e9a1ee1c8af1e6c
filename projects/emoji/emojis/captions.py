"""Captions from what is known about a picture besides its pixels: its name, its keywords, its style and its colours.

Every caption is a fixed point of the caption cleaning of Diffusers' PixArt pipeline, letter case aside: the stock
pipeline cleans prompts by default, and a caption that it would rewrite is one that no user's prompt can reach.
"""

import re
from collections.abc import Sequence

from emojis.colours import COLOURS

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

_THE_FLAG = re.compile(
    r"^(?!South Georgia|Heard).*"
    r"(Islands|Republic|Territory|Territories|Union|Kingdom|Nations|States|Emirates|Netherlands)$"
    r"|^(Bahamas|Gambia|Comoros|Maldives|Philippines|Seychelles|Isle of Man)$"
)
_COUNTRY = {
    "Hong Kong SAR China": "Hong Kong",
    "Macao SAR China": "Macao",
    "Congo - Kinshasa": "Congo-Kinshasa",
    "Congo - Brazzaville": "Congo-Brazzaville",
    "Myanmar (Burma)": "Myanmar",
    "Cocos (Keeling) Islands": "Cocos Islands",
}
_KEYS = {"#": "a hash sign", "*": "an asterisk"}
_PLURAL = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "adult": "adults", "boy": "boys",
    "girl": "girls",
}  # fmt: skip
# Names that say little to someone who does not know Unicode's own.
_CLEARER = {
    "locked": "locked padlock",
    "unlocked": "unlocked padlock",
    "locked with pen": "locked padlock with pen",
    "locked with key": "locked padlock with key",
    "bald": "bald hair style",
    "dashing away": "dashing away puff",
    "dizzy": "dizzy star",
    "foggy": "foggy city",
    "mate": "mate drink",
    "sake": "sake bottle and cup",
    "milky way": "Milky Way",
    "mount fuji": "Mount Fuji",
    "dna": "DNA",
    "dvd": "DVD",
    "x-ray": "X-ray",
}
_ORDINAL = {"1st": "first", "2nd": "second", "3rd": "third"}
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": None, "”": None, '"': None, "!": None, "&": "and", "/": ","})

# Head words that take no article: things without number, activities, and what looks plural.
_NO_ARTICLE = re.compile(
    r"(bacon|badminton|bowling|bread|breast-feeding|broccoli|butter|camping|celery|cheese|children|clothing|construction|"
    r"cooking|coral|corn|dna|fire|fog|food|garlic|ginger|hair|hockey|honey|ice|infinity|information|lacrosse|laughing|"
    r"lightning|liquid|luggage|men|money|oden|people|polish|pong|popcorn|racing|rail|rice|salt|smoke|snow|soap|spaghetti|"
    r"star-struck|sunrise|sunset|sushi|tennis|thread|tofu|together|voltage|wind|women|wood|yarn|zzz|.*[^us]s)$"
)
_PROPER = re.compile(
    r"^(Santa|Mrs|Mx|Mount Fuji|Tokyo|Statue|Milky|DNA|Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|"
    r"Capricorn|Aquarius|Pisces|Ophiuchus|family of |women |men |people |globe showing)"
)
_SYMBOL_NOUN = re.compile(
    r"(button|sign|mark|arrow|symbol|square|circle|diamond|star|heart|cross|bubble|letter [A-Z]|emblem|badge|room|loop|"
    r"asterisk|keycap|wheel|menorah|om)$"
)
_AFTER_HEAD = re.compile(
    r",| (?:with|of|in|on|and|at|behind|without|over|for|from|facing|holding|showing|pointing|wearing)\b"
)
_VERB = re.compile(r"^(thumbs|raising|folded|clapping|see-no|hear-no|speak-no|heart on|plus$|minus$|divide$|multiply$)")


def phrase(label: str, tones: Sequence[str] = ()) -> str:
    """A Unicode name as a person would write it: 'family: man, boy' becomes 'family of a man and a boy'.

    `label` is the name without skin tones; `tones` are those of `TONES` that the picture shows, in order.
    """
    name = _rewrite(label)
    if tones:
        skin = f"{tones[0]} skin tone" if len(tones) == 1 else f"{' and '.join(tones)} skin tones"
        joint = "," if re.search(" with .* facing ", name) else " and" if " with " in name else " with"
        name = f"{name}{joint} {skin}"
    # The cleaning takes out all hyphens of a caption with more than three.
    return name.replace("-", " ") if name.count("-") > 3 else name


def _rewrite(label: str) -> str:
    kind, _, rest = label.partition(": ")
    if kind == "flag":
        country = _COUNTRY.get(rest, rest).replace("St. ", "Saint ").replace("U.S. ", "US ")
        return plain(f"flag of {'the ' if _THE_FLAG.search(country) else ''}{country}")
    if kind == "keycap":
        return f"keycap with {_KEYS.get(rest, f'the number {rest}')}"
    if kind == "family" and rest:
        return f"family of {_members(rest)}"
    if kind == "kiss" and rest:
        return f"kiss of {_members(rest)}"
    if kind == "couple with heart" and rest:
        return f"couple of {_members(rest)} with a heart"
    if rest == "bald":
        return f"bald {kind}"
    if rest == "beard":
        return f"{kind} with a beard"
    if rest.startswith("facing"):
        return f"{kind} {rest}"
    if rest:
        return f"{kind} with {rest}"
    if match := re.fullmatch(r"(\w+) button \(blood type\)", label):
        return f"blood type {match[1]} button"
    if match := re.fullmatch(r"regional indicator (\w)", label):
        return f"regional indicator letter {match[1]}"
    if re.fullmatch(r"[\w-]+ skin tone", label):
        return f"{label} swatch"
    if re.fullmatch(r"\w+ o’clock|\w+-thirty", label):
        return plain(f"clock showing {label}")
    label = _CLEARER.get(label, label)
    words = [_ORDINAL.get(word, word) for word in label.split()]
    return plain(" ".join(words).replace("Mrs.", "Mrs"))


def _members(names: str) -> str:
    people = names.split(", ")
    parts: list[str] = []
    for who in dict.fromkeys(people):
        count = people.count(who)
        parts.append(f"two {_PLURAL[who]}" if count == 2 else f"{_article(who)} {who}")
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def plain(text: str) -> str:
    """Text without the characters that Diffusers' caption cleaning rewrites (quotes, brackets, &, !, slashes, #)."""
    text = re.sub(r"[()\[\]{}|\\*#®•©™@·º½¾¿¡§~]", " ", text.translate(_PLAIN))
    return re.sub(r"\s+", " ", re.sub(r"\s+,", ",", re.sub(r",(?=\S)", ", ", text))).strip()


def _article(text: str) -> str:
    word = re.split(r"[\s-]", text)[0]
    if word == "FxEmoji":
        return "an"
    if re.fullmatch(r"[A-Z]{1,3}", word) and word not in ("UP", "ON", "NEW", "TOP"):
        return "an" if word[0] in "AEFHILMNORSX" else "a"
    if re.match(r"(?i)(uni|us[ei]|eu|ewe|ukulele|one)", word):
        return "a"
    return "an" if re.match(r"(?i)([aeiou]|hour|heir|honest)", word) else "a"


def with_article(name: str, group: str = "") -> str:
    """'a red apple', 'an owl', but 'glasses', 'Santa Claus' as they are; 'the flag of France'."""
    if name.startswith("flag of "):
        return f"the {name}"
    if name.startswith(("kiss of", "couple of")) or name.endswith(" button"):
        return f"{_article(name)} {name}"
    if _PROPER.search(name) or _VERB.search(name):
        return name
    head = _AFTER_HEAD.split(name)[0]
    noun = head.split()[-1].lower()
    first = name.split()[0]
    if first in ("magnifying", "man", "woman", "person", "mermaid", "merman", "boy", "girl"):
        return f"a {name}"
    if _NO_ARTICLE.match(noun):
        return name
    if group == "symbols" and not _SYMBOL_NOUN.search(head):
        return name
    if " and " in name and " with " not in name and "face" not in name:
        return name
    return f"{_article(name)} {name}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# Keywords for finding an emoji while chatting that say nothing about the picture; and who is in it, which the name says
# (Unicode lists "man" among the keywords of a woman swimming).
_CHAT = re.compile(
    r"(babe|bae|bestie|bff|bro|bruh|dude|feels|fml|ily|lmao|lmfao|lol|mwah|not|omg|rofl|slay|smh|whatever|wow|xoxo|yolo|"
    r"you|the|and|for|man|woman|person|boy|girl|lady|guy)$"
)

# Groups of things that come in many colours, so that a colour in front of the name says something.
_COLOURED_SUBGROUPS = re.compile(
    r"mammal|bird|bug|marine|reptile|flower|fruit|vegetable|clothing|transportation|music|tool|office|household|book|mail|"
    r"dish|lock|computer|phone|sport|game"
)
_COLOUR_WORD = re.compile(r"\b(" + "|".join((*COLOURS, "gray", "gold", "silver", "rainbow", "blond", "polar")) + r")\b")


def captions(
    name: str, tags: Sequence[str], group: str, subgroup: str, style: str, colours: Sequence[str]
) -> list[str]:
    """Five to seven captions of one picture, from the short form '<name>, <style>' to a dense sentence.

    `name` comes from `phrase`; `colours` (see `named_colours`) may be empty, and is ignored for black and white.
    """
    full = with_article(name, group)
    coloured = [] if style == "black and white" else list(colours)
    known = set(re.findall(r"\w+", name.lower()))
    words = [tag for tag in tags if re.fullmatch("[a-z][a-z ]{2,}", tag) and not _CHAT.match(tag)]
    words = [tag for tag in words if not set(tag.split()) & known and not _COLOUR_WORD.search(tag)][:3]
    kind = plain(subgroup)
    said = {word.rstrip("s") for word in re.findall(r"\w+", " ".join([name.lower(), *words]))}
    if not {word.rstrip("s") for word in re.findall(r"\w+", kind)} & said and not kind.startswith("other"):
        words.append(kind)
    found = [f"{name}, {style}"]
    if full != name:
        found.append(f"{full}, {style}")
    found.append(f"{style} picture of {full}")
    if name.startswith("flag of "):
        found.append(f"{re.sub('^flag of (the )?', '', name)} flag, {style}")
    if words:
        found.append(f"{', '.join([name, *words[:4]])}, {style}")
    found.append(f"{full} in {style} style")
    if len(found) < 4:
        found.append(f"{style} {name}")
    if coloured:
        mostly = f"mostly {coloured[0]}" if len(coloured) == 1 else _listed(coloured)
        of_one_kind = _COLOURED_SUBGROUPS.search(subgroup) and re.match("an? ", full)
        if of_one_kind and len(coloured) < 3 and not _COLOUR_WORD.search(name):
            found.append(f"{_article(coloured[0])} {_listed(coloured)} {name}, {style}")
        found.append(f"{_article(style)} {style} icon of {full}, {mostly}, on a white background")
    else:
        found.append(f"{_article(style)} {style} icon of {full} on a white background")
    return list(dict.fromkeys(found))
