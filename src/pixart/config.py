"""TOML, JSON and command-line flags -> dataclasses, strictly: unknown keys and wrong types are refused by name.

A dataclass stands beside the code that it configures; its `__post_init__` raises UsageError for values that cannot be.
cattrs reads tables, tyro reads flags; this file holds their settings and turns their errors into one sentence.
"""

import contextlib
import dataclasses
import difflib
import io
import math
import sys
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from pixart.errors import PixArtError, UsageError
from pixart.files import read_bytes

T = TypeVar("T")
MAX_TOML_BYTES = 1 << 20
MAX_MESSAGE = 4000  # characters of what tyro says is wrong, which repeats what was given
PLAIN_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        UsageError: it is missing, cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(read_bytes(path, MAX_TOML_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deep to be read.") from None
    except UsageError:
        raise
    except PixArtError as error:
        raise UsageError(str(error)) from None


def structure(table: Any, kind: type[T], where: str) -> T:
    """The dataclass `kind` from parsed TOML or JSON.

    Raises:
        UsageError: names `where` and the first key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        return _converter.structure(table, kind)
    except UsageError:
        raise
    except Exception as error:  # cattrs groups what it finds; the first is enough for one sentence
        raise UsageError(f"{where}: {_first_sentence(error, '')}") from None


def plain(value: Any) -> Any:
    """A dataclass as JSON values: `structure(plain(x), type(x), ...) == x`."""
    return _converter.unstructure(value)


def with_flags(value: T, arguments: list[str], command: str) -> T:
    """A dataclass with the changes of `--dotted.key VALUE` flags.

    Raises:
        UsageError: no such key, or a value of the wrong type. SystemExit: help was asked for and printed.
    """
    changed = _tyro(type(value), arguments, command, default=value)
    return structure(plain(changed), type(value), command)  # for what tyro lets pass, such as nan


def parse_flags(kind: type[T], arguments: list[str], command: str) -> T:
    """The dataclass of a command's options. Raises as `with_flags` does."""
    return _tyro(kind, arguments, command)


def run_command(kind: type[T], arguments: list[str], command: str, act: Callable[[T], int], examples: str = "") -> int:
    """Parse a command's options and act on them; returns the exit code.

    tyro prints help, or what is wrong with a flag, itself; then nothing is done. `examples` end the help.
    """
    try:
        options = parse_flags(kind, arguments, command)
    except SystemExit as stop:
        if examples and not stop.code:
            print(examples)
        return int(stop.code or 0)
    return act(options)


def shown(metavar: str, default: str, *aliases: str):
    """How help shows an option whose default is found out later, and other names for it."""
    from tyro.conf import arg

    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})", aliases=aliases)


def unknown(kind: str, name: str, allowed: typing.Iterable[str]) -> str:
    """One sentence for a name that is not on the list: the list, and the nearest name where one is near."""
    names = list(allowed)
    by_folded = {key.casefold(): key for key in names}
    near = difflib.get_close_matches(shortened(name).casefold(), list(by_folded), n=1, cutoff=0.4)
    hint = f' Did you mean "{by_folded[near[0]]}"?' if near else ""
    return f'There is no {kind} "{shortened(name)}"; choose one of: {", ".join(names)}.{hint}'


def shortened(value: object, most: int = 200) -> str:
    """A given value for a message: cut where it is long, so that nothing is echoed whole."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def _tyro(kind: type[T], arguments: list[str], command: str, **default: T) -> T:
    import tyro
    from tyro.conf import FlagCreatePairsOff, PositionalRequiredArgs

    config = (PositionalRequiredArgs, FlagCreatePairsOff)
    wrong = io.StringIO()
    try:
        with contextlib.redirect_stderr(wrong):
            return tyro.cli(kind, args=arguments, prog=command, config=config, **default)
    finally:
        print(shortened(wrong.getvalue().rstrip(), MAX_MESSAGE), end="\n" if wrong.getvalue() else "", file=sys.stderr)


def _strict(kind: type) -> Callable[[Any, Any], Any]:
    def read(value: Any, _: Any) -> Any:
        fits = isinstance(value, bool) if kind is bool else isinstance(value, kind) and not isinstance(value, bool)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            fits = True
        if not fits:
            raise TypeError(f"must be {PLAIN_NAMES[kind]}, not {_given(value)}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        return kind(value)

    return read


def _read_path(value: Any, _: Any) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise TypeError(f"must be a path, not {_given(value)}")
    return Path(value)


def _read_literal(value: Any, kind: Any) -> Any:
    allowed = typing.get_args(kind)
    if not any(value == each and type(value) is type(each) for each in allowed):
        names = ", ".join(map(str, allowed))
        near = difflib.get_close_matches(str(value)[:200], [str(each) for each in allowed], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"must be one of {names}, not {_given(value)}{hint}")
    return value


def _read_table(kind: type) -> Callable[[Any, Any], Any]:
    inner = cattrs.gen.make_dict_structure_fn(kind, _converter, _cattrs_forbid_extra_keys=True)

    def read(value: Any, target: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"must be a table, not {_given(value)}")
        return inner(value, target)

    return read


def _read_tuple(kind: Any) -> Callable[[Any, Any], Any]:
    arguments = typing.get_args(kind)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"must be a list, not {_given(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"needs {len(kinds)} values, not {len(value)}")
        return tuple(_converter.structure(item, each) for item, each in zip(value, kinds, strict=True))

    return read


def _read_dict(kind: Any) -> Callable[[Any, Any], Any]:
    _, each = typing.get_args(kind)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"must be a table, not {_given(value)}")
        return {str(key): _converter.structure(item, each) for key, item in value.items()}

    return read


def _origin_is(origin: type) -> Callable[[Any], bool]:
    return lambda kind: typing.get_origin(kind) is origin


def _given(value: object) -> str:
    return shortened(repr(value))


def _first_sentence(error: BaseException, path: str) -> str:
    """The first thing that is wrong, with its key."""
    if isinstance(error, ClassValidationError):
        first = next((e for e in error.exceptions if isinstance(e, ForbiddenExtraKeysError)), error.exceptions[0])
        if isinstance(first, ForbiddenExtraKeysError):
            known = [field.name for field in dataclasses.fields(first.cl)]
            key = shortened(sorted(first.extra_fields, key=str)[0])
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It knows {', '.join(known)}."
            return f"{path or 'it'} has no key {key!r}. {hint}"
        return _first_sentence(first, _joined(path, first))
    if isinstance(error, UsageError):
        return str(error).removesuffix(".") + "."
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing."
    return f"{path or 'it'} {error}." if path else f"{error}."


def _joined(path: str, error: BaseException) -> str:
    from cattrs import AttributeValidationNote

    names = [n.name for n in getattr(error, "__notes__", ()) if isinstance(n, AttributeValidationNote)]
    return ".".join([*([path] if path else []), *names])


_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
for _kind in (int, float, bool, str):
    _converter.register_structure_hook(_kind, _strict(_kind))
_converter.register_structure_hook(Path, _read_path)
_converter.register_unstructure_hook(Path, str)
_converter.register_structure_hook_func(_origin_is(typing.Literal), _read_literal)
_converter.register_structure_hook_factory(dataclasses.is_dataclass, _read_table)
_converter.register_structure_hook_factory(_origin_is(tuple), _read_tuple)
_converter.register_structure_hook_factory(_origin_is(dict), _read_dict)
_converter.register_unstructure_hook_func(_origin_is(tuple), lambda value: [plain(item) for item in value])
