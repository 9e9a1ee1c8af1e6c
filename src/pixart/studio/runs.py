"""The outputs folder: one folder for each run, with its images and run.json. The folders are the database."""

import os
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pixart.config import structure
from pixart.errors import PixArtError, reason_of
from pixart.files import read_json_object, write_json
from pixart.pipeline.image_files import slug

RECORD = "run.json"
MAX_RECORD = 1 << 20  # bytes
NAME = re.compile(r"\d{8}-\d{6}-[\w-]{1,80}")


@dataclass(frozen=True)
class Run:
    """One click on Generate.

    Attributes:
        name: the folder's.
        created: seconds since 1970.
        form: the settings as keyword arguments of `make_request`, to use them again.
        images: for each file in the folder its name "file", and "seed".
    """

    name: str
    created: float
    prompt: str
    model: str = ""
    seconds: float = 0.0
    form: dict[str, Any] = field(default_factory=dict)
    images: tuple[dict[str, Any], ...] = ()
    notices: tuple[str, ...] = ()


class Runs:
    """All runs in one folder. Every method may be called from any thread."""

    def __init__(self, folder: Path):
        """Make the folder; raises PixArtError where that cannot be."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder.resolve()
        except (OSError, ValueError) as error:
            raise PixArtError(f"The outputs folder {folder} cannot be made: {reason_of(error)}.") from None

    def new(self, prompt: str) -> Path:
        """A folder of its own for a run that begins now."""
        stem = time.strftime("%Y%m%d-%H%M%S-") + (re.sub(r"[^\w-]", "", slug(prompt))[:40].strip("-") or "image")
        for number in range(1000):
            path = self.folder / (f"{stem}-{number}" if number else stem)
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                continue
            except OSError as error:
                raise PixArtError(f"The images cannot be saved: no folder {path} ({reason_of(error)}).") from None
        raise PixArtError(f"The images cannot be saved: {self.folder} has a thousand runs of this second.")

    def write(self, run: Run) -> None:
        """Write run.json; at any instant there is the old one or the new one."""
        path = self.folder / run.name / RECORD
        try:
            write_json(path, {"format": 1, **asdict(run)})
        except OSError as error:
            raise PixArtError(f"The run cannot be recorded in {path}: {reason_of(error)}.") from None

    def get(self, name: str) -> Run | None:
        """The run of that name, which may come from anywhere; None if there is no such run with a readable record."""
        path = self.folder / name if isinstance(name, str) and NAME.fullmatch(name) else None
        if path is None or path.is_symlink():
            return None
        try:
            record = read_json_object(path / RECORD, MAX_RECORD)
            known = {key: value for key, value in record.items() if key in Run.__dataclass_fields__}
            run = structure(known | {"name": name}, Run, RECORD)
            return replace(run, images=tuple(image for image in run.images if _is_plain(image["file"])))
        except (PixArtError, OSError, KeyError, TypeError):
            return None

    def files(self, run: Run) -> list[Path]:
        """The images of a run, in order, without those that somebody has removed."""
        paths = [self.folder / run.name / image["file"] for image in run.images]
        return [path for path in paths if path.is_file()]

    def image(self, name: str, index: int) -> tuple[Run, Path] | None:
        """A run and one of the files that `files` gives; None if it is not there any more."""
        run = self.get(name)
        files = self.files(run) if run else []
        return (run, files[index]) if 0 <= index < len(files) else None

    def search(self, words: str = "", most: int = 100) -> tuple[list[Run], bool]:
        """The newest runs whose prompt, model, style or name has all of the words, and whether there are more."""
        names = sorted((name for name in os.listdir(self.folder) if NAME.fullmatch(name)), reverse=True)
        wanted = words.casefold().split()[:20]
        found: list[Run] = []
        for name in names:
            run = self.get(name)
            text = (
                "" if run is None else f"{run.prompt} {run.model} {run.form.get('style') or ''} {run.name}".casefold()
            )
            if run is not None and self.files(run) and all(word in text for word in wanted):
                if len(found) == most:
                    return found, True
                found.append(run)
        return found, False

    def delete(self, name: str) -> int:
        """Remove the images of a run and its record, no other file in its folder; returns how many images."""
        run = self.get(name)
        if run is None:
            raise PixArtError("This run is not there any more.")
        files, path = self.files(run), self.folder / name
        try:
            for file in files:
                file.unlink()
            (path / RECORD).unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
        except OSError as error:
            raise PixArtError(f"Not all of {path} could be deleted: {reason_of(error)}.") from None
        return len(files)


def _is_plain(name: Any) -> bool:
    """An image's name inside its own folder; run.json may have been written by somebody else."""
    return isinstance(name, str) and name.endswith(".png") and Path(name).name == name and not name.startswith(".")
