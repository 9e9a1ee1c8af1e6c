"""Exceptions for people: one clear sentence, never a traceback."""

from typing import Any

MAX_MESSAGE = 2000  # characters; what a message repeats of its input may be of any length


class PixArtError(Exception):
    """Something outside the command line is wrong: a missing file, a damaged model, a full disk. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        message = super().__str__()
        return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 505]} ... {message[-500:]}"


class UsageError(PixArtError):
    """What was asked cannot be done as asked: a bad size, an unknown style, a count of zero. Exit code 2."""

    exit_code = 2


def shown(value: Any, length: int = 80) -> str:
    """What somebody gave, as part of a sentence: one short line without control characters."""
    # What is nested may be too deep, and a number too long, to be printed.
    if isinstance(value, int) and value.bit_length() > 1000:
        value = f"(a number of {value.bit_length()} bits)"
    text = str(value)[: length + 1] if isinstance(value, str | int | float) else f"({type(value).__name__})"
    line = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)
    return line if len(line) <= length else line[:length] + " ..."


def reason_of(error: BaseException) -> str:
    """Why something failed, as a part of a sentence: the system's words, or the first line that says something."""
    text = str(getattr(error, "strerror", None) or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # torch begins with the name of the class, and goes on with each weight.
    return lines[1 if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else 0][:500].rstrip(".:")
