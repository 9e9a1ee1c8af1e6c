"""How good drawings of held-out captions are, by a judge that is not the model and by features that nobody trained."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pixart.errors import UsageError
from pixart.evaluation.judge import OpenedJudge, open_judge
from pixart.evaluation.reference import HELD_OUT, HeldOut, Look, Reference, look, open_reference
from pixart.evaluation.statistics import RESAMPLES, Estimate, check_enough, kernel_distance, mean

CANDIDATES = 500  # captions among which a picture's own is looked for
MEMORISED = 1 / 3  # of the distance to the nearest training picture of another concept
Scores = dict[str, dict[str, Estimate]]


def score(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    judge: OpenedJudge | None = None,
    reference: Reference | None = None,
    resamples: int = RESAMPLES,
) -> Scores:
    """Judge pictures that were drawn for held-out captions; `{"all" | split: {name: Estimate}}`.

    Args:
        pictures: RGB, of any size.
        captions: one for each picture: short captions of the held-out splits (`Reference.rows`).
        judge, reference: those in the package if left out.

    The figures: `retrieval_at_1` and `_at_10`, the chance that the own caption is first, or among the first ten, of 500
    held-out captions; `style_accuracy`; `colour_accuracy`, whether the leading colour is the true picture's;
    `similarity_to_true`, the cosine in the judge's space; `kernel_distance_judge` and `_plain`, times 1000, lower is
    better; `memorised_share`, of drawings three times nearer to a training picture than to any of another concept.

    Raises:
        UsageError: a caption is none of the held-out ones, or there are too few pictures.
    """
    reference = reference or open_reference()
    judge = judge or open_judge()
    rows = rows_of(captions, reference)
    check_enough(len(pictures), "A judgement")
    return scores(look(pictures, judge), rows, judge, reference, resamples=resamples)


def rows_of(captions: Sequence[str], reference: Reference) -> list[int]:
    """The rows of the reference with these captions. Raises UsageError for a caption that is not held out."""
    at = {row.caption: k for k, row in enumerate(reference.rows)}
    strange = next((caption for caption in captions if caption not in at), None)
    if strange is not None:
        raise UsageError(f'"{strange}" is not a held-out caption; the judge has no true picture to compare it with.')
    return [at[caption] for caption in captions]


def scores(
    seen: Look, rows: Sequence[int], judge: OpenedJudge, reference: Reference, *, resamples: int = RESAMPLES
) -> Scores:
    """As `score`, of what was seen of the pictures: row k of `seen` was drawn for row `rows[k]` of the reference."""
    split = np.array([reference.rows[k].split for k in rows])
    groups = {"all": np.ones(len(rows), bool)} | {name: split == name for name in HELD_OUT if (split == name).any()}
    captions = judge.captions([row.caption for row in reference.rows])
    each = per_picture(seen, rows, captions, reference)
    concept = _concepts(reference.rows)
    found: Scores = {}
    for name, chosen in groups.items():
        found[name] = {}
        for figure, values in each.items():
            known = chosen & np.isfinite(values)
            found[name][figure] = mean(values[known], concept[rows][known], resamples=resamples)
        held = np.array([name in ("all", row.split) for row in reference.rows])
        for figure, drawn, true in _feature_sets(seen, reference):
            found[name][figure] = kernel_distance(
                drawn[chosen],
                concept[rows][chosen],
                np.ones(chosen.sum()),
                true[held],
                concept[held],
                _as_drawn(split[chosen], reference.rows, held),
                resamples=resamples,
            )
    return found


def per_picture(seen: Look, rows: Sequence[int], captions: np.ndarray, reference: Reference) -> dict[str, np.ndarray]:
    """The figures that each picture has by itself, (N,) each; NaN where there is none. `captions` are all (R, D)."""
    fits = seen.vectors @ captions.T
    own = fits[np.arange(len(rows)), rows]
    better = (fits > own[:, None]).sum(axis=1)
    asked = [reference.rows[k] for k in rows]
    colour = [
        float("nan") if row.colour is None else float(row.colour == drawn)
        for row, drawn in zip(asked, seen.colours, strict=True)
    ]
    return {
        "retrieval_at_1": chance_of_first(better, len(reference.rows), 1),
        "retrieval_at_10": chance_of_first(better, len(reference.rows), 10),
        "style_accuracy": np.array([float(a == row.style) for a, row in zip(seen.styles, asked, strict=True)]),
        "colour_accuracy": np.array(colour),
        "similarity_to_true": (seen.vectors * reference.real.vectors[rows]).sum(axis=1),
        "memorised_share": (nearness(seen.plain, reference) < MEMORISED).astype(float),
    }


def chance_of_first(better: np.ndarray, of: int, first: int, candidates: int = CANDIDATES) -> np.ndarray:
    """The chance that an answer is among the `first` best of `candidates`, the others drawn from `of - 1`.

    `better` (N,) is how many of those are better than it. It is hypergeometric: no draw, so no noise of a draw.
    """
    others, drawn = of - 1, min(candidates, of) - 1
    # chance[k] of drawing k of `b` better ones: C(b, k) C(others - b, drawn - k) / C(others, drawn)
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, others + 1)))])

    def log_choose(n: np.ndarray, k: np.ndarray | int) -> np.ndarray:
        possible = (k >= 0) & (k <= n)
        inside = np.where(possible, k, 0)
        return np.where(possible, log[n] - log[inside] - log[n - inside], -np.inf)

    ways = [log_choose(better, k) + log_choose(others - better, drawn - k) for k in range(min(first, drawn + 1))]
    return np.minimum(1.0, np.exp(np.array(ways) - log_choose(np.array(others), drawn)).sum(axis=0))


def nearness(features: np.ndarray, reference: Reference) -> np.ndarray:
    """Distance to the nearest training picture as a share of that to the nearest of another concept, (N,), 0 to 1.

    After Yoon et al. (ICML 2023 workshop, "Diffusion Probabilistic Models Generalize when They Fail to Memorize"), who
    take the second nearest picture. Here that is often the same drawing in another skin tone, and a copy would pass.
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


def _feature_sets(seen: Look, reference: Reference):
    """Name, drawn and true features of about length 1, for the kernel distances."""
    yield "kernel_distance_judge", seen.vectors, reference.real.vectors
    plain = [(features - reference.centre) / reference.spread for features in (seen.plain, reference.real.plain)]
    yield "kernel_distance_plain", *plain


def _concepts(rows: Sequence[HeldOut]) -> np.ndarray:
    return np.unique([row.base_concept for row in rows], return_inverse=True)[1]


def _as_drawn(split: np.ndarray, rows: Sequence[HeldOut], held: np.ndarray) -> np.ndarray:
    """Weights of the true pictures `held`, such that each split weighs what it weighs among the drawn."""
    true = np.array([row.split for row in rows])[held]
    return np.array([(split == name).mean() / (true == name).sum() for name in true])
