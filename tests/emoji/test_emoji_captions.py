"""Captions from names: do they read right, and does the stock pipeline leave them alone?"""

import numpy as np
import pytest

from emojis.captions import captions, phrase, plain, with_article
from emojis.colours import colour_fractions, named_colours

STYLES = ("3D", "glossy", "flat", "black and white", "Noto", "Twemoji", "FxEmoji")


@pytest.mark.parametrize(
    ("label", "tones", "said"),
    [
        ("red apple", (), "red apple"),
        ("teacher", ("medium",), "teacher with medium skin tone"),
        ("person: beard", ("dark",), "person with a beard and dark skin tone"),
        ("man: bald", ("light",), "bald man with light skin tone"),
        ("woman: red hair", (), "woman with red hair"),
        ("handshake", ("light", "medium-dark"), "handshake with light and medium-dark skin tones"),
        (
            "man with white cane: facing right",
            ("medium",),
            "man with white cane facing right, medium skin tone",
        ),
        ("kiss: man, man", (), "kiss of two men"),
        ("couple with heart: woman, man", (), "couple of a woman and a man with a heart"),
        ("family: man, woman, girl, boy", (), "family of a man, a woman, a girl and a boy"),
        ("family: woman, girl, girl", (), "family of a woman and two girls"),
        ("flag: France", (), "flag of France"),
        ("flag: Bosnia & Herzegovina", (), "flag of Bosnia and Herzegovina"),
        ("flag: U.S. Virgin Islands", (), "flag of the US Virgin Islands"),
        ("flag: St. Lucia", (), "flag of Saint Lucia"),
        ("flag: Myanmar (Burma)", (), "flag of Myanmar"),
        ("flag: Côte d’Ivoire", (), "flag of Côte d'Ivoire"),
        ("keycap: #", (), "keycap with a hash sign"),
        ("keycap: 10", (), "keycap with the number 10"),
        ("AB button (blood type)", (), "blood type AB button"),
        ("Japanese “free of charge” button", (), "Japanese free of charge button"),
        ("twelve o’clock", (), "clock showing twelve o'clock"),
        ("1st place medal", (), "first place medal"),
        ("ON! arrow", (), "ON arrow"),
        ("regional indicator B", (), "regional indicator letter B"),
    ],
)
def test_unicode_names_become_phrases(label, tones, said):
    assert phrase(label, tones) == said


@pytest.mark.parametrize(
    ("name", "group", "said"),
    [
        ("red apple", "food & drink", "a red apple"),
        ("owl", "animals & nature", "an owl"),
        ("unicorn", "animals & nature", "a unicorn"),
        ("ewe", "animals & nature", "a ewe"),
        ("hourglass done", "travel & places", "an hourglass done"),
        ("SOS button", "symbols", "an SOS button"),
        ("UP button", "symbols", "an UP button"),
        ("octopus", "animals & nature", "an octopus"),
        ("glasses", "objects", "glasses"),
        ("women with bunny ears", "people & body", "women with bunny ears"),
        ("person with white cane", "people & body", "a person with white cane"),
        ("hammer and wrench", "objects", "hammer and wrench"),
        ("cooked rice", "food & drink", "cooked rice"),
        ("Santa Claus", "people & body", "Santa Claus"),
        ("Virgo", "symbols", "Virgo"),
        ("flag of the Netherlands", "flags", "the flag of the Netherlands"),
        ("kiss of two men", "people & body", "a kiss of two men"),
        ("thumbs up", "people & body", "thumbs up"),
    ],
)
def test_articles(name, group, said):
    assert with_article(name, group) == said


def test_captions_go_from_the_short_form_to_a_dense_one():
    found = captions("pear", ["food", "fruit", "lol"], "food & drink", "fruit", "3D", ["green", "brown"])
    assert found == [
        "pear, 3D",
        "a pear, 3D",
        "3D picture of a pear",
        "pear, food, fruit, 3D",
        "a pear in 3D style",
        "a green and brown pear, 3D",
        "a 3D icon of a pear, green and brown, on a white background",
    ]


def test_no_colours_are_claimed_for_black_and_white_pictures():
    found = captions("owl", ["bird", "red"], "animals & nature", "birds", "black and white", ["black"])
    assert found[-1] == "a black and white icon of an owl on a white background"
    assert not any("mostly" in caption or "red" in caption for caption in found)


def test_a_name_without_article_or_keywords_still_has_five_captions():
    assert len(captions("right arrow curving left", [], "symbols", "arrows", "black and white", [])) == 5


def test_a_colour_is_not_put_before_a_name_that_has_one():
    found = captions("red apple", [], "food & drink", "fruit", "flat", ["red"])
    assert not any(caption.startswith("a red red") for caption in found)


AWKWARD = [
    "keycap: #", "keycap: *", "keycap: 5", "flag: U.S. Outlying Islands", "flag: Cocos (Keeling) Islands",
    "flag: Congo - Kinshasa", "flag: São Tomé & Príncipe", "flag: Åland Islands", "flag: Côte d’Ivoire",
    "O button (blood type)", "Japanese “not free of charge” button", "Mrs. Claus", "man’s shoe", "UP! button",
    "1st place medal", "pool 8 ball", "see-no-evil monkey", "piñata", "T-Rex", "jack-o-lantern", "A&B/C #12 [x] {y}",
    "flag: St. Barthélemy", "women’s room", "up-down arrow", "fleur-de-lis", "love-you gesture", "e-mail",
]  # fmt: skip


def cleaned_twice(caption: str) -> str:
    """What the stock pipeline makes of a prompt with its default clean_caption=True."""
    from diffusers import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)
    return pipeline._text_preprocessing(caption, clean_caption=True)[0]


def test_the_stock_pipeline_leaves_captions_of_awkward_names_alone():
    assert cleaned_twice("“A&B” (12) #7") != "“a&b” (12) #7"  # the cleaning is really on: bs4 and ftfy are there
    tags = ["don't", "10/10", "o’clock", "...", "<3", "A&W", "two-hump camel-like"]
    for label in AWKWARD:
        for tones in ((), ("medium-light", "medium-dark")):
            for style in STYLES:
                found = captions(phrase(label, tones), tags, "symbols", "light, film & video", style, ["red", "tan"])
                for caption in found:
                    assert cleaned_twice(caption) == caption.lower()


def test_plain_keeps_letters_and_drops_what_cleaning_rewrites():
    assert plain("cooked / prepared") == "cooked, prepared"
    assert plain("“Tom” & Jerry (1)  [x]") == "Tom and Jerry 1 x"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 40), "red"), ((255, 140, 0), "orange"), ((255, 204, 77), "yellow"), ((60, 160, 60), "green"),
        ((0, 150, 150), "teal"), ((30, 100, 230), "blue"), ((130, 60, 190), "purple"), ((255, 120, 190), "pink"),
        ((120, 70, 30), "brown"), ((222, 190, 150), "tan"), ((20, 20, 20), "black"), ((130, 130, 130), "grey"),
        ((250, 250, 250), "white"),
    ],
)  # fmt: skip
def test_every_colour_of_the_vocabulary_is_found(rgb, name):
    assert colour_fractions(np.array([rgb] * 4, dtype=np.uint8)) == {name: 1.0}


def test_small_shares_are_not_named():
    pixels = np.array([(220, 30, 40)] * 70 + [(60, 160, 60)] * 25 + [(20, 20, 20)] * 5, dtype=np.uint8)
    assert named_colours(colour_fractions(pixels)) == ["red", "green"]
    assert named_colours({}) == []
