"""Captions from what is known about a picture, behind the same interface as those of a model that looks at it."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pixart.captions.captioner import Caption, Picture
from pixart.errors import PixArtError, UsageError


@dataclass(frozen=True)
class MetadataCaptioner:
    """Captions that `write` makes of a picture's facts. `recipe` says in words how, and stands in every row."""

    source: str
    recipe: str
    write: Callable[[Mapping[str, object]], list[str]]
    looks: ClassVar[bool] = False

    def about(self) -> dict[str, object]:
        return {"source": self.source, "model": "metadata", "question": self.recipe}

    def caption(self, pictures: Sequence[Picture]) -> list[list[Caption]]:
        return [
            [Caption(text, index=index) for index, text in enumerate(self.write(picture.facts))] for picture in pictures
        ]


@dataclass(frozen=True)
class Template:
    """One caption, from a pattern with the names of facts in braces: "a photo of {label}". Raises UsageError if bad."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(self.pattern)]
        except ValueError as error:
            raise UsageError(f"The template {self.pattern!r} cannot be read: {error}.") from None
        names = [name for name, _, _ in fields if name is not None]
        plain = all(not spec and how is None for _, spec, how in fields) and all(
            name and not set(name) & set(".[]") for name in names
        )
        if not names or not plain:
            raise UsageError(
                f"The template {self.pattern!r} needs names of columns in plain braces, such as 'a photo of {{label}}'."
            )

    def __call__(self, facts: Mapping[str, object]) -> list[str]:
        """Raises PixArtError naming the fact that this picture lacks."""
        words: dict[str, str] = {}
        for _, name, _, _ in string.Formatter().parse(self.pattern):
            if name is None:
                continue
            value = facts.get(name)
            if value is None or value == "" or value == []:
                known = ", ".join(sorted(key for key, there in facts.items() if there not in (None, "", [])))
                raise PixArtError(f"it has no {name!r}" + (f", only {known}" if known else ""))
            words[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        return [self.pattern.format_map(words)]
