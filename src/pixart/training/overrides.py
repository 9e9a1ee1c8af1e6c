"""`--dotted.override VALUE`: every value of a recipe can be changed on the command line."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass

from pixart.errors import UsageError
from pixart.training.recipe import Recipe, to_json
from pixart.training.structure import structure

SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Override:
    """`--optimizer.betas 0.9 0.99` is the path (optimizer, betas) with two values."""

    flag: str
    path: tuple[str, ...]
    values: tuple[str, ...]


def parse(arguments: list[str]) -> list[Override]:
    """Flags, each with the values that follow it or its `=`. Raises UsageError for a value that follows none."""
    found: list[Override] = []
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            flag, equals, value = argument.partition("=")
            found.append(Override(flag, tuple(flag[2:].split(".")), (value,) if equals else ()))
        elif not found:
            raise UsageError(f"{argument!r} stands alone; an override is --key VALUE, such as --loop.seed 1.")
        else:
            found[-1] = dataclasses.replace(found[-1], values=(*found[-1].values, argument))
    return found


def apply(recipe: Recipe, overrides: list[Override], where: str) -> tuple[Recipe, set[str]]:
    """The recipe with the overrides that it has a place for, and the flags of these.

    Raises:
        UsageError: a value is of the wrong type or out of range.
    """
    table = to_json(recipe)
    del table["kind"]
    used = {o.flag for o in overrides if _set(table, type(recipe), o.path, o)}
    return (structure(table, type(recipe), where) if used else recipe), used


def refuse_unknown(overrides: list[Override], used: set[str], known: list[str], where: str) -> None:
    """Raises UsageError for the first override that no recipe had a place for, with the nearest one that exists."""
    for override in overrides:
        if override.flag not in used:
            near = difflib.get_close_matches(override.flag.replace("_", "-"), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"pixart train {where} --help lists them."
            raise UsageError(f"{where} has no option {override.flag}. {hint}")


def flags(recipe: Recipe) -> list[str]:
    """All options of a recipe, as they are typed."""

    def walk(value: object, path: str) -> list[str]:
        if isinstance(value, dict):
            return [path, *(flag for key, item in value.items() for flag in walk(item, f"{path}.{key}"))]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [flag for i, item in enumerate(value) for flag in walk(item, f"{path}.{i}")]
        return [path]

    table = to_json(recipe)
    return [flag.replace("_", "-") for key, value in table.items() if key != "kind" for flag in walk(value, f"--{key}")]


def _set(table: dict | list, target: typing.Any, path: tuple[str, ...], override: Override) -> bool:
    """Put the override into the plain `table` of a `target`; whether there was a place for it."""
    target, key = _plain(target), path[0].replace("-", "_")
    if dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target)
        if len(path) == 1 and key.startswith("no_") and _plain(hints.get(key[3:])) is bool and not override.values:
            table[key[3:]] = False
            return True
        if key not in hints:
            return False
        inner = hints[key]
    elif typing.get_origin(target) is dict:
        key, inner = path[0], typing.get_args(target)[1]
    elif typing.get_origin(target) is tuple and key.isdecimal() and int(key) < len(table):
        key, inner = int(key), typing.get_args(target)[0]
    else:
        return False
    if len(path) == 1:
        if _is_table(inner):
            raise UsageError(f"{override.flag} is a table; give one of its keys, such as {override.flag}.KEY VALUE.")
        table[key] = _value(inner, override)
        return True
    return _is_table(inner) and _set(table[key], inner, path[1:], override)


def _is_table(target: typing.Any) -> bool:
    target = _plain(target)
    inner = typing.get_args(target)[:1]
    many = typing.get_origin(target) is tuple and inner and dataclasses.is_dataclass(inner[0])
    return bool(dataclasses.is_dataclass(target) or typing.get_origin(target) is dict or many)


def _plain(target: typing.Any) -> typing.Any:
    """Without the `| None`."""
    if typing.get_origin(target) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(target) if a is not type(None))
    return target


def _value(target: typing.Any, override: Override) -> object:
    """The values as `target`; a text that cannot be one stays a text, which `structure` then refuses by name."""
    values, plain = override.values, _plain(target)
    if plain is bool and not values:
        return True
    if typing.get_origin(plain) is tuple:
        return [_scalar(typing.get_args(plain)[0], value) for value in values]
    if len(values) != 1:
        given = f"not {len(values)}: {' '.join(values)}" if values else "and none was given"
        raise UsageError(f"{override.flag} takes one value, {given}.")
    if target is not plain and values[0].lower() == "none":
        return None
    return _scalar(plain, values[0])


def _scalar(target: typing.Any, value: str) -> object:
    if target is bool:
        return SWITCH.get(value.lower(), value)
    if target in (int, float):
        try:
            return target(value)
        except ValueError:
            return value
    return value
