"""What a layout is: something found at a path that can be read as pairs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pixart.data.pairs import Pair, Problem, printable

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"))


@dataclass(frozen=True)
class Columns:
    """What the user said about a manifest: names of columns, and the folder that its paths start from."""

    image: str | None = None
    caption: str | None = None
    root: Path | None = None


@dataclass
class Notes:
    """Remarks of one pass over a data set, each said once; examples are kept for a few, the rest is counted."""

    lines: list[str] = field(default_factory=list)
    counts: dict[str, tuple[int, str]] = field(default_factory=dict)

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def count(self, what: str, example: str) -> None:
        number, first = self.counts.get(what, (0, example))
        self.counts[what] = (number + 1, min(first, example))

    def all(self) -> list[str]:
        counted = [f"{what}: {n:,}, such as {printable(first)}" for what, (n, first) in sorted(self.counts.items())]
        return [*self.lines, *counted]


class Layout(Protocol):
    """One way of laying out pictures and captions, found at a path.

    `name` is what `open_dataset(layout=...)` takes, `title` what people read. `roots` are the files and folders that
    the fingerprint covers.
    """

    name: str
    title: str
    roots: tuple[Path, ...]

    def read(self, notes: Notes) -> Iterator[Pair | Problem]: ...

    def count_hint(self) -> int | None: ...
