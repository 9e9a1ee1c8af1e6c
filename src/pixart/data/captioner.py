"""What every captioner is: images in, captions out, in batches; the one that fills in a template; a batch to its rows.

Vision-language models may refuse, or begin with boilerplate: both are told from captions here."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from pixart.data.pairs import ORIGINAL, Location, Pair, read_bytes
from pixart.errors import PixArtError, UsageError
from pixart.images import open_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Item:
    """One image of a data set, by its key there, and all that a captioner may know of it.

    `data` is where its file is; `image` is RGB once it is read. Both are None for a captioner that does not look.
    `caption` is the original caption, where there is one; `facts` is whatever else the data set says.
    """

    key: str
    data: Location | None = None
    caption: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    image: "Image | None" = None


@dataclass(frozen=True)
class Caption:
    """One caption as the captioner gave it. `cut`: it reached its limit."""

    text: str
    cut: bool = False


class Captioner(Protocol):
    """Gives an image the same captions whatever stands beside it in the batch, up to rounding.

    `looks`: it needs `Item.image`, and its words are a model's, which may be a refusal. `batch_size` is how many images
    it takes at once. It is sent to other processes before `load`.
    """

    looks: bool
    batch_size: int

    def about(self) -> dict[str, object]:
        """What goes into every row beside the caption: at least `source`, `model` and `question`, and the settings."""
        ...

    def load(self) -> None:
        """Make ready. Raises PixArtError, with one sentence, where that fails."""
        ...

    def caption(self, items: Sequence[Item]) -> list[Caption]:
        """The caption of each image, in the order of the images. May raise anything; the caller retries."""
        ...


@dataclass(frozen=True)
class TemplateCaptioner:
    """One caption from a pattern with the names of facts in braces: "a photo of {label}". Raises UsageError if bad."""

    pattern: str
    source: str = "template"
    looks: ClassVar[bool] = False
    batch_size: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        try:
            fields = [each for each in string.Formatter().parse(self.pattern) if each[1] is not None]
        except ValueError as error:
            raise UsageError(f"The template {self.pattern!r} cannot be read: {error}.") from None
        if not fields or not all(name.isidentifier() and not spec and not how for _, name, spec, how in fields):
            raise UsageError(
                f"The template {self.pattern!r} needs names of columns in plain braces, such as 'a photo of {{label}}'."
            )

    def about(self) -> dict[str, object]:
        return {"source": self.source, "model": "metadata", "question": self.pattern}

    def load(self) -> None:
        pass

    def caption(self, items: Sequence[Item]) -> list[Caption]:
        """Raises PixArtError naming the fact that an image lacks."""
        return [Caption(self.pattern.format_map(_Facts(item.facts))) for item in items]


class _Facts(dict):
    """Facts as words; a list is joined by commas."""

    def __getitem__(self, name: str) -> str:
        there = {key: value for key, value in self.items() if value not in (None, "", [], ())}
        if name not in there:
            raise PixArtError(f"it has no {name!r}, only {', '.join(sorted(there)) or 'nothing'}")
        value = there[name]
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def item_of(pair: Pair, looks: bool = True) -> Item:
    """A pair as captioners take it. The hint is what the data set came with, never another captioner's words."""
    caption = next((each.text for each in pair.captions if each.source == ORIGINAL), None)
    facts = {**pair.extra, "label": pair.label, "caption": caption, "key": pair.key}
    return Item(pair.key, pair.image if looks else None, caption, facts)


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


LARGEST_SIDE = 2048  # pixels: more than any captioner looks at; a batch of 80-megapixel photos would fill the memory


def caption_batch(captioner: Captioner, batch: Sequence[Item]) -> list[dict]:
    """Every image of `batch` becomes a row, in order; nothing is raised because of an image.

    A row is {"key", "caption", ...}, where the caption is None if there is none: `rejected` is then "refusal" or
    "empty", with the `answer`, or "unreadable" or "failed", with the `error`. `captioner.about()` is in every row. A
    batch that fails is tried again one by one. Boilerplate such as "The image shows" is taken off the caption, and the
    row's `opening` names it. The rows depend on the arguments alone.
    """
    about = captioner.about()
    opened = [_open(item) for item in batch]
    both = zip(batch, opened, strict=True)
    readable = [replace(item, image=one) for item, one in both if not isinstance(one, Exception)]
    found = iter(_captions(captioner, readable))
    rows = []
    for item, one in zip(batch, opened, strict=True):
        if isinstance(one, Exception):
            rows.append(lost(item.key, "unreadable", one, about))
            continue
        caption = next(found)
        if isinstance(caption, Exception):
            rows.append(lost(item.key, "failed", caption, about))
        else:
            rows.append({"key": item.key} | _words(caption, captioner.looks) | about)
    return rows


def lost(key: str, kind: str, error: object, about: dict[str, object]) -> dict:
    """The row of an image without an answer."""
    return {"key": key, "caption": None, "rejected": kind, "error": one_line(str(error))[:300] or repr(error)} | about


def _open(item: Item) -> "Image | Exception | None":
    if item.data is None:
        return item.image
    try:
        image = open_image(read_bytes(item.data)).image
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))  # only ever makes it smaller
        return image
    except Exception as error:  # storage and decoders raise all kinds of things
        return error


def _captions(captioner: Captioner, items: Sequence[Item]) -> list[Caption | Exception]:
    try:
        return list(captioner.caption(items)) if items else []
    except Exception as error:
        if len(items) == 1:
            return [error]
    # Outside of `except`, so that what the failed try held (a GPU's memory) is free again.
    return [found for item in items for found in _captions(captioner, [item])]


def _words(caption: Caption, of_a_model: bool) -> dict:
    """Is a model's answer a caption, and where does that begin?"""
    answer = one_line(caption.text)
    if not of_a_model:
        return {"caption": answer}
    opening, words = split_opening(answer)
    if not any(character.isalnum() for character in words):
        return {"caption": None, "rejected": "empty", "answer": answer}
    if refusal(answer) or refusal(words):  # "Sure! I'm sorry, but I cannot ..."
        return {"caption": None, "rejected": "refusal", "answer": answer}
    return {"caption": words} | ({"opening": opening} if opening else {}) | ({"cut": True} if caption.cut else {})
