"""Scores as a table: for the terminal, and as Markdown for documents."""

from pixart.evaluation.score import Scores
from pixart.evaluation.statistics import Estimate

GROUPS = {
    "all": "all held-out captions",
    "test_cells": "known concepts, unseen style",
    "test_concepts": "unseen concepts",
}
# Name, words, share or number, whether higher is better.
FIGURES = (
    ("retrieval_at_1", "own caption first of 500", "share"),
    ("retrieval_at_10", "own caption in the first 10 of 500", "share"),
    ("style_accuracy", "style right", "share"),
    ("colour_accuracy", "leading colour right", "share"),
    ("similarity_to_true", "similarity to the true picture", "number"),
    ("kernel_distance_judge", "kernel distance x 1000, judge (lower is better)", "distance"),
    ("kernel_distance_plain", "kernel distance x 1000, plain (lower is better)", "distance"),
    ("memorised_share", "memorised", "share"),
)


def written(estimate: Estimate, kind: str) -> str:
    """As a person reads it, with its interval in brackets."""
    if estimate.value != estimate.value:
        return "-"
    if kind == "share":
        return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"
    digits = 2 if kind == "number" else 1
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def lines(
    columns: dict[str, Scores], groups: dict[str, str] = GROUPS, figures: tuple[tuple[str, str, str], ...] = FIGURES
) -> list[list[str]]:
    """Heading and rows of the table; one block of rows per group of captions."""
    found = [["", *columns]]
    for group in [group for group in groups if any(group in scores for scores in columns.values())]:
        found.append([groups[group].upper(), *("" for _ in columns)])
        for name, words, kind in figures:
            cells = [written(s[group][name], kind) if name in s.get(group, {}) else "-" for s in columns.values()]
            found.append([words, *cells])
    return found


def aligned(rows: list[list[str]]) -> str:
    """Cells of a column begin below each other."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def as_markdown(columns: dict[str, Scores]) -> str:
    """A table for a document."""
    head, *rows = lines(columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
