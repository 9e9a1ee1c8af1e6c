"""The validation splits: concepts that training never sees at all, and single (concept, style) cells."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

# Two renderings of the same artwork: a validation image in one would be seen in the other, so they stay together.
TWINS = {"3D": "3D and glossy", "glossy": "3D and glossy"}


def assign(base_concepts: Sequence[str], styles: Sequence[str], seed: int) -> list[str]:
    """The split of each image, from its base concept and its style.

    test_concepts: 2% of the base concepts, with all skin tones and styles. test_cells: 5% of the remaining
    (base concept, style) cells whose concept keeps a training cell in another style; all skin tones of a cell
    go together, and so do the cells of TWINS. train: the rest. The same images and seed give the same split,
    in whatever order they come.
    """
    rng = random.Random(seed)
    concepts = sorted(set(base_concepts))
    rng.shuffle(concepts)
    hidden = set(concepts[: round(0.02 * len(concepts))])

    open_styles: dict[str, set[str]] = defaultdict(set)
    for concept, style in zip(base_concepts, styles, strict=True):
        if concept not in hidden:
            open_styles[concept].add(style)
    units = sorted(
        (c, tuple(sorted(t for t in of_concept if TWINS.get(t, t) == unit)))
        for c, of_concept in open_styles.items()
        for unit in sorted({TWINS.get(s, s) for s in of_concept})
    )
    wanted = round(0.05 * sum(len(of_concept) for of_concept in open_styles.values() if len(of_concept) > 1))
    concepts_of = Counter(style for of_concept in open_styles.values() for style in of_concept)
    rng.shuffle(units)
    cells: set[tuple[str, str]] = set()
    for concept, together in units:
        keeps_another = len(open_styles[concept]) > len(together)
        style_stays = all(concepts_of[style] > 1 for style in together)
        if keeps_another and style_stays and len(cells) + len(together) <= wanted:
            open_styles[concept].difference_update(together)
            concepts_of.subtract(together)
            cells.update((concept, style) for style in together)
    return [
        "test_concepts" if concept in hidden else "test_cells" if (concept, style) in cells else "train"
        for concept, style in zip(base_concepts, styles, strict=True)
    ]
