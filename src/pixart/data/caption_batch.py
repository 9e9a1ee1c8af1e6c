"""One batch of pictures to the rows of their captions: the part that runs alike in one process and on many machines."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixart.captions.answers import one_line, refusal, split_opening
from pixart.captions.captioner import Caption, Captioner, Picture
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, Location, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

OPENINGS = ("strip", "flag")
LARGEST_SIDE = 2048  # pixels: more than any captioner looks at; a batch of 80-megapixel photos would fill the memory


@dataclass(frozen=True)
class Uncaptioned:
    """One picture as it comes out of a data set: its key, its file, its first caption, whatever else is known.

    `data` is the file's bytes or where they are; None for a captioner that does not look at pictures.
    """

    key: str
    data: bytes | Location | None
    caption: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


def caption_batch(captioner: Captioner, batch: Sequence[Uncaptioned], *, openings: str = "strip") -> list[dict]:
    """Every picture of `batch` becomes one row or more, in order; nothing is raised because of a picture.

    A row is {"key", "caption", ...}, where the caption is None if there is none: `rejected` is then "refusal" or
    "empty", with the `answer`, or "unreadable" or "failed", with the `error`. `row_settings` is in every row. A batch
    that fails is tried again one by one. With `openings` "strip", boilerplate such as "The image shows" is taken off
    the caption, with "flag" it stays; either way the row's `opening` names it. The rows depend on the arguments alone.
    """
    rows: dict[int, list[dict]] = {}
    pictures: dict[int, Picture] = {}
    about = row_settings(captioner.about(), openings)
    # Files are read in their order, which tables and shards want; decoders leave Python's lock alone.
    with ThreadPoolExecutor(min(8, len(batch) or 1)) as threads:
        opening = [threads.submit(_open, _read(item)) for item in batch]
    for position, (item, opened) in enumerate(zip(batch, opening, strict=True)):
        image = opened.result()
        if isinstance(image, Exception):
            rows[position] = [_lost(item.key, "unreadable", image, about)]
        else:
            pictures[position] = Picture(item.key, image, item.caption, item.facts)
    for position, answers in _answers(captioner, pictures).items():
        key = batch[position].key
        if isinstance(answers, Exception):
            rows[position] = [_lost(key, "failed", answers, about)]
        else:
            rows[position] = [_row(key, answer, len(answers), about) for answer in answers]
            if captioner.looks:
                rows[position] = [
                    _judged(row, answer, openings) for row, answer in zip(rows[position], answers, strict=True)
                ]
    return [row for position in range(len(batch)) for row in rows[position]]


def row_settings(about: dict[str, object], openings: str) -> dict[str, object]:
    """What every row says about how it was made; `about` comes from the captioner."""
    return about | ({} if openings == "strip" else {"openings": openings})


def _read(item: Uncaptioned) -> bytes | Exception | None:
    if item.data is None or isinstance(item.data, bytes):
        return item.data
    try:
        return read_bytes(item.data)
    except ImageProblem as error:
        return error


def _open(data: bytes | Exception | None) -> "Image | Exception | None":
    if not isinstance(data, bytes):
        return data
    try:
        image = open_image(data).image
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))  # only ever makes it smaller
        return image
    except Exception as error:  # decoders raise all kinds of things at a broken file
        return error


def _answers(captioner: Captioner, pictures: dict[int, Picture]) -> dict[int, list[Caption] | Exception]:
    if not pictures:
        return {}
    try:
        return dict(zip(pictures, captioner.caption(list(pictures.values())), strict=True))
    except Exception as error:
        if len(pictures) == 1:
            return dict.fromkeys(pictures, error)
    # Outside of `except`, so that what the failed try held (a GPU's memory) is free again.
    alone: dict[int, list[Caption] | Exception] = {}
    for position, picture in pictures.items():
        alone |= _answers(captioner, {position: picture})
    return alone


def _row(key: str, answer: Caption, count: int, about: dict[str, object]) -> dict:
    which = {"index": answer.index} if count > 1 else {}
    return {"key": key, "caption": one_line(answer.text)} | which | about


def _judged(row: dict, answer: Caption, openings: str) -> dict:
    """The row of a model's answer: is it a caption, and where does that begin?"""
    said = row["caption"]
    opening, rest = split_opening(said)
    if not any(character.isalnum() for character in rest):
        return row | {"caption": None, "rejected": "empty", "answer": said}
    if refusal(said) or refusal(rest):  # "Sure! I'm sorry, but I cannot ..."
        return row | {"caption": None, "rejected": "refusal", "answer": said}
    if opening:
        row["opening"] = opening
    if openings == "strip":
        row["caption"] = rest
    return row | {"cut": True} if answer.cut else row


def _lost(key: str, why: str, error: Exception, about: dict[str, object]) -> dict:
    said = one_line(str(error))[:300] or type(error).__name__
    return {"key": key, "caption": None, "rejected": why, "error": said} | about
