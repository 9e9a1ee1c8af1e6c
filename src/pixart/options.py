"""Options on the command line, the same way for every command: how help shows them, and how they are read."""

from collections.abc import Callable

from tyro.conf import FlagCreatePairsOff, PositionalRequiredArgs, arg

from pixart.errors import UsageError


def shown(metavar: str, default: str):
    """How help shows an option whose default is found out later."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def either(on: bool, off: bool, name: str) -> bool | None:
    """What the flags --NAME and --no-NAME together say; None if neither was given."""
    if on and off:
        raise UsageError(f"--{name} and --no-{name} exclude each other; give one of them.")
    return True if on else False if off else None


def parsed(kind: type, arguments: list[str], command: str, act: Callable[..., int]) -> int:
    """Read the arguments of a command into the dataclass `kind` and act on it; returns the exit code.

    tyro prints help, or what is wrong with a flag, itself; then nothing is done. `command` is how help calls it, such
    as "pixart generate".
    """
    import tyro

    try:
        options = tyro.cli(kind, args=arguments, prog=command, config=(PositionalRequiredArgs, FlagCreatePairsOff))
    except SystemExit as stop:
        return int(stop.code or 0)
    return act(options)
