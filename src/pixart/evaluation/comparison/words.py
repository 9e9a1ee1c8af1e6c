"""What the parts of the page share: harmless text, and a colour for each model."""

from html import escape

from pixart.data.pairs import printable

COLOURS = 8  # of page.css


def text(value: str) -> str:
    """Any text as HTML on one line that is nothing but text."""
    return escape(printable(value))


def colour(index: int) -> str:
    """The style attribute of what belongs to the model of that number."""
    return f"--own:var(--m{index % COLOURS})"
