"""What every captioner is: pictures in, captions out, in batches.

There are two: `VisionLanguageCaptioner` looks at the pictures, `MetadataCaptioner` writes from what is known of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """What a captioner gets to know of one picture.

    `key` names it in its data set. `image` is RGB, None for a captioner that does not look. `caption` is the original
    caption, where there is one; `facts` is whatever else the data set says about it.
    """

    key: str
    image: "Image | None" = None
    caption: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Caption:
    """One caption as the captioner said it. `index` counts the captions of one picture; `cut`: it met its limit."""

    text: str
    index: int = 0
    cut: bool = False


class Captioner(Protocol):
    """A captioner says the same of a picture whatever stands beside it in the batch, up to rounding.

    `looks` is whether it needs `Picture.image`, and so whether its words are a model's: those may be a refusal.
    """

    looks: bool

    def about(self) -> dict[str, object]:
        """What goes into every row beside the caption: at least `source`, `model` and `question`, and the settings."""
        ...

    def caption(self, pictures: Sequence[Picture]) -> list[list[Caption]]:
        """The captions of each picture, in the order of the pictures. May raise anything; the caller retries."""
        ...
