"""One batch of images to the rows of their captions: the part that runs alike in one process and on many machines."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pixart.data.captioning.answers import one_line, refusal, split_opening
from pixart.data.captioning.captioner import Caption, Captioner, Item
from pixart.data.images import open_image
from pixart.data.pairs import Location, read_bytes

LARGEST_SIDE = 2048  # pixels: more than any captioner looks at; a batch of 80-megapixel photos would fill the memory


def caption_batch(
    captioner: Captioner, batch: Sequence[Item], read: Callable[[Location], bytes] = read_bytes
) -> list[dict]:
    """Every image of `batch` becomes one row or more, in order; nothing is raised because of an image.

    A row is {"key", "caption", ...}, where the caption is None if there is none: `rejected` is then "refusal" or
    "empty", with the `answer`, or "unreadable" or "failed", with the `error`. `captioner.about()` is in every row. A
    batch that fails is tried again one by one. Boilerplate such as "The image shows" is taken off the caption, and the
    row's `opening` names it. The rows depend on the arguments alone.
    """
    about = captioner.about()
    # Files are read in their order, which tables and shards want; decoders leave Python's lock alone.
    with ThreadPoolExecutor(min(8, len(batch) or 1)) as threads:
        opened = list(threads.map(_open, [_read(item, read) for item in batch]))
    images = {at: replace(batch[at], image=one) for at, one in enumerate(opened) if not isinstance(one, Exception)}
    found = _captions(captioner, images)
    rows = []
    for at, item in enumerate(batch):
        captions = found.get(at)
        if captions is None:
            rows.append(lost(item.key, "unreadable", opened[at], about))
        elif isinstance(captions, Exception):
            rows.append(lost(item.key, "failed", captions, about))
        else:
            rows += [_row(item.key, one, len(captions), captioner.looks) | about for one in captions]
    return rows


def lost(key: str, kind: str, error: object, about: dict[str, object]) -> dict:
    """The row of an image without an answer."""
    return {"key": key, "caption": None, "rejected": kind, "error": one_line(str(error))[:300] or repr(error)} | about


def _read(item: Item, read: Callable[[Location], bytes]) -> bytes | Exception | None:
    if item.data is None or isinstance(item.data, bytes):
        return item.data
    try:
        return read(item.data)
    except Exception as error:
        return error


def _open(data: bytes | Exception | None):
    if not isinstance(data, bytes):
        return data
    try:
        image = open_image(data).image
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))  # only ever makes it smaller
        return image
    except Exception as error:  # decoders raise all kinds of things at a broken file
        return error


def _captions(captioner: Captioner, items: dict[int, Item]) -> dict[int, list[Caption] | Exception]:
    if not items:
        return {}
    try:
        return dict(zip(items, captioner.caption(list(items.values())), strict=True))
    except Exception as error:
        if len(items) == 1:
            return dict.fromkeys(items, error)
    # Outside of `except`, so that what the failed try held (a GPU's memory) is free again.
    alone: dict[int, list[Caption] | Exception] = {}
    for at, item in items.items():
        alone |= _captions(captioner, {at: item})
    return alone


def _row(key: str, caption: Caption, count: int, of_a_model: bool) -> dict:
    """Is a model's answer a caption, and where does that begin?"""
    answer = one_line(caption.text)
    row: dict = {"key": key, "caption": answer} | ({"index": caption.index} if count > 1 else {})
    if not of_a_model:
        return row
    opening, row["caption"] = split_opening(answer)
    if not any(character.isalnum() for character in row["caption"]):
        return row | {"caption": None, "rejected": "empty", "answer": answer}
    if refusal(answer) or refusal(row["caption"]):  # "Sure! I'm sorry, but I cannot ..."
        return row | {"caption": None, "rejected": "refusal", "answer": answer}
    return row | ({"opening": opening} if opening else {}) | ({"cut": True} if caption.cut else {})
