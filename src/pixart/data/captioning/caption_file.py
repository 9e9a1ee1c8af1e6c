"""Where captions are kept: a file of JSON lines per source, which grows by complete lines and survives a kill.

`captions_folder(path)/<source>.jsonl` holds the captions, and refusals with the caption null, which readers of the data
set pass over. What could not be read or captioned is not in it, and is tried again by the next run.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixart.config import shortened
from pixart.data.pairs import ORIGINAL
from pixart.errors import PixArtError, UsageError
from pixart.files import locked, parse_json

# What a row says of its own caption; all else in it is how the captions of the file were made.
OF_THE_CAPTION = ("key", "caption", "opening", "cut", "rejected", "answer", "error")


def check_source(name: str) -> None:
    """Raise UsageError unless captions can be called so ("" is for their captioner to fill in)."""
    if re.fullmatch(r"(?!\.)[\w.-]{0,100}", name) is None or name == ORIGINAL:
        raise UsageError(
            f"--source is {shortened(name)!r}; it names a file, so give letters, digits, dots and dashes, and not "
            f"{ORIGINAL}, as the data set's own captions are called."
        )


class CaptionFile:
    """The captions of one source, open for adding to. A context manager; one process at a time.

    `settings` is what every row holds beside its caption. A half line at the end, left by a kill, is cut off.
    """

    def __init__(self, folder: Path, source: str, settings: dict[str, object]):
        self.path = folder / f"{source}.jsonl"
        self.settings = settings
        self.done: set[bytes] = set()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "CaptionFile":
        """Raises UsageError where the file was written with other settings, PixArtError where it cannot be written."""
        refusal = f"Another pixart data caption is writing {self.path}; wait for it, or stop it."
        with contextlib.ExitStack() as held:  # which closes what is open where the next fails
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), refusal))
                self.file = held.enter_context(self.path.open("ab", buffering=0))
                self._resume()
            except OSError as error:
                raise self._unwritable(error) from None
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def __contains__(self, key: str) -> bool:
        """Whether this image has its captions, or a refusal."""
        return _digest(key) in self.done

    def add(self, rows: Iterable[dict]) -> None:
        """Bring the rows of one batch to the disk, but those with an error. PixArtError on a full disk, then none."""
        settled = [row for row in rows if "error" not in row]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in settled)
        before = os.fstat(self.file.fileno()).st_size
        view = memoryview(lines.encode("utf-8", "surrogatepass"))
        try:
            while view:  # a write may take only a part; the next one then says why
                view = view[self.file.write(view) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            os.truncate(self.path, before)
            raise self._unwritable(error) from None
        self.done.update(_digest(row["key"]) for row in settled)

    def _resume(self) -> None:
        """Note what is done, and cut off a line that is not complete."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                where = f"{self.path}, line {number}"
                row = parse_json(line, where)
                if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                    raise PixArtError(f"{where} is no object with a key; mend or delete the line.")
                self._compare(row)
                self.done.add(_digest(row["key"]))
                end += len(line)
        os.truncate(self.path, end)

    def _compare(self, row: dict[str, Any]) -> None:
        found = {name: value for name, value in row.items() if name not in OF_THE_CAPTION}
        if found != self.settings:
            name = next(n for n in {**self.settings, **found} if found.get(n) != self.settings.get(n))
            before, now = (shortened(json.dumps(each.get(name), ensure_ascii=False)) for each in (found, self.settings))
            raise UsageError(
                f"{self.path} was written with {name} {before}, not {now}; give --source another name to keep both, or "
                "delete the file."
            )

    def _unwritable(self, error: OSError) -> PixArtError:
        return PixArtError(
            f"{self.path} cannot be written: {error.strerror}; what is in it stays, and later the same command goes on."
        )


def _digest(key: str) -> bytes:
    """A key in 16 bytes, so that millions of them fit into memory."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
