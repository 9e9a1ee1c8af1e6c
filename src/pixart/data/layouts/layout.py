"""What a layout is: something found at a path that can be read as pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixart.data.pairs import Pair, Problem, printable


@dataclass(frozen=True)
class Columns:
    """What was given about a manifest: names of columns, and the folder that its paths start from."""

    image: str | None = None
    caption: str | None = None
    root: Path | None = None


class Notes:
    """Remarks of one pass over a data set: how often each applies, and an example."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def count(self, what: str, example: str) -> None:
        number, first = self._counts.get(what, (0, example))
        self._counts[what] = (number + 1, min(first, example))

    def lines(self) -> list[str]:
        return [f"{what}: {n:,}, such as {printable(first)}" for what, (n, first) in sorted(self._counts.items())]


def unknown_count() -> int | None:
    return None


@dataclass(frozen=True)
class Layout:
    """One way of laying out images and captions, found at a path; it can be pickled.

    `name` is what `open_dataset(layout=...)` takes, `title` what people read. `count()` is about how many images there
    are, where that is cheap to find out.
    """

    name: str
    title: str
    read: Callable[[Notes], Iterator[Pair | Problem]]
    count: Callable[[], int | None] = unknown_count
