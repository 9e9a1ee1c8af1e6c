"""The images of a data set by number, for tasks that train on pixels: any layout, in buckets, decoded when needed."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixart.buckets import MIN_KEPT, BucketTable, bucket_table, fit, kept_share, square_table
from pixart.data.dataset import ALLOWED, check_dropped, open_dataset
from pixart.data.pairs import ImageProblem, Pair, Problem, key_hash, printable, read_bytes
from pixart.errors import PixArtError
from pixart.images import open_image
from pixart.runtime.device import threads


class ImageRows:
    """All images of a data set that can be read, with their captions.

    Each is opened once, in the beginning, so that a damaged one is found before training. `sizes` (N, 2) height and
    width; `weights` (N,) how often each is trained on, relative to the others; `fingerprint` changes with any image or
    caption.
    """

    def __init__(
        self,
        path: Path,
        *,
        captions: bool = False,
        square: bool = False,
        allow_dropped: float = ALLOWED,
        say: Callable[[str], None] = lambda line: None,
    ):
        """With `captions`, images without one are left out; with `square`, all are cropped to one shape.

        Raises PixArtError where more than `allow_dropped` of the images cannot be used, or none is there.
        """
        self.path, self.square = path, square
        dataset = open_dataset(path)
        found = list(dataset.pairs())
        pairs = [pair for pair in found if isinstance(pair, Pair)]
        lost = [p for p in found if isinstance(p, Problem) and not p.kind.startswith("caption")]
        dropped = [f"{problem.key}: {problem.reason}" for problem in lost]
        say(f"opening {len(pairs):,} images of {path}")
        with ThreadPoolExecutor(threads()) as pool:
            looked = list(pool.map(lambda pair: _look(pair, captions, square), pairs))
        self.pairs: list[Pair] = []
        sizes, digest = [], hashlib.sha256()
        for pair, (size, detail) in zip(pairs, looked, strict=True):
            if size is None:
                dropped.append(f"{printable(pair.key)}: {detail}")
                continue
            self.pairs.append(pair)
            sizes.append(size)
            digest.update(json.dumps([pair.key, [c.text for c in pair.captions], detail]).encode() + b"\n")
        check_dropped(
            len(dropped),
            len(pairs) + len(lost),
            allowed=allow_dropped,
            examples=dropped,
            unknown=[f"{problem.key}: {problem.reason}" for problem in lost if problem.lost is None],
            flag="--TASK.allow-dropped",
        )
        self.sizes, self.fingerprint = np.array(sizes), digest.hexdigest()
        self.weights = np.array([pair.repeats for pair in self.pairs], dtype=np.float64)
        self._tables: dict[int, BucketTable] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def buckets(self, base_size: int) -> np.ndarray:
        """(N,) the bucket of each image at a base size in pixels."""
        return np.array([self._table(base_size).nearest(*size) for size in self.sizes.tolist()], dtype=np.int64)

    def split(self, validation: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and to validate on: `validation` of them, a tenth at most, chosen by their keys."""
        order = np.argsort(np.array([key_hash(pair.key) for pair in self.pairs]), kind="stable")
        count = min(validation, len(self) // 10)
        return np.sort(order[count:]), np.sort(order[:count])

    def read(self, rows: np.ndarray, base_size: int) -> Tensor:
        """Pixels of images of one bucket: uint8 (B, 3, H, W). PixArtError where one can no longer be read."""
        return torch.from_numpy(np.stack([self._pixels(self.pairs[row], base_size) for row in rows.tolist()]))

    def captions(self, rows: np.ndarray, chance: np.ndarray) -> list[str]:
        """One caption of each row, by a number from 0 to below 1 each."""
        texts = [[caption.text for caption in self.pairs[row].captions] for row in rows.tolist()]
        return [of_row[int(number * len(of_row))] for of_row, number in zip(texts, chance.tolist(), strict=True)]

    def keys(self, rows: np.ndarray) -> list[str]:
        return [self.pairs[row].key for row in rows.tolist()]

    def _pixels(self, pair: Pair, base_size: int) -> np.ndarray:
        try:
            image = open_image(read_bytes(pair.image)).image
        except ImageProblem as problem:
            raise PixArtError(f"{printable(pair.key)} of {self.path} could be read and now cannot: {problem}") from None
        return np.asarray(fit(image, self._table(base_size)).image).transpose(2, 0, 1)

    def _table(self, base_size: int) -> BucketTable:
        if base_size not in self._tables:
            self._tables[base_size] = square_table(base_size) if self.square else bucket_table(base_size)
        return self._tables[base_size]


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels -> fp32 in [-1, 1], the range of the autoencoder."""
    return pixels.float() / 127.5 - 1.0


def _look(pair: Pair, captions: bool, square: bool) -> tuple[tuple[int, int] | None, str]:
    """Height and width, and a hash of the file; or None and why the image is left out."""
    if captions and not pair.captions:
        return None, pair.caption_problem.reason if pair.caption_problem else "it has no caption."
    try:
        data = read_bytes(pair.image)
        image = open_image(data).image
    except ImageProblem as problem:
        return None, problem.reason
    table = bucket_table(256)
    if not square and kept_share(image.height, image.width, table.buckets[table.nearest(*image.size[::-1])]) < MIN_KEPT:
        return None, f"{image.width} x {image.height} pixels are too narrow for any bucket."
    return (image.height, image.width), hashlib.sha256(data).hexdigest()
