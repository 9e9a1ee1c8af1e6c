"""Figures with their uncertainty: resampling whole concepts, since pictures of one concept are alike.

Both figures here come as sums over concepts or pairs of concepts, so one resampling is a product with the concepts'
counts and a thousand take a moment.
"""

from dataclasses import dataclass

import numpy as np

from pixart.errors import UsageError

FEWEST = 50  # pictures, under which an interval of such figures says nothing
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval, from resampling concepts with replacement (bootstrap, percentiles)."""

    value: float
    low: float
    high: float


def counts(concepts: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, concepts): how often each concept is drawn when as many as there are, are drawn with replacement."""
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.multinomial(concepts, np.full(concepts, 1 / concepts), size=resamples).astype(float)


def mean(values: np.ndarray, concept: np.ndarray, *, resamples: int = RESAMPLES) -> Estimate:
    """The mean of `values` (N,), whose concepts are `concept` (N,) integers. NaN where there is no value."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    number, at = _numbered(concept)
    total, count = np.bincount(at, values, number), np.bincount(at, minlength=number)
    drawn = counts(number, resamples)
    return _estimate(values.mean(), drawn @ total / (drawn @ count))


def kernel_distance(
    drawn: np.ndarray,
    drawn_concept: np.ndarray,
    drawn_weight: np.ndarray,
    true: np.ndarray,
    true_concept: np.ndarray,
    true_weight: np.ndarray,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """1000 times the unbiased squared distance between two sets of features (maximum mean discrepancy).

    Gretton et al., JMLR 13 (2012), equation 3, with the cubic kernel (x y + 1)^3 of Binkowski et al. (arXiv
    1801.01401, section 4), for features of a length of about 1. It may be negative. Pairs of pictures of the same
    concept, which are not independent, are left out, within a set and between the sets.

    Args:
        drawn, true: (N, D) and (M, D); their concepts are integers on one scale, their weights are not negative.
    """
    number, at = _numbered(np.concatenate([drawn_concept, true_concept]))
    a, b = at[: len(drawn)], at[len(drawn) :]
    parts = {
        "within drawn": (drawn, a, drawn_weight, drawn, a, drawn_weight),
        "within true": (true, b, true_weight, true, b, true_weight),
        "between": (drawn, a, drawn_weight, true, b, true_weight),
    }
    sums = {name: _by_concept(*part, number) for name, part in parts.items()}

    def distance(count: np.ndarray) -> np.ndarray:
        """(R,) for counts (R, concepts)."""
        means = {
            name: ((count @ total) * count).sum(axis=1) / ((count @ weight) * count).sum(axis=1)
            for name, (total, weight) in sums.items()
        }
        return 1000 * (means["within drawn"] + means["within true"] - 2 * means["between"])

    with np.errstate(invalid="ignore", divide="ignore"):
        return _estimate(distance(np.ones((1, number)))[0], distance(counts(number, resamples)))


def check_enough(count: int, what: str) -> None:
    """Raises UsageError where there are too few pictures for any figure with an interval."""
    if count < FEWEST:
        raise UsageError(f"{what} needs at least {FEWEST} pictures, not {count}: with fewer the interval says nothing.")


def _by_concept(x, x_at, x_weight, y, y_at, y_weight, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of kernel times weights, and of weights, over the pairs of each two different concepts: (C, C) each."""
    kernel = (x.astype(np.float64) @ y.astype(np.float64).T + 1) ** 3
    left, right = np.zeros((number, len(x))), np.zeros((len(y), number))
    left[x_at, np.arange(len(x))] = x_weight
    right[np.arange(len(y)), y_at] = y_weight
    total, weight = left @ kernel @ right, np.outer(left.sum(axis=1), right.sum(axis=0))
    np.fill_diagonal(total, 0.0)
    np.fill_diagonal(weight, 0.0)
    return total, weight


def _numbered(concept: np.ndarray) -> tuple[int, np.ndarray]:
    names, at = np.unique(concept, return_inverse=True)
    return len(names), at


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    kept = resampled[np.isfinite(resampled)]
    low, high = np.percentile(kept, [2.5, 97.5]) if len(kept) else (float("nan"), float("nan"))
    return Estimate(float(value), float(low), float(high))
