"""Aspect buckets: the few shapes that images of any shape are trained and sampled in, about as many pixels each,
and how an image is brought into one.

The official tables (PixArt-alpha and PixArt-sigma, diffusion/data/datasets/utils.py; Diffusers' ASPECT_RATIO_*_BIN) and
tables computed for any base size. Ratio means height / width; sizes are (height, width) in pixels, as in those files.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixart.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

# Official key -> (height, width) at 1024 px; the tables of 256, 512 and 2048 px are these, scaled. Nearest is found by
# the key, which is not always exactly height / width, so the keys are kept as they are.
_OFFICIAL_1024 = (
    (0.25, 512, 2048), (0.26, 512, 1984), (0.27, 512, 1920), (0.28, 512, 1856),
    (0.32, 576, 1792), (0.33, 576, 1728), (0.35, 576, 1664), (0.4, 640, 1600),
    (0.42, 640, 1536), (0.48, 704, 1472), (0.5, 704, 1408), (0.52, 704, 1344),
    (0.57, 768, 1344), (0.6, 768, 1280), (0.68, 832, 1216), (0.72, 832, 1152),
    (0.78, 896, 1152), (0.82, 896, 1088), (0.88, 960, 1088), (0.94, 960, 1024),
    (1.0, 1024, 1024), (1.07, 1024, 960), (1.13, 1088, 960), (1.21, 1088, 896),
    (1.29, 1152, 896), (1.38, 1152, 832), (1.46, 1216, 832), (1.67, 1280, 768),
    (1.75, 1344, 768), (2.0, 1408, 704), (2.09, 1472, 704), (2.4, 1536, 640),
    (2.5, 1600, 640), (2.89, 1664, 576), (3.0, 1728, 576), (3.11, 1792, 576),
    (3.62, 1856, 512), (3.75, 1920, 512), (3.88, 1984, 512), (4.0, 2048, 512),
)  # fmt: skip
_NOT_SAMPLED = frozenset({0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88})  # trained, but not in the tables for sampling
OFFICIAL_SIZES = (256, 512, 1024, 2048)
# What a side must divide by: the VAE makes 8 pixels one latent cell, the patch embedding 2 cells one token.
STEP = 16
MAX_RATIO = 4.0
# An image of which its bucket keeps less than this share is not trained on: what its caption names is mostly gone.
MIN_KEPT = 0.5
CROPS = ("centre", "random", "clever")
_DETAIL_SIDE = 128  # px of the short side on which the clever crop looks for detail


@dataclass(frozen=True)
class Bucket:
    """One shape in pixels. `ratio` is what images are compared with, and the micro-condition aspect_ratio."""

    ratio: float
    height: int
    width: int


@dataclass(frozen=True)
class BucketTable:
    """Buckets by rising ratio."""

    base_size: int
    buckets: tuple[Bucket, ...]

    def nearest(self, height: int, width: int) -> int:
        """Index of the bucket whose ratio is nearest to height / width; of two equally near ones the lower ratio.

        The official rule, argmin |key - h / w|: InternalData_ms.py, and classify_height_width_bin in Diffusers.
        Raises UsageError for a side below 1.
        """
        if height < 1 or width < 1:
            raise UsageError(f"An image of {width} x {height} pixels has no aspect ratio.")
        ratio = height / width
        return min(range(len(self.buckets)), key=lambda i: abs(self.buckets[i].ratio - ratio))


def official_table(base_size: int, *, sampling: bool = False) -> BucketTable:
    """The official table of 256, 512, 1024 or 2048 px: 40 buckets for training.

    With `sampling`, what Diffusers' use_resolution_binning rounds to: 33 buckets, and at 2048 px all 40.
    Raises UsageError for another base size.
    """
    if base_size not in OFFICIAL_SIZES:
        sizes = ", ".join(str(size) for size in OFFICIAL_SIZES)
        raise UsageError(f"There is no official bucket table for {base_size} px, only for {sizes}.")
    kept = [row for row in _OFFICIAL_1024 if not sampling or base_size == 2048 or row[0] not in _NOT_SAMPLED]
    return BucketTable(base_size, tuple(Bucket(k, h * base_size // 1024, w * base_size // 1024) for k, h, w in kept))


def computed_table(base_size: int, *, step: int = STEP, max_ratio: float = MAX_RATIO) -> BucketTable:
    """A table for any base size: no bucket has more pixels than the square, and all sides are multiples of `step`.

    For each height that is a multiple of `step`, the widest bucket within base_size ** 2 pixels, and the same with the
    sides exchanged; ratios from 1 / max_ratio to max_ratio. Each bucket's ratio is exactly its height / width.
    Raises UsageError where no square of `base_size` can be made of `step`.
    """
    if step < 1 or base_size < step or base_size % step:
        raise UsageError(f"The base size of buckets must be a multiple of their step: {base_size} is none of {step}.")
    if not 1 <= max_ratio <= 100:
        raise UsageError(f"The largest aspect ratio of buckets must be from 1 to 100, not {max_ratio:g}.")
    shapes = set()
    for side in range(step, base_size + 1, step):
        other = base_size**2 // side // step * step
        if other <= max_ratio * side:
            shapes |= {(side, other), (other, side)}
    # Two shapes of one ratio (both squares, say) would be the same to `nearest`: the larger one stays.
    largest = {h / w: (h, w) for h, w in sorted(shapes)}
    return BucketTable(base_size, tuple(Bucket(ratio, *largest[ratio]) for ratio in sorted(largest)))


def square_table(base_size: int, *, step: int = STEP) -> BucketTable:
    """One bucket, the square: training at one shape, as stages 1 and 2 of the paper do."""
    return computed_table(base_size, step=step, max_ratio=1)


def bucket_table(base_size: int, *, step: int | None = None) -> BucketTable:
    """The official table where there is one and no step is asked for, else one computed for the base size."""
    if step is None and base_size in OFFICIAL_SIZES:
        return official_table(base_size)
    return computed_table(base_size, step=STEP if step is None else step)


def cover(height: int, width: int, bucket: Bucket) -> tuple[int, int]:
    """(height, width) of the smallest image of the same shape that covers the bucket: one side fits exactly."""
    if bucket.height * width >= bucket.width * height:
        return bucket.height, max(bucket.width, round(width * bucket.height / height))
    return max(bucket.height, round(height * bucket.width / width)), bucket.width


def kept_share(height: int, width: int, bucket: Bucket) -> float:
    """The share of the image's area that is still there after resizing to cover the bucket and cropping."""
    return min(bucket.height * width, bucket.width * height) / max(bucket.height * width, bucket.width * height)


@dataclass(frozen=True)
class Fitted:
    """An image in its bucket, with the micro-conditions that say what it was.

    `image` is RGB of the bucket's size. `original_size` (height, width) is the image's own, in pixels. `crop_corner`
    (top, left) is where the kept part begins in the image resized to cover the bucket, in pixels of that size.
    `aspect_ratio` is the bucket's ratio. Official micro-conditions: img_hw = original_size and aspect_ratio
    (diffusion/data/datasets/InternalData_ms.py).
    """

    image: "Image.Image"
    bucket: int
    original_size: tuple[int, int]
    crop_corner: tuple[int, int]
    aspect_ratio: float


def fit(image: "Image.Image", table: BucketTable, *, crop: str = "centre", seed: int = 0, name: str = "") -> Fitted:
    """Resize an RGB image to cover its nearest bucket (bicubic, as the official trainer) and crop the rest.

    crop: "centre"; "random", a place that follows from `seed` and `name` (the image's name in its data set) and nothing
    else; "clever", the part that holds the most detail, so that the cuts run where little happens. Pure: the same
    arguments give the same pixels. Raises UsageError for another crop.
    """
    from PIL import Image

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
        offset = _place(seed, name, room)
    else:
        offset = _most_detail(image, bucket, room, vertical=slack[0] > 0)
    corner = (offset, 0) if slack[0] else (0, offset)
    # Cropped and resized in one go, so that an image of 1 x 20,000 never becomes one of 128 x 2,560,000.
    down, across = height / covering[0], width / covering[1]
    left, top = corner[1] * across, corner[0] * down
    box = (left, top, min(left + bucket.width * across, width), min(top + bucket.height * down, height))
    fitted = image.resize((bucket.width, bucket.height), Image.Resampling.BICUBIC, box=box)
    return Fitted(fitted, index, (height, width), corner, bucket.ratio)


def _place(seed: int, name: str, room: int) -> int:
    """A whole number from 0 to room. A hash, not a generator: it will be the same with every version of numpy."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (room + 1)


def _most_detail(image: "Image.Image", bucket: Bucket, room: int, *, vertical: bool) -> int:
    """The offset of the window with the most detail: differences between neighbouring pixels of a small grey copy.

    Among equally good windows the one nearest to the centre is taken, so that an image without detail is cropped in
    its centre.
    """
    from PIL import Image

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
