"""What has been drawn: a line per picture in pictures.jsonl, a file per process in session-N.json."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pixart.errors import PixArtError
from pixart.evaluation.comparison.plan import Cell, Plan, write_whole

PICTURES = "pictures.jsonl"
Ended = Literal["drawing", "done", "stopped", "memory", "failed"]


@dataclass(frozen=True)
class Drawn:
    """A picture that counts: its file is written and named here. `warm`: not the first of its process."""

    row: int
    seed: int
    file: str
    width: int
    height: int
    sha256: str  # of the file
    seconds: float | None = None  # of drawing, from the prompt to the pixels; None for pictures made elsewhere
    warm: bool = True
    notices: tuple[str, ...] = ()

    @property
    def cell(self) -> Cell:
        return Cell(self.row, self.seed)


@dataclass(frozen=True)
class Session:
    """One process that drew for one model, or one look at a folder of pictures made elsewhere.

    `peak_bytes` is the most memory that the process had, libraries included; `device_bytes` the most on a GPU.
    `settings` are those of its pictures, the model's own values filled in; `weights` the SHA-256 of its files.
    """

    began: str
    ended: Ended
    reason: str = ""
    pictures: int = 0
    load_seconds: float | None = None
    peak_bytes: int | None = None
    device_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All that is known of one model of a comparison; `folder` has its pictures."""

    folder: Path
    drawn: dict[Cell, Drawn]
    sessions: tuple[Session, ...]

    @property
    def seconds(self) -> float | None:
        """The median time of a picture, the first of each process left out where there are others."""
        times = [picture.seconds for picture in self.drawn.values() if picture.seconds is not None and picture.warm]
        times = times or [picture.seconds for picture in self.drawn.values() if picture.seconds is not None]
        return median(times) if times else None

    @property
    def first_seconds(self) -> float | None:
        times = [p.seconds for p in self.drawn.values() if p.seconds is not None and not p.warm]
        return median(times) if times else None

    @property
    def load_seconds(self) -> float | None:
        times = [session.load_seconds for session in self.sessions if session.load_seconds is not None]
        return median(times) if times else None

    @property
    def peak_bytes(self) -> int | None:
        return max((session.peak_bytes for session in self.sessions if session.peak_bytes), default=None)

    @property
    def device_bytes(self) -> int | None:
        return max((session.device_bytes for session in self.sessions if session.device_bytes), default=None)

    @property
    def engine(self) -> str | None:
        """What drew, once something was drawn: onnx, torch, diffusers."""
        return next((s.settings.get("engine") for s in reversed(self.sessions) if s.settings), None)

    @property
    def last(self) -> Session | None:
        return self.sessions[-1] if self.sessions else None


def model_folder(folder: Path, name: str) -> Path:
    """Where a comparison in `folder` keeps the pictures of its model with the folder name `name`."""
    return folder / "models" / name


def outcome(folder: Path, name: str) -> Outcome:
    """Read what there is of one model of the comparison in `folder`.

    A picture counts only if its line is whole and its file is there with the bytes that the line names; so a kill at
    any time costs the picture that was being drawn, and a picture that somebody removed or changed is drawn again.
    """
    own = model_folder(folder, name)
    drawn: dict[Cell, Drawn] = {}
    for line in _lines(own / PICTURES):
        try:
            picture = Drawn(**json.loads(line))
            if picture.file == picture.cell.file and _sha256(own / picture.file) == picture.sha256:
                drawn[picture.cell] = picture
        except (OSError, ValueError, TypeError):
            continue
    sessions = []
    for path in sorted(own.glob("session-*.json"), key=_number):
        try:
            sessions.append(Session(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise PixArtError(f"{path} cannot be read ({error}); remove it to go on without its figures.") from None
    return Outcome(own, drawn, tuple(sessions))


def outcomes(plan: Plan, folder: Path) -> list[Outcome]:
    return [outcome(folder, model.folder) for model in plan.models]


def next_session(own: Path) -> Path:
    """A free name for the record of a new process in the model's folder."""
    return own / f"session-{max([0, *map(_number, own.glob('session-*.json'))]) + 1}.json"


def save_session(path: Path, session: Session) -> None:
    write_whole(path, json.dumps(dataclasses.asdict(session), indent=1).encode())


def add(own: Path, picture: Drawn) -> None:
    """Note a picture whose file is on disk."""
    with (own / PICTURES).open("ab") as file:
        if file.tell():
            with (own / PICTURES).open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":  # a line that a kill cut short
                    file.write(b"\n")
        file.write(json.dumps(dataclasses.asdict(picture)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def describe(own: Path, cell: Cell, *, seconds: float | None, warm: bool, notices: tuple[str, ...] = ()) -> Drawn:
    """The line of a picture that is written: its size and SHA-256 are read from the file."""
    from PIL import Image

    with Image.open(own / cell.file) as image:
        width, height = image.size
    sha256 = _sha256(own / cell.file)
    return Drawn(cell.row, cell.seed, cell.file, width, height, sha256, seconds, warm, notices)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PixArtError(f"{path} cannot be read: {error.strerror}.") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("session-")
    return int(digits) if digits.isdecimal() else 0
