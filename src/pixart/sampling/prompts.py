"""What the text encoder is finally given: the user's words, put into a style's template where one is chosen."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pixart.errors import PixArtError, UsageError

MAX_CHARACTERS = 20_000
NO_STYLE = "No style"


@dataclass(frozen=True)
class Style:
    """A template with the hole `{prompt}`, and words to steer away from."""

    prompt: str
    negative_prompt: str = ""


def read_styles(styles: dict[str, Any], name: str) -> dict[str, Style]:
    """Check the content of a styles.json; raises PixArtError naming the file and the style that is wrong."""
    result = {}
    for key, value in styles.items():
        template = value.get("prompt") if isinstance(value, dict) else None
        negative = value.get("negative_prompt", "") if isinstance(value, dict) else None
        if not isinstance(template, str) or "{prompt}" not in template or not isinstance(negative, str):
            raise PixArtError(f'{name}: the style "{key}" needs a "prompt" text with {{prompt}} in it.')
        result[key] = Style(template, negative)
    return result


def apply_style(prompt: str, negative_prompt: str, style: Style | None) -> tuple[str, str]:
    """Fill the style's template; the style's own negative words come before the user's, set apart by a comma."""
    if style is None:
        return prompt, negative_prompt
    # Not str.format: a brace in the user's words must stay a brace.
    filled = style.prompt.replace("{prompt}", prompt.strip())
    negatives = [text.strip() for text in (style.negative_prompt, negative_prompt) if text.strip()]
    return (filled if prompt.strip() else filled.strip(" ,")), ", ".join(negatives)


def find_style(name: str | None, styles: dict[str, Style], listed: Iterable[str]) -> str | None:
    """The style's name as it is in `styles`; capitals do not matter. None and "No style" are none.

    An unknown name is answered with those that are `listed`.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise UsageError(unknown("style", repr(name), listed))
    if name.casefold() == NO_STYLE.casefold():
        return None
    by_folded = {key.casefold(): key for key in styles}
    if name.casefold() not in by_folded:
        raise UsageError(unknown("style", name, listed))
    return by_folded[name.casefold()]


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """One sentence for a name that is not on the list: the list, and the nearest name on it where one is near."""
    names = list(allowed)
    by_folded = {key.casefold(): key for key in names}
    near = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.4)
    hint = f' Did you mean "{by_folded[near[0]]}"?' if near else ""
    return f'There is no {kind} "{name}"; choose one of: {", ".join(names)}.{hint}'


def check_text(text: Any, what: str) -> None:
    """Raise UsageError for what no tokenizer can read."""
    if not isinstance(text, str):
        raise UsageError(f"The {what} must be a text, not {text!r}.")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"The {what} is {len(text):,} characters long; at most {MAX_CHARACTERS:,} are read.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"The {what} is not valid Unicode text (character {error.start + 1}).") from None
