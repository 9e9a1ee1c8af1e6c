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

    `data` is its file, or where that is; `image` is RGB once it is read. Both are None for a captioner that does not
    look. `caption` is the original caption, where there is one; `facts` is whatever else the data set says.
    """

    key: str
    data: bytes | Location | None = None
    caption: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    image: "Image | None" = None


@dataclass(frozen=True)
class Caption:
    """One caption as the captioner gave it. `index` counts the captions of one image; `cut`: it reached its limit."""

    text: str
    index: int = 0
    cut: bool = False


class Captioner(Protocol):
    """Gives an image the same captions whatever stands beside it in the batch, up to rounding.

    `looks`: it needs `Item.image`, and its words are a model's, which may be a refusal. `batch_size` is how many images
    it takes at once, `per_image` how many captions it gives each. It is sent to other processes before `load`.
    """

    looks: bool
    batch_size: int
    per_image: int

    def about(self) -> dict[str, object]:
        """What goes into every row beside the caption: at least `source`, `model` and `question`, and the settings."""
        ...

    def load(self) -> None:
        """Make ready. Raises PixArtError, with one sentence, where that fails."""
        ...

    def caption(self, items: Sequence[Item]) -> list[list[Caption]]:
        """The captions of each image, in the order of the images. May raise anything; the caller retries."""
        ...


@dataclass(frozen=True)
class TemplateCaptioner:
    """One caption from a pattern with the names of facts in braces: "a photo of {label}". Raises UsageError if bad."""

    pattern: str
    source: str = "template"
    looks: ClassVar[bool] = False
    batch_size: ClassVar[int] = 1000
    per_image: ClassVar[int] = 1

    def __post_init__(self) -> None:
        try:
            fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(self.pattern)]
        except ValueError as error:
            raise UsageError(f"The template {self.pattern!r} cannot be read: {error}.") from None
        names = [name for name, _, _ in fields if name is not None]
        if not names or any(spec or how for _, spec, how in fields) or not all(map(str.isidentifier, names)):
            raise UsageError(
                f"The template {self.pattern!r} needs names of columns in plain braces, such as 'a photo of {{label}}'."
            )

    def about(self) -> dict[str, object]:
        return {"source": self.source, "model": "metadata", "question": self.pattern}

    def load(self) -> None:
        pass

    def caption(self, items: Sequence[Item]) -> list[list[Caption]]:
        """Raises PixArtError naming the fact that an image lacks."""
        return [[Caption(self.pattern.format_map(_Facts(item.facts)))] for item in items]


class _Facts(dict):
    """Facts as words; a list is joined by commas."""

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value in (None, "", [], ()):
            known = ", ".join(sorted(key for key, there in self.items() if there not in (None, "", [], ())))
            raise PixArtError(f"it has no {name!r}" + (f", only {known}" if known else ""))
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def item_of(pair: Pair, looks: bool = True) -> Item:
    """A pair as captioners take it. The hint is what the data set came with, never another captioner's words."""
    known = [caption.text for caption in pair.captions if caption.source == ORIGINAL]
    caption = known[0] if known else None
    facts = {**pair.extra, "label": pair.label, "caption": caption, "key": pair.key}
    return Item(pair.key, pair.image if looks else None, caption, facts)
