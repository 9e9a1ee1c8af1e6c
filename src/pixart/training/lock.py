"""One process per run folder: a lock that says who holds it, and that a dead process does not keep."""

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pixart.errors import PixArtError

NAME = "lock.json"
TOUCH_S = 30
STALE_S = 300  # a holder on another machine that has not touched its lock for this long is dead


@contextlib.contextmanager
def held(run: Path, does: str = "trains", option: str = "--run") -> Iterator[None]:
    """Hold the run folder `run`, which exists; others are refused until the block ends or this process dies.

    `does` and `option` are for the refusal: what the other process does there, and what names another folder.

    On one machine the kernel keeps the lock and drops it with the process, however that ends. Shared file systems do
    not all pass such a lock on to other machines; so its holder also touches the file every half minute.

    Raises:
        PixArtError: another process works in this folder; names its process and machine.
    """
    path = run / NAME

    def refusal(holder: dict) -> PixArtError:
        who = f"Process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
        return PixArtError(f"{who} {does} in {run} already. Wait for it or stop it, or give another {option}.")

    try:
        descriptor = _locked(path, refusal)
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None
    try:
        _refuse_living_on_another_machine(path, refusal)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        done = threading.Event()
        threading.Thread(target=_touch, args=(path, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _locked(path: Path, refusal: Callable[[dict], PixArtError]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(path)
            os.close(descriptor)
            raise refusal(holder) from None
        # Its last holder may have removed the file between our opening and locking it; then the lock is of no file.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _refuse_living_on_another_machine(path: Path, refusal: Callable[[dict], PixArtError]) -> None:
    holder = _holder(path)
    if not holder or holder.get("host") == socket.gethostname():
        return
    probe = path.with_suffix(f".{os.getpid()}")
    probe.touch()  # the file system's own clock, which need not be ours
    age_s = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    if age_s < STALE_S:
        raise refusal(holder)


def _holder(path: Path) -> dict:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)
