"""Prompts of the shipped model's domain: concept x style x skin tone x colour, seen together in its data or never."""

from itertools import cycle

from pixart.evaluation.prompt_sets.prompts import Prompt

STYLES = ("3D", "glossy", "flat", "black and white", "Noto", "Twemoji", "FxEmoji")
IN_COLOUR = tuple(style for style in STYLES if style != "black and white")
WITH_SKIN_TONES = ("3D", "glossy", "flat", "Noto", "Twemoji")
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

CONCEPTS = ("an owl", "a guitar", "a rocket", "a sunflower", "a grinning face", "a house", "a sailboat", "a fox")
PEOPLE = ("a waving hand", "a raised fist", "a woman farmer")
# Things that the data has in these colours.
COLOURED = (
    ("a heart", "red blue green yellow purple orange"),
    ("a circle", "red blue brown"),
    ("a book", "green blue orange"),
)

# Things of which no training picture is recoloured (data/recolour_split.py: KEPT_APART), each with the colours that its
# pictures and captions have in the data, or come near to; it is asked in others.
NEVER_IN = (
    ("an apple", "red pink green orange"), ("a banana", "yellow orange brown"), ("a frog", "green yellow orange"),
    ("an elephant", "purple blue"), ("a carrot", "orange green yellow red"), ("a fire engine", "red purple blue pink"),
    ("a pig", "pink red orange brown"), ("a cactus", "green"), ("a bear", "brown red orange yellow"),
    ("a fox", "orange pink yellow red"), ("an octopus", "pink red purple orange"), ("a crab", "pink red orange"),
    ("a turtle", "green blue"), ("a snake", "green blue brown"), ("a whale", "blue green purple"),
    ("a camel", "red brown orange yellow"), ("a lemon", "yellow green orange"), ("a pear", "yellow green orange"),
    ("a tomato", "pink green red orange"), ("a broccoli", "green blue"), ("an eggplant", "purple blue green"),
    ("a mushroom", "pink red yellow brown"), ("an umbrella", "purple blue pink"), ("a dress", "blue green purple"),
    ("a backpack", "red brown blue green"), ("a crown", "yellow orange brown"), ("a bell", "yellow orange brown"),
    ("a key", "yellow orange brown red"), ("a trumpet", "yellow orange brown"), ("a telephone", "pink red"),
    ("a balloon", "red pink"), ("a chair", "brown red orange yellow"), ("a bucket", "blue purple"),
    ("a taxi", "yellow purple blue orange"), ("a helicopter", "orange yellow blue red"),
    ("a motor scooter", "pink yellow red purple"), ("a rose", "red green pink"), ("an evergreen tree", "green"),
    ("a pretzel", "yellow orange brown"), ("a croissant", "yellow orange red brown"),
)  # fmt: skip
ASKED = ("blue", "red", "purple", "green", "pink", "yellow", "orange", "brown")
# People and hands with a style in which the training data has them in no skin tone, and in others in every one.
NEVER_TONED = (
    ("a cook", "Noto"), ("a teacher", "Noto"), ("a health worker", "flat"), ("a person raising hand", "3D"),
    ("a woman facepalming", "3D"), ("a man construction worker", "Twemoji"), ("a woman office worker", "Twemoji"),
    ("a man firefighter", "3D"), ("a man juggling", "3D"), ("a foot", "flat"), ("a woman mountain biking", "flat"),
    ("an old woman", "Noto"), ("a man golfing", "3D"), ("a woman gesturing NO", "flat"), ("a man standing", "Noto"),
    ("a backhand index pointing right", "3D"), ("a left-facing fist", "Noto"), ("a rightwards pushing hand", "Noto"),
    ("a person getting haircut", "Noto"), ("a person in manual wheelchair", "3D"),
)  # fmt: skip
WEARERS = ("a firefighter", "a dancer", "a cook", "a detective")
CLOTHES = (("a hat", "purple"), ("a coat", "green"), ("a scarf", "yellow"), ("a shirt", "pink"), ("a cape", "blue"))


def known() -> list[Prompt]:
    """The set "emoji": each of eight concepts in every style, then skin tones and colours, the styles in turn."""
    found = [_prompt("emoji", "concept", concept, style=style) for concept in CONCEPTS for style in STYLES]
    for shift, person in enumerate(PEOPLE):
        for number, tone in enumerate(SKIN_TONES):
            style = WITH_SKIN_TONES[(number + shift) % len(WITH_SKIN_TONES)]
            found.append(_prompt("emoji", "skin tone", person, skin_tone=tone, style=style))
    style = cycle(IN_COLOUR)
    for thing, colours in COLOURED:
        found += [_prompt("emoji", "colour", thing, colour=colour, style=next(style)) for colour in colours.split()]
    return found


def unseen() -> list[Prompt]:
    """The set "composition": what its data never shows together, of three kinds.

    Things in four colours that they never have (160), people and hands in a skin tone and a style that they never have
    together (40), people in clothes of a colour, in every tone (24).
    """
    found = []
    for n, (thing, never) in enumerate(NEVER_IN):
        free = [colour for colour in (*ASKED[n % 8 :], *ASKED[: n % 8]) if colour not in never.split()]
        for k, colour in enumerate(free[:4]):
            found.append(
                _prompt("composition", "colour", thing, colour=colour, style=IN_COLOUR[(4 * n + n // 3 + k) % 6])
            )
    for n, (person, style) in enumerate(NEVER_TONED):
        for tone in (SKIN_TONES[n % 5], SKIN_TONES[(n + 2) % 5]):
            found.append(_prompt("composition", "skin tone", person, skin_tone=tone, style=style))
    for n in range(24):
        # Each list goes round at its own pace, so that nobody always has the same tone, clothes or style.
        who, tone, clothes = WEARERS[n % 4], SKIN_TONES[n % 5], CLOTHES[(n + n // 5) % 5]
        style_of = IN_COLOUR[(n + n // 4) % 6]
        found.append(_prompt("composition", "clothes", who, skin_tone=tone, wears=clothes, style=style_of))
    return found


def _prompt(
    of: str,
    category: str,
    thing: str,
    *,
    style: str,
    colour: str | None = None,
    skin_tone: str | None = None,
    wears: tuple[str, str] | None = None,
) -> Prompt:
    article, noun = thing.split(" ", 1)
    words = f"{_article(colour)} {colour} {noun}" if colour else f"{article} {noun}"
    about = {"object": noun, "style": style}
    if skin_tone:
        words += f" with {skin_tone} skin tone"
        about["skin_tone"] = skin_tone
    if wears:
        garment, colour = wears
        words += f" in a {colour} {garment.split(' ', 1)[1]}"
        about["wears"] = garment.split(" ", 1)[1]
    if colour:
        about["colour"] = colour
    return Prompt(f"{words}, {style}", of, category, about)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
