"""Finds images that are the same, or nearly, among the images of several icon sets."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from emojis.colours import cielab

# Mean CIELAB distance, over the cells of a 16 x 16 thumbnail that either image covers, under which two sets' images
# of one emoji count as the same artwork. About the smallest difference that a person notices (2.3), plus resampling.
NEAR = 3.0
# A cell is covered where it is this far from white: anti-aliased edges count, resampling noise does not.
COVERED = 2.0


def distances(thumbnails: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) uint8 -> (n, n) mean CIELAB distance over the cells that either image of a pair covers."""
    colours = cielab(thumbnails)
    covered = np.linalg.norm(colours - np.array([100.0, 0, 0]), axis=-1) > COVERED
    either = covered[:, None] | covered[None]
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    return (apart * either).sum(axis=(2, 3)) / np.maximum(either.sum(axis=(2, 3)), 1)


def exact(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """(dropped, kept) index pairs: every later image with a pixel hash seen before."""
    first: dict[str, int] = {}
    return [(i, first[value]) for i, value in enumerate(hashes) if first.setdefault(value, i) != i]


def near(thumbnails: np.ndarray, concepts: Sequence[str], styles: Sequence[str]) -> list[tuple[int, int]]:
    """(dropped, kept) index pairs among images of the same concept in different styles; the earlier one is kept.

    `thumbnails` is (n, 16, 16, 3) uint8. Images of one style are never near duplicates: there, a small
    difference such as a skin tone or the hand of a clock is what the image is about.
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
                if a not in dropped and not same_style and distance[a, b] < NEAR:
                    dropped.add(b)
                    pairs.append((indices[b], indices[a]))
                    break
    return pairs
