"""Files as this package writes and reads them: whole or not at all, under a lock, with a limit for everything."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import socket
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError, reason_of, shown

MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 100
MAX_DIGITS = 1000
STALE_SECONDS = 24 * 3600  # where nobody can say whether the writer of a partial file is alive


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by `content`; at any instant there is the old file or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, nonfinite: bool = False) -> None:
    """As `write_whole`, as indented JSON. NaN and infinity raise ValueError, but with `nonfinite`: see `parse_json`."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=nonfinite) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or folder to, which takes its place when the block ends well.

    It is removed when the block raises; what killed processes left of earlier ones is removed first. A folder that is
    there already is set aside for the instant of the exchange and then deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path)
    partial = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield partial
        _sync(partial)
        if partial.is_dir() and path.is_dir():
            aside = partial.with_suffix(".old.part")
            path.rename(aside)
            try:
                partial.rename(path)
            except BaseException:
                aside.rename(path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            partial.replace(path)
    finally:
        _remove(partial)


def remove_partial(path: Path) -> None:
    """Delete partial files and folders of `path` whose writers are gone."""
    with contextlib.suppress(OSError):
        for partial in path.parent.glob(f".{glob_escape(path.name)}.*.part"):
            if not _writer_lives(partial, path.name):
                _remove(partial)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` for the block.

    Raises:
        PixArtError: with the sentence `refusal`, where another process holds it.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, blocking=False):
            yield
    except filelock.Timeout:
        raise PixArtError(refusal) from None


def open_regular(path: Path) -> Any:
    """Open a file for reading bytes; refuse devices, sockets and pipes, which may never end.

    Raises:
        PixArtError: it is not a regular file. OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PixArtError(f"{path} is not a regular file; give a file with the data in it.")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes.

    Raises:
        PixArtError: it is missing, no file, unreadable or longer.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise PixArtError(f"{path} is missing.") from None
    except OSError as error:
        raise PixArtError(f"{path} cannot be read: {reason_of(error)}.") from None
    if len(content) > limit:
        raise PixArtError(f"{path} is longer than {limit:,} bytes, which is the most that is read.")
    return content


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        PixArtError: the file cannot be read, or does not hold what `parse_json` takes.
    """
    return parse_json(read_bytes(path, limit), str(path))


def read_json_object(path: Path, limit: int = MAX_JSON_BYTES, *, nonfinite: bool = False) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object; `nonfinite` as in `parse_json`."""
    value = parse_json(read_bytes(path, limit), str(path), nonfinite=nonfinite)
    if not isinstance(value, dict):
        raise PixArtError(f"{path} does not hold a JSON object.")
    return value


def parse_json(content: str | bytes, where: str, *, nonfinite: bool = False) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN or infinity, nested at most `MAX_JSON_DEPTH` deep.

    `nonfinite` lets NaN, Infinity and -Infinity pass, which Diffusers writes into scheduler configs.

    Raises:
        PixArtError: names `where` and what is wrong.
    """
    try:
        refuse = {} if nonfinite else {"parse_constant": _refuse_constant}
        numbers = {"parse_float": _finite, "parse_int": whole}
        value = json.loads(content, object_pairs_hook=unique_keys, **numbers, **refuse)
    except RecursionError:
        raise PixArtError(f"{where} is nested too deep to be read.") from None
    except ValueError as error:
        raise PixArtError(f"{where} is not valid JSON: {error}.") from None
    if _depth_over(value, MAX_JSON_DEPTH):
        raise PixArtError(f"{where} is nested more than {MAX_JSON_DEPTH} deep.")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key is there twice, since nobody can say which value was meant."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def whole(digits: str) -> int:
    """A whole number of JSON; ValueError where it is too long for any use."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:20]}... is too large for a number")
    return int(digits)


def _depth_over(value: Any, most: int) -> bool:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            return True
        children = []
        for item in level:
            if isinstance(item, dict):
                children += [v for v in item.values() if isinstance(v, dict | list)]
            elif isinstance(item, list):
                children += [v for v in item if isinstance(v, dict | list)]
        level = children
    return False


def _sync(path: Path) -> None:
    """Bring what was written to the disk before the name changes, so that a power cut leaves no empty file."""
    for file_path in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        with file_path.open("rb+") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _writer_lives(partial: Path, name: str) -> bool:
    host, _, rest = partial.name.removeprefix(f".{name}.").rpartition(".part")[0].rpartition(".")[0].rpartition(".")
    if host == socket.gethostname() and rest.isdecimal() and sys.platform != "win32":
        try:
            os.kill(int(rest), 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return True
        return True
    return time.time() - partial.stat().st_mtime < STALE_SECONDS
