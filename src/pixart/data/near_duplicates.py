"""Finds pictures that are the same, or nearly, among the pictures of several icon sets."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

# Mean CIELAB distance, over the cells of a 16 x 16 thumbnail that either picture covers, under which two sets' pictures
# of one emoji count as the same drawing. About the smallest difference that a person notices (2.3), plus resampling.
NEAR = 3.0
# A cell is covered where it is this far from white: anti-aliased edges count, resampling noise does not.
COVERED = 2.0


def lab(thumbnails: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) uint8 sRGB -> (n, h, w, 3) float32 CIELAB, D65."""
    value = thumbnails.astype(np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], dtype=np.float32
    )
    xyz = xyz / np.array([0.9505, 1.0, 1.089], dtype=np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def distances(thumbnails: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) uint8 -> (n, n) mean CIELAB distance over the cells that either picture of a pair covers."""
    colours = lab(thumbnails)
    covered = np.linalg.norm(colours - np.array([100, 0, 0], dtype=np.float32), axis=-1) > COVERED
    either = covered[:, None] | covered[None]
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    return (apart * either).sum(axis=(2, 3)) / np.maximum(either.sum(axis=(2, 3)), 1)


def exact(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """(dropped, kept) index pairs: every later picture with a pixel hash seen before."""
    first: dict[str, int] = {}
    return [(i, first[value]) for i, value in enumerate(hashes) if first.setdefault(value, i) != i]


def near(
    thumbnails: np.ndarray, concepts: Sequence[str], styles: Sequence[str], threshold: float = NEAR
) -> list[tuple[int, int]]:
    """(dropped, kept) index pairs among pictures of the same concept in different styles; the earlier one is kept.

    `thumbnails` is (n, 16, 16, 3) uint8. Pictures of one style are never near duplicates: there, a small
    difference such as a skin tone or the hand of a clock is what the picture is about.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, concept in enumerate(concepts):
        members[concept].append(i)
    pairs = []
    for indices in members.values():
        distance = distances(thumbnails[indices])
        dropped: set[int] = set()
        for b in range(1, len(indices)):
            for a in range(b):
                same_style = styles[indices[a]] == styles[indices[b]]
                if a not in dropped and not same_style and distance[a, b] < threshold:
                    dropped.add(b)
                    pairs.append((indices[b], indices[a]))
                    break
    return pairs
