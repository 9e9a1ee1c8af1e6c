"""The held-out split: whole concepts that training never sees, and single (concept, style) cells."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

SPLITS = ("train", "test_cells", "test_concepts")
# Two renderings of the same drawings: a held-out picture in one would be seen in the other, so they are held together.
TWINS = {"3D": "3D and glossy", "glossy": "3D and glossy"}


def assign(base_concepts: Sequence[str], styles: Sequence[str], seed: int) -> list[str]:
    """The split of each picture, from its base concept and its style.

    test_concepts: 2% of the base concepts, with all skin tones and styles. test_cells: 5% of the remaining
    (base concept, style) cells whose concept keeps a training cell in another style; all skin tones of a cell
    go together, and so do the cells of TWINS. train: the rest. The same pictures and seed give the same split,
    in whatever order they come.
    """
    draw = random.Random(seed)
    concepts = sorted(set(base_concepts))
    draw.shuffle(concepts)
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
    draw.shuffle(units)
    held: set[tuple[str, str]] = set()
    for concept, together in units:
        keeps_another = len(open_styles[concept]) > len(together)
        style_stays = all(concepts_of[style] > 1 for style in together)
        if keeps_another and style_stays and len(held) + len(together) <= wanted:
            open_styles[concept].difference_update(together)
            concepts_of.subtract(together)
            held.update((concept, style) for style in together)
    split = [
        "test_concepts" if concept in hidden else "test_cells" if (concept, style) in held else "train"
        for concept, style in zip(base_concepts, styles, strict=True)
    ]
    _check(split, base_concepts, styles)
    return split


def _check(split: Sequence[str], base_concepts: Sequence[str], styles: Sequence[str]) -> None:
    """Asserts what the split promises, so that a leak can never be written."""
    rows = list(zip(split, base_concepts, styles, strict=True))
    train_cells = {(c, s) for part, c, s in rows if part == "train"}
    train_concepts = {c for c, _ in train_cells}
    train_styles = {s for _, s in train_cells}
    for part, concept, style in rows:
        if part == "test_concepts":
            assert concept not in train_concepts, concept
        elif part == "test_cells":
            assert (concept, style) not in train_cells, (concept, style)
            assert concept in train_concepts and style in train_styles, (concept, style)
    hidden = {c for part, c, _ in rows if part == "test_concepts"}
    assert not hidden & {c for part, c, _ in rows if part == "test_cells"}
