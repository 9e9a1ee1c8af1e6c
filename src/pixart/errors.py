"""The two ways in which `pixart` says no to a person: one clear sentence, never a traceback."""


class PixArtError(Exception):
    """Something outside the command line is wrong: a missing file, a damaged model, a full disk. Exit code 1."""

    exit_code = 1


class UsageError(PixArtError):
    """What was asked cannot be done as asked: a bad size, an unknown style, a count of zero. Exit code 2."""

    exit_code = 2
