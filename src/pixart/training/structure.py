"""From parsed TOML or JSON to a dataclass, strictly: unknown keys and wrong types are refused."""

import dataclasses
import difflib
import types
import typing
from pathlib import Path

from pixart.errors import UsageError

SAID = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def structure(value: object, target: typing.Any, where: str) -> typing.Any:
    """Build `target` (a dataclass, tuple, dict or plain type) from parsed TOML or JSON; `where` is named in errors."""
    if dataclasses.is_dataclass(target):
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table, not {value!r}.")
        fields = {f.name: f for f in dataclasses.fields(target)}
        for key in value:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" It knows {', '.join(fields)}."
                raise UsageError(f"{where} has no key {key!r}.{hint}")
        hints = typing.get_type_hints(target)
        for key, f in fields.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and key not in value:
                raise UsageError(f"{where} needs the key {key!r}.")
        return target(**{key: structure(item, hints[key], f"{where}: {key}") for key, item in value.items()})
    origin, arguments = typing.get_origin(target), typing.get_args(target)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return structure(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise UsageError(f"{where} needs {len(inner)} values, not {len(value)}.")
        return tuple(structure(item, t, f"{where}[{i}]") for i, (item, t) in enumerate(zip(value, inner, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: structure(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            raise UsageError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}.")
        return value
    if target is Path and isinstance(value, str):
        return Path(value)
    if target is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(target, type) and type(value) is target:
        return value
    raise UsageError(f"{where} is {value!r}; it must be {SAID.get(target, getattr(target, '__name__', target))}.")
