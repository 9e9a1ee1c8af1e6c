"""The outputs folder: one folder for each run, with its pictures and run.json. The folders are the whole database."""

import json
import os
import re
import threading
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError
from pixart.pipeline.image_files import read_settings, slug

RECORD = "run.json"
NAME = re.compile(r"\d{8}-\d{6}-[\w-]{1,80}")


@dataclass(frozen=True)
class Run:
    """One click on Draw. `pictures` has, for each file in the folder, its name, seed and label.

    Attributes:
        name: the folder's.
        created: seconds since 1970.
        form: what stood in the page's fields, to put it back there.
        grid: how many columns, where the pictures are the cells of a grid.
    """

    name: str
    created: float
    prompt: str
    model: str = ""
    seconds: float = 0.0
    form: dict[str, Any] = field(default_factory=dict)
    pictures: tuple[dict[str, Any], ...] = ()
    notices: tuple[str, ...] = ()
    grid: int = 0


class Runs:
    """All runs in one folder. Every method may be called from any thread."""

    def __init__(self, folder: Path):
        """Make the folder; raises PixArtError where that cannot be."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder.resolve()
        except (OSError, ValueError) as error:
            raise PixArtError(f"The outputs folder {folder} cannot be made: {_reason(error)}.") from None
        self._lock = threading.Lock()
        self._read: dict[str, tuple[int, Run | None]] = {}  # folder name -> when run.json was written, what it said

    def new(self, prompt: str) -> Path:
        """A folder of its own for a run that begins now."""
        stem = time.strftime("%Y%m%d-%H%M%S-") + (re.sub(r"[^\w-]", "", slug(prompt))[:40].strip("-") or "picture")
        for number in range(1000):
            path = self.folder / (f"{stem}-{number}" if number else stem)
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                continue
            except OSError as error:
                raise PixArtError(f"The pictures cannot be saved: no folder {path} ({_reason(error)}).") from None
        raise PixArtError(f"The pictures cannot be saved: {self.folder} has a thousand runs of this second.")

    def write(self, run: Run) -> None:
        """Write run.json whole or not at all."""
        path = self.folder / run.name / RECORD
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump({"format": 1, **asdict(run)}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PixArtError(f"The run cannot be recorded in {path}: {_reason(error)}.") from None

    def path(self, name: str) -> Path | None:
        """The folder of a run by its name, which may come from anywhere; None if there is no such run."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_dir() and not path.is_symlink() else None

    def get(self, name: str) -> Run | None:
        """The run of that name; without a readable run.json it is put together from its pictures."""
        path = self.path(name)
        if path is None:
            return None
        try:
            written = (path / RECORD).stat().st_mtime_ns
        except OSError:
            written = -1
        with self._lock:
            known = self._read.get(name)
        if known and known[0] == written and written != -1:
            return known[1]
        run = _read_record(path) or _from_pictures(path)
        with self._lock:
            self._read[name] = (written, run)
        return run

    def search(self, words: str = "", most: int = 60) -> tuple[list[Run], int]:
        """The newest runs whose prompt, model or style has all of the words, and how many there are in all."""
        try:
            names = sorted((name for name in os.listdir(self.folder) if NAME.fullmatch(name)), reverse=True)
        except OSError:
            names = []
        wanted = words.casefold().split()[:20]
        found = []
        for name in names:
            run = self.get(name)
            if run is None or not run.pictures:
                continue
            text = f"{run.prompt} {run.model} {run.form.get('style') or ''} {run.name}".casefold()
            if all(word in text for word in wanted):
                found.append(run)
        return found[:most], len(found)

    def files(self, run: Run) -> list[Path]:
        """The pictures of a run that are still there, in order."""
        paths = [self.folder / run.name / picture["file"] for picture in run.pictures]
        return [path for path in paths if path.is_file()]

    def delete(self, name: str) -> int:
        """Remove the pictures of a run and its record, no other file in its folder; returns how many pictures."""
        path, run = self.path(name), self.get(name)
        if path is None or run is None:
            raise PixArtError("This run is not there any more.")
        removed = 0
        try:
            for file in self.files(run):
                file.unlink()
                removed += 1
            (path / RECORD).unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
        except OSError as error:
            raise PixArtError(f"{removed} pictures were deleted, then the disk said no: {_reason(error)}.") from None
        return removed

    def zip(self, name: str, folder: Path) -> Path:
        """The pictures and the record of a run in one archive in `folder`."""
        path, run = self.path(name), self.get(name)
        if path is None or run is None:
            raise PixArtError("This run is not there any more.")
        archive = folder / f"{run.name}.zip"
        try:
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # PNG is compressed already
                for picture in [*self.files(run), path / RECORD]:
                    if picture.is_file():
                        file.write(picture, f"{run.name}/{picture.name}")
        except OSError as error:
            archive.unlink(missing_ok=True)
            raise PixArtError(f"The archive cannot be written: {_reason(error)}.") from None
        return archive


def _read_record(path: Path) -> Run | None:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        pictures = tuple(picture for picture in record["pictures"] if _is_plain(picture["file"]))
        return Run(
            name=path.name,
            created=float(record["created"]),
            prompt=str(record["prompt"]),
            model=str(record["model"]),
            seconds=float(record["seconds"]),
            form=dict(record["form"]),
            pictures=pictures,
            notices=tuple(map(str, record["notices"])),
            grid=int(record["grid"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _from_pictures(path: Path) -> Run | None:
    """The program may have been killed before run.json was written, but every picture carries its settings."""
    pictures, settings = [], {}
    for file in sorted(path.glob("*.png")):
        try:
            settings = read_settings(file)
        except PixArtError:
            continue
        pictures.append({"file": file.name, "seed": settings.get("seed"), "label": ""})
    if not pictures:
        return None
    form = {key: settings.get(key) for key in ("prompt", "negative_prompt", "style", "steps", "guidance_scale")}
    form |= {key: settings.get(key) for key in ("width", "height", "sampler")}
    return Run(
        name=path.name,
        created=path.stat().st_mtime,
        prompt=str(settings.get("prompt", "")),
        model=str(settings.get("model", "")),
        form={**form, "seed": pictures[0]["seed"]},
        pictures=tuple(pictures),
    )


def _is_plain(name: Any) -> bool:
    """A picture's name inside its own folder; run.json may have been written by somebody else."""
    return isinstance(name, str) and name.endswith(".png") and Path(name).name == name and not name.startswith(".")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
