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

# Things of one colour in the data, each with colours that no caption of it has.
NEVER_IN = (
    ("an apple", "blue purple teal"),
    ("a banana", "blue red purple"),
    ("a frog", "red purple pink"),
    ("an elephant", "green yellow red"),
    ("a carrot", "blue purple pink"),
    ("a fire engine", "green pink yellow"),
    ("a pig", "blue green yellow"),
    ("a cactus", "red blue pink"),
)
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
    """The set "composition": things in colours they never have, and people in clothes of a colour, in every tone."""
    style = cycle(IN_COLOUR)
    found = [
        _prompt("composition", "colour", thing, colour=colour, style=next(style))
        for thing, colours in NEVER_IN
        for colour in colours.split()
    ]
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
