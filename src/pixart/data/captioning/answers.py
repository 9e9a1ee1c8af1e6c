"""What a vision-language model says instead of a caption, or before it: refusals and boilerplate openings."""

import re

# A refusal speaks of the model itself. At the start of an answer a few words are enough; further on, only the plain
# "as an AI" counts: a caption may well quote somebody who is sorry.
_REFUSAL = re.compile(
    r"""^\W*(?:
        (?:oh,\s*)?(?:i\s*(?:['’]m|\s+am)\s+(?:so\s+|very\s+|really\s+)?(?:sorry|afraid|unable|not\s+able)\b)
      | (?:sorry|apologies|my\s+apologies)\s*[,.!]
      | (?:sorry|unfortunately|regrettably)\s*,?\s+(?:but\s+)?i\b
      | i\s+(?:must\s+|do\s+)?apologi[sz]e\b
      | i\s+(?:can\s*(?:not|['’]t)|could\s*(?:not|n['’]t)|won['’]t|will\s+not|must\s+decline|do\s*(?:not|n['’]t))\s+
        (?:\w+\s+){0,2}?(?:help|assist|describe|identify|see|view|provide|process|comply|answer|fulfil|fulfill|analy[sz]e|
        have|recogni[sz]e|caption|comment|discuss)\b
      | i\s+see\s+no\s+(?:image|picture|photo)
      | as\s+an?\s+(?:ai|artificial\s+intelligence|(?:large\s+)?language\s+model)\b
      | (?:there\s+is\s+)?no\s+(?:image|picture|photo)\s+(?:was|is|has\s+been)?\s*(?:\w+\s+)?
        (?:provided|attached|available|given|included|uploaded|visible)\b
      | (?:please|could\s+you|can\s+you)\s+(?:\w+\s+)?(?:provide|upload|share|attach|send)\b
      | it\s+(?:seems|appears|looks)\s+(?:that\s+|like\s+)?(?:
            there\s+(?:is|was)\s+no\b | you\s+(?:have\s+)?(?:did|forgot|not)
          | (?:the|your)\s+image\s+(?:is|was|did)\s*(?:not\b|n['’]t\b))
    ) | \bas\s+an\s+ai\s+(?:language\s+)?(?:model|assistant)\b""",
    re.IGNORECASE | re.VERBOSE,
)

_IMAGE = r"(?:image|picture|photo(?:graph)?|photograph|scene|illustration|artwork|drawing|painting)"
_SHOWS = (
    r"(?:shows?|showing|depicts?|depicting|features?|featuring|displays?|captures?|presents?|portrays?|illustrates?|"
    r"showcases?|contains?|consists\s+of|includes?|is\s+of|provided\s+(?:shows?|is))"
)
_SEE = r"(?:(?:we|you|one|i)\s+(?:can\s+)?(?:clearly\s+)?(?:see|observe|find)|there\s+(?:is|are)|it\s+shows)"
# `(?:image|...)` alone keeps "The painting shows" out: there the word says what kind of image it is.
_PLAIN_IMAGE = r"(?:image|picture|photo(?:graph)?)"
_OPENING = re.compile(
    rf"""^\W*(?:
        (?:sure|certainly|of\s+course|absolutely|okay|ok)\b\s*[,.!:]\s*
      | (?:here\s*(?:['’]s|\s+is)|this\s+is|below\s+is|the\s+following\s+is)\s+
        (?:a|an|the|my|your)\s+(?:\w+[\s,-]+){{0,4}}?(?:description|caption)\b[^:.\n]{{0,60}}[:.]\s*
      | (?:the|this)\s+{_PLAIN_IMAGE}\s+(?:\w+ly\s+)?{_SHOWS}\s+
      | (?:the|this)\s+{_PLAIN_IMAGE}\s+is\s+(?=(?:an?|the)\s)
      | this\s+is\s+(?:an?|the)\s+{_PLAIN_IMAGE}\s+(?:of|showing|depicting|featuring)\s+
      | (?:an?|the)\s+{_PLAIN_IMAGE}\s+(?:of|showing|depicting|featuring)\s+
      | in\s+(?:the|this)\s+{_IMAGE}\s*,?\s+{_SEE}\s+
      | in\s+(?:the|this)\s+{_IMAGE}\s*,\s*
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def one_line(text: str) -> str:
    """The text without line breaks, doubled spaces and control characters."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())


def refusal(text: str) -> str | None:
    """The words by which an answer is known as a refusal, None if it is a caption."""
    found = _REFUSAL.search(text)
    return one_line(found[0]) if found else None


def split_opening(text: str) -> tuple[str, str]:
    """An answer as (boilerplate opening, the caption after it): 'The image shows ' and 'A red apple.'.

    The opening is empty where there is none, or where nothing would be left. Words that say what kind of image it is
    ("a painting of") are no boilerplate.
    """
    rest = text
    for _ in range(3):  # "Sure! Here is a description: The image shows a dog."
        found = _OPENING.match(rest)
        if not found or not rest[found.end() :].strip(" .,:"):
            break
        rest = rest[found.end() :]
    opening = text[: len(text) - len(rest)].strip()
    if not opening:
        return "", text
    rest = rest.lstrip(" ,:")
    return opening, rest[:1].upper() + rest[1:]
