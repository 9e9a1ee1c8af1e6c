"""What every captioner is: images in, captions out, in batches; and the one that fills in a template."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from pixart.data.pairs import ORIGINAL, Location, Pair
from pixart.errors import PixArtError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Item:
    """One image of a data set, by its key there, and all that a captioner may know of it.

    `data` is where its file is; `image` is RGB once it is read. Both are None for a captioner that does not look.
    `caption` is the original caption, where there is one; `facts` is whatever else the data set says.
    """

    key: str
    data: Location | None = None
    caption: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    image: "Image | None" = None


@dataclass(frozen=True)
class Caption:
    """One caption as the captioner gave it. `cut`: it reached its limit."""

    text: str
    cut: bool = False


class Captioner(Protocol):
    """Gives an image the same captions whatever stands beside it in the batch, up to rounding.

    `looks`: it needs `Item.image`, and its words are a model's, which may be a refusal. `batch_size` is how many images
    it takes at once. It is sent to other processes before `load`.
    """

    looks: bool
    batch_size: int

    def about(self) -> dict[str, object]:
        """What goes into every row beside the caption: at least `source`, `model` and `question`, and the settings."""
        ...

    def load(self) -> None:
        """Make ready. Raises PixArtError, with one sentence, where that fails."""
        ...

    def caption(self, items: Sequence[Item]) -> list[Caption]:
        """The caption of each image, in the order of the images. May raise anything; the caller retries."""
        ...


@dataclass(frozen=True)
class TemplateCaptioner:
    """One caption from a pattern with the names of facts in braces: "a photo of {label}". Raises UsageError if bad."""

    pattern: str
    source: str = "template"
    looks: ClassVar[bool] = False
    batch_size: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        try:
            fields = [each for each in string.Formatter().parse(self.pattern) if each[1] is not None]
        except ValueError as error:
            raise UsageError(f"The template {self.pattern!r} cannot be read: {error}.") from None
        if not fields or not all(name.isidentifier() and not spec and not how for _, name, spec, how in fields):
            raise UsageError(
                f"The template {self.pattern!r} needs names of columns in plain braces, such as 'a photo of {{label}}'."
            )

    def about(self) -> dict[str, object]:
        return {"source": self.source, "model": "metadata", "question": self.pattern}

    def load(self) -> None:
        pass

    def caption(self, items: Sequence[Item]) -> list[Caption]:
        """Raises PixArtError naming the fact that an image lacks."""
        return [Caption(self.pattern.format_map(_Facts(item.facts))) for item in items]


class _Facts(dict):
    """Facts as words; a list is joined by commas."""

    def __getitem__(self, name: str) -> str:
        there = {key: value for key, value in self.items() if value not in (None, "", [], ())}
        if name not in there:
            raise PixArtError(f"it has no {name!r}, only {', '.join(sorted(there)) or 'nothing'}")
        value = there[name]
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def item_of(pair: Pair, looks: bool = True) -> Item:
    """A pair as captioners take it. The hint is what the data set came with, never another captioner's words."""
    caption = next((each.text for each in pair.captions if each.source == ORIGINAL), None)
    facts = {**pair.extra, "label": pair.label, "caption": caption, "key": pair.key}
    return Item(pair.key, pair.image if looks else None, caption, facts)
