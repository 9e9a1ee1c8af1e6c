"""The text that the encoder reads: the user's words, put into a style's template where one is chosen."""

from typing import Any

from pixart.checkpoints.styles import Style
from pixart.config import shortened, unknown
from pixart.errors import UsageError

MAX_CHARACTERS = 20_000
NO_STYLE = "No style"


def apply_style(prompt: str, negative_prompt: str, style: Style | None) -> tuple[str, str]:
    """Fill the style's template; the style's own negative words come before the user's, set apart by a comma."""
    if style is None:
        return prompt, negative_prompt
    # Not str.format: a brace in the user's words must stay a brace.
    filled = style.prompt.replace("{prompt}", prompt.strip())
    negatives = [text.strip() for text in (style.negative_prompt, negative_prompt) if text.strip()]
    return (filled if prompt.strip() else filled.strip(" ,")), ", ".join(negatives)


def find_style(name: str | None, styles: dict[str, Style]) -> str | None:
    """The style's name as it is in `styles`; capitals do not matter. None and "No style" are none.

    Raises:
        UsageError: there is no such style; names all that there are.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise UsageError(unknown("style", repr(name), styles))
    if name.casefold() == NO_STYLE.casefold():
        return None
    by_folded = {key.casefold(): key for key in styles}
    if name.casefold() not in by_folded:
        raise UsageError(unknown("style", name, styles))
    return by_folded[name.casefold()]


def check_text(text: Any, what: str, most: int = MAX_CHARACTERS) -> None:
    """Raise UsageError for what no tokenizer can read."""
    if not isinstance(text, str):
        raise UsageError(f"The {what} must be a text, not {shortened(text)}.")
    if len(text) > most:
        raise UsageError(f"The {what} is {len(text):,} characters long; at most {most:,} are read.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"The {what} is not valid Unicode text (character {error.start + 1}).") from None
