"""One batch of images to the rows of their captions: the part that runs alike in one process and on many machines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pixart.data.captioning.answers import one_line, refusal, split_opening
from pixart.data.captioning.captioner import Caption, Captioner, Item
from pixart.data.images import open_image
from pixart.data.pairs import read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

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
