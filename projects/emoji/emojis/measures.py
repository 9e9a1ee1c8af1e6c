"""Metrics of images generated for validation captions, each with an interval.

Intervals come from resampling concepts, since images of one concept are alike. All metrics are sums over concepts or
pairs of concepts, so one resampling is a product with the concepts' counts and a thousand take a moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emojis.judge import Judge
from emojis.records import HELD_OUT
from emojis.reference import Reference, Seen
from pixart.errors import UsageError

CANDIDATES = 500  # captions among which an image's own is looked for
MEMORISED = 1 / 3  # of the distance to the nearest training image of another concept
FEWEST = 50  # images, under which an interval of such metrics means nothing
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval, from resampling concepts with replacement (bootstrap, percentiles)."""

    value: float
    low: float
    high: float


def counts(concepts: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, concepts): how often each concept comes when as many as there are, are chosen with replacement."""
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.multinomial(concepts, np.full(concepts, 1 / concepts), size=resamples).astype(float)


def mean(values: np.ndarray, concept: np.ndarray, *, resamples: int = RESAMPLES) -> Estimate:
    """The mean of `values` (N,), whose concepts are `concept` (N,) integers. NaN where there is no value."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    number, at = _numbered(concept)
    total, count = np.bincount(at, values, number), np.bincount(at, minlength=number)
    resampled = counts(number, resamples)
    return _estimate(values.mean(), resampled @ total / (resampled @ count))


def kernel_distance(
    made: np.ndarray,
    made_concept: np.ndarray,
    true: np.ndarray,
    true_concept: np.ndarray,
    true_weight: np.ndarray,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """1000 times the unbiased squared distance between two sets of features (maximum mean discrepancy).

    Gretton et al., JMLR 13 (2012), equation 3, with the cubic kernel (x y + 1)^3 of Binkowski et al. (arXiv
    1801.01401, section 4), for features of a length of about 1. It may be negative. Pairs of images of the same
    concept, which are not independent, are left out, within a set and between the sets.

    Args:
        made, true: (N, D) and (M, D); their concepts are integers on one scale, the weights are not negative.
    """
    number, at = _numbered(np.concatenate([made_concept, true_concept]))
    a, b = (made, at[: len(made)], np.ones(len(made))), (true, at[len(made) :], true_weight)
    parts = {"within made": (*a, *a), "within true": (*b, *b), "between": (*a, *b)}
    sums = {name: _by_concept(*part, number) for name, part in parts.items()}

    def distance(count: np.ndarray) -> np.ndarray:
        """(R,) for counts (R, concepts)."""
        means = {
            name: ((count @ total) * count).sum(axis=1) / ((count @ weight) * count).sum(axis=1)
            for name, (total, weight) in sums.items()
        }
        return 1000 * (means["within made"] + means["within true"] - 2 * means["between"])

    with np.errstate(invalid="ignore", divide="ignore"):
        return _estimate(distance(np.ones((1, number)))[0], distance(counts(number, resamples)))


def check_enough(count: int) -> None:
    """Raises UsageError where there are too few images for any interval."""
    if count < FEWEST:
        raise UsageError(
            f"An evaluation needs at least {FEWEST} images, not {count}: with fewer no interval means much."
        )


def scores(
    seen: Seen, rows: Sequence[int], judge: Judge, reference: Reference, *, resamples: int = RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """`{"all" | split: {metric: Estimate}}` of images: row k of `seen` is of row `rows[k]` of the reference.

    `retrieval_at_1` and `_at_10`: the chance that the own caption is first, or among the first ten, of 500 validation
    captions; `style_accuracy`; `colour_accuracy`: whether the leading colour is the true image's; `similarity_to_true`:
    the cosine in the judge's space; `kernel_distance_judge` and `_plain`, times 1000, lower is better;
    `memorised_share`: of images three times nearer to a training image than to any of another concept.
    """
    split = np.array([reference.rows[k].split for k in rows])
    all_splits = np.array([row.split for row in reference.rows])
    groups = {"all": np.ones(len(rows), bool)} | {name: split == name for name in HELD_OUT if (split == name).any()}
    each = per_image(seen, rows, judge, reference)
    concept = np.unique([row.base_concept for row in reference.rows], return_inverse=True)[1]
    features = {
        "kernel_distance_judge": (seen.vectors, reference.real.vectors),
        "kernel_distance_plain": tuple(
            (part.plain - reference.centre) / reference.spread for part in (seen, reference.real)
        ),
    }
    found: dict[str, dict[str, Estimate]] = {}
    for name, chosen in groups.items():
        found[name] = {}
        for metric, values in each.items():
            known = chosen & np.isfinite(values)
            found[name][metric] = mean(values[known], concept[rows][known], resamples=resamples)
        true = np.ones(len(all_splits), bool) if name == "all" else all_splits == name
        # Each split weighs among the true images what it weighs among the generated ones.
        weight = np.array([(split[chosen] == s).mean() / (all_splits[true] == s).sum() for s in all_splits[true]])
        for metric, (ours, theirs) in features.items():
            found[name][metric] = kernel_distance(
                ours[chosen], concept[rows][chosen], theirs[true], concept[true], weight, resamples=resamples
            )
    return found


def per_image(seen: Seen, rows: Sequence[int], judge: Judge, reference: Reference) -> dict[str, np.ndarray]:
    """The metrics that each image has by itself, (N,) each; NaN where there is none."""
    fits = seen.vectors @ judge.captions([row.caption for row in reference.rows]).T
    own = fits[np.arange(len(rows)), rows]
    better = (fits > own[:, None]).sum(axis=1)
    wanted = [reference.rows[k] for k in rows]
    colour = [
        float("nan") if row.colour is None else float(row.colour == found)
        for row, found in zip(wanted, seen.colours, strict=True)
    ]
    return {
        "retrieval_at_1": chance_of_first(better, len(reference.rows), 1),
        "retrieval_at_10": chance_of_first(better, len(reference.rows), 10),
        "style_accuracy": np.array([float(a == row.style) for a, row in zip(seen.styles, wanted, strict=True)]),
        "colour_accuracy": np.array(colour),
        "similarity_to_true": (seen.vectors * reference.real.vectors[rows]).sum(axis=1),
        "memorised_share": (nearness(seen.plain, reference) < MEMORISED).astype(float),
    }


def chance_of_first(better: np.ndarray, of: int, first: int, candidates: int = CANDIDATES) -> np.ndarray:
    """The chance that an answer is among the `first` best of `candidates`, the others chosen from `of - 1`.

    `better` (N,) is how many of those are better than it. It is hypergeometric: nothing is sampled, so without noise.
    """
    others, chosen = of - 1, min(candidates, of) - 1
    # chance[k] of choosing k of `b` better ones: C(b, k) C(others - b, chosen - k) / C(others, chosen)
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, others + 1)))])

    def log_choose(n: np.ndarray, k: np.ndarray | int) -> np.ndarray:
        possible = (k >= 0) & (k <= n)
        inside = np.where(possible, k, 0)
        return np.where(possible, log[n] - log[inside] - log[n - inside], -np.inf)

    ways = [log_choose(better, k) + log_choose(others - better, chosen - k) for k in range(min(first, chosen + 1))]
    return np.minimum(1.0, np.exp(np.array(ways) - log_choose(np.array(others), chosen)).sum(axis=0))


def nearness(features: np.ndarray, reference: Reference) -> np.ndarray:
    """Distance to the nearest training image as a share of that to the nearest of another concept, (N,), 0 to 1.

    After Yoon et al. (ICML 2023 workshop, "Diffusion Probabilistic Models Generalize when They Fail to Memorize"), who
    take the second nearest image. Here that is often the same artwork in another skin tone, and a copy would pass.
    """
    at = (features - reference.centre) @ reference.axes
    squares = (reference.train**2).sum(axis=1)
    found = np.empty(len(at))
    for k, one in enumerate(at):
        distance = np.maximum(squares - 2 * reference.train @ one + one @ one, 0)
        first = distance.argmin()
        second = distance[reference.train_concept != reference.train_concept[first]].min(initial=np.inf)
        found[k] = np.sqrt(distance[first] / second) if second > 0 else 0.0
    return found


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
