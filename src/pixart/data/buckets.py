"""Bringing a picture into its bucket: resized to cover it, then cropped, by rules that always give the same pixels."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixart.buckets import Bucket, BucketTable, cover
from pixart.errors import UsageError

CROPS = ("centre", "random", "clever")
_DETAIL_SIDE = 128  # px of the short side on which the clever crop looks for detail


@dataclass(frozen=True)
class Fitted:
    """A picture in its bucket, with the micro-conditions that say what it was.

    `image` is RGB of the bucket's size. `original_size` (height, width) is the picture's own, in pixels. `crop_corner`
    (top, left) is where the image begins in the picture resized to cover the bucket, in pixels of that size.
    `aspect_ratio` is the bucket's ratio. Official micro-conditions: img_hw = original_size and aspect_ratio
    (diffusion/data/datasets/InternalData_ms.py).
    """

    image: Image.Image
    bucket: int
    original_size: tuple[int, int]
    crop_corner: tuple[int, int]
    aspect_ratio: float


def fit(image: Image.Image, table: BucketTable, *, crop: str = "centre", seed: int = 0, name: str = "") -> Fitted:
    """Resize an RGB picture to cover its nearest bucket (bicubic, as the official trainer) and crop the rest.

    crop: "centre"; "random", a place drawn from `seed` and `name` (the picture's name in its data set) and nothing
    else; "clever", the part that holds the most detail, so that the cuts run where little happens. Pure: the same
    arguments give the same pixels. Raises UsageError for another crop.
    """
    if crop not in CROPS:
        raise UsageError(f"There is no crop {crop!r}; choose from {', '.join(CROPS)}.")
    height, width = image.height, image.width
    index = table.nearest(height, width)
    bucket = table.buckets[index]
    covering = cover(height, width, bucket)
    slack = covering[0] - bucket.height, covering[1] - bucket.width  # one of the two is 0
    room = max(slack)
    if room == 0:
        offset = 0
    elif crop == "centre":
        offset = room // 2
    elif crop == "random":
        offset = _drawn(seed, name, room)
    else:
        offset = _most_detail(image, bucket, room, vertical=slack[0] > 0)
    corner = (offset, 0) if slack[0] else (0, offset)
    # Cropped and resized in one go, so that a picture of 1 x 20,000 never becomes one of 128 x 2,560,000.
    down, across = height / covering[0], width / covering[1]
    left, top = corner[1] * across, corner[0] * down
    box = (left, top, min(left + bucket.width * across, width), min(top + bucket.height * down, height))
    fitted = image.resize((bucket.width, bucket.height), Image.Resampling.BICUBIC, box=box)
    return Fitted(fitted, index, (height, width), corner, bucket.ratio)


def _drawn(seed: int, name: str, room: int) -> int:
    """A whole number from 0 to room. A hash, not a generator: it will be the same with every version of numpy."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (room + 1)


def _most_detail(image: Image.Image, bucket: Bucket, room: int, *, vertical: bool) -> int:
    """The offset of the window with the most detail: differences between neighbouring pixels of a small grey copy.

    Among equally good windows the one nearest to the centre is taken, so that a picture without detail is cropped in
    its centre.
    """
    long, short = (image.height, image.width) if vertical else (image.width, image.height)
    share = (bucket.height / (bucket.height + room)) if vertical else (bucket.width / (bucket.width + room))
    length = max(2, min(long, round(_DETAIL_SIDE * long / short), 4096))
    side = min(short, _DETAIL_SIDE)
    small = image.resize((side, length) if vertical else (length, side), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.int64)
    lines = grey if vertical else grey.T  # (length, side)
    detail = np.zeros(length, dtype=np.int64)
    detail[:-1] += np.abs(np.diff(lines, axis=0)).sum(axis=1)
    detail += np.abs(np.diff(lines, axis=1)).sum(axis=1)
    window = max(1, min(length, round(share * length)))
    sums = np.convolve(detail, np.ones(window, dtype=np.int64), mode="valid")
    best = np.flatnonzero(sums == sums.max())
    start = int(best[np.argmin(np.abs(2 * best - (length - window)))])
    if len(sums) == 1 or 2 * start == length - window:
        return room // 2
    return min(room, round(room * start / (length - window)))
