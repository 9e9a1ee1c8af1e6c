"""Duplicates among any number of images: the same pixels by a hash, nearly the same ones by a perceptual hash.

Two hashes of 64 bits that differ in at most 4 bits agree in at least one of five bands of 12 or 13 bits, so only
images that share a band are compared; then their 4 x 4 copies must agree in colour too.
"""

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Of 700 images (icons, illustrations), each scaled to 70% and saved as JPEG with quality 70, 96% stayed within 4 bits;
# of different ones, none came so near.
MAX_BITS = 4
BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # (shift, bits), MAX_BITS + 1 of them
MAX_DIFFERENCE = 16  # of 255, in any colour channel of any cell of the 4 x 4 copies
MAX_COMPARED = 1024  # images of one band that are compared with each other; more are cut into such parts


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one image: a hash of its RGB pixels, a perceptual hash, and its 4 x 4 x 3 copy."""

    pixels: int
    look: int
    thumbnail: bytes


def fingerprint(image: "Image") -> Fingerprint:
    """The fingerprint of an RGB image."""
    from PIL import Image

    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=8)
    digest.update(image.tobytes())
    small = image.resize((32, 32), Image.Resampling.BOX)
    look = perceptual_hash(np.asarray(small.convert("L")))
    tiny = small.resize((4, 4), Image.Resampling.BOX)
    return Fingerprint(int.from_bytes(digest.digest(), "big"), look, tiny.tobytes())


def perceptual_hash(grey: np.ndarray) -> int:
    """(32, 32) grey levels -> 64 bits: which of the lowest cosines are above their median.

    Of the 8 x 8 lowest frequencies all but the mean, so that brightness does not matter. An image of one colour has 0.
    """
    n = np.arange(32)
    cosines = np.cos(np.pi * (2 * n[None] + 1) * n[:8, None] / 64)
    # Rounded, so that what is nothing but the rounding of floats counts as nothing.
    waves = (cosines @ grey.astype(np.float64) @ cosines.T).round(3).flatten()[1:]
    return int.from_bytes(np.packbits(np.append(waves > np.median(waves), False)).tobytes(), "big")


class Fingerprints:
    """Those of all images by their row, 72 bytes each."""

    def __init__(self) -> None:
        self.rows, self.pixels, self.looks, self.thumbnails = array("Q"), array("Q"), array("Q"), bytearray()

    def add(self, row: int, found: Fingerprint) -> None:
        """Rows rise from call to call."""
        self.rows.append(row)
        self.pixels.append(found.pixels)
        self.looks.append(found.look)
        self.thumbnails += found.thumbnail

    def duplicates(self) -> tuple[dict[int, int], dict[int, int]]:
        """For each duplicate and for each near duplicate its row and the row of the first image that it repeats.

        Images that a chain of small differences joins are one group.
        """
        rows = np.frombuffer(self.rows, np.uint64)
        _, first, of_image = np.unique(np.frombuffer(self.pixels, np.uint64), return_index=True, return_inverse=True)
        firsts = first[of_image]
        distinct = np.flatnonzero(firsts == np.arange(len(rows)))
        thumbnails = np.frombuffer(self.thumbnails, np.uint8).reshape(len(rows), 48).astype(np.int16)
        near = _groups(np.frombuffer(self.looks, np.uint64)[distinct], thumbnails[distinct])
        return _pairs(rows, firsts), _pairs(rows[distinct], near)


def _pairs(rows: np.ndarray, firsts: np.ndarray) -> dict[int, int]:
    later = np.flatnonzero(firsts != np.arange(len(rows)))
    return dict(zip(rows[later].tolist(), rows[firsts[later]].tolist(), strict=True))


def _groups(looks: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """(N,) hashes and (N, 48) copies -> (N,) for each image the first one of its group."""
    parent = np.arange(len(looks))
    for shift, bits in BANDS:
        band = (looks >> np.uint64(shift)) & np.uint64(2**bits - 1)
        order = np.lexsort((looks, band))
        for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(group) - 1, MAX_COMPARED):
                some = group[start : start + MAX_COMPARED]
                close = np.bitwise_count(looks[some, None] ^ looks[some]) <= MAX_BITS
                a, b = np.nonzero(np.triu(close, 1))
                alike = np.abs(thumbnails[some[a]] - thumbnails[some[b]]).max(axis=1, initial=0) <= MAX_DIFFERENCE
                for one, other in zip(some[a[alike]], some[b[alike]], strict=True):
                    one, other = _root(parent, one), _root(parent, other)
                    parent[max(one, other)] = min(one, other)
    return np.array([_root(parent, each) for each in range(len(parent))], dtype=np.int64)


def _root(parent: np.ndarray, image: int) -> int:
    while parent[image] != image:
        parent[image] = parent[parent[image]]
        image = parent[image]
    return image
