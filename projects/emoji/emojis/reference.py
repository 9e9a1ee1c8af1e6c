"""What generated images are compared with: validation images, the trivial answer to each caption, training images.

It comes with the judge as features, so that an evaluation needs neither the data nor an hour; `build` makes it from the
data.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from emojis.colours import COLOURS, leading_colour
from emojis.features import plain
from emojis.judge import SHIPPED, Judge, mean_states
from emojis.records import HELD_OUT, Record, read_split
from pixart.errors import PixArtError, UsageError

ROWS, FEATURES = "held_out.json", "reference.safetensors"
COPY_DIMENSIONS = 64  # of the space in which copies of training images are looked for
AT_ONCE = 256  # images in memory


@dataclass(frozen=True)
class HeldOut:
    """A validation caption: the prompt, and what is known of its true image."""

    caption: str
    style: str
    base_concept: str
    split: str
    colour: str | None  # the first that the dense caption names; None for black and white
    copied: str  # the training caption nearest to it, whose image is the trivial answer


@dataclass(frozen=True)
class Seen:
    """What can be measured of N images without their captions."""

    vectors: np.ndarray  # (N, D), the judge's
    styles: list[str]
    plain: np.ndarray  # (N, 1024)
    colours: list[str | None]

    def __getitem__(self, rows: Sequence[int]) -> "Seen":
        styles, colours = ([values[k] for k in rows] for values in (self.styles, self.colours))
        return Seen(self.vectors[rows], styles, self.plain[rows], colours)


@dataclass(frozen=True)
class Reference:
    """Validation captions with their true images and trivial answers, row by row, and the training images.

    `centre` (1024,) and `axes` (1024, 64) are the mean and the principal axes of the training images' plain features,
    `train` (T, 64) their coordinates, `train_concept` (T,) a number for the concept of each.
    """

    rows: list[HeldOut]
    real: Seen
    copies: Seen
    centre: np.ndarray
    spread: float  # the mean length of a training image's plain features from `centre`
    axes: np.ndarray
    train: np.ndarray
    train_concept: np.ndarray
    sha256: str


def look(images: Sequence[Image.Image], judge: Judge) -> Seen:
    """Measure images of any size."""
    vectors, styles = judge.images(images)
    return Seen(vectors, styles, plain(images), [leading_colour(image)[0] for image in images])


def look_at(records: Sequence[Record], judge: Judge) -> Seen:
    """The same of the images of records, some at a time, so that not all are in memory at once."""
    parts = [look([record.open() for record in part], judge) for part in _parts(records)]
    return Seen(
        np.concatenate([part.vectors for part in parts]),
        [style for part in parts for style in part.styles],
        np.concatenate([part.plain for part in parts]),
        [colour for part in parts for colour in part.colours],
    )


def choose(reference: Reference, *, num: int = 512, seed: int = 0) -> list[int]:
    """`num` rows, as many of each split, by chance and `seed`; the first ones of a larger choice are a smaller one's.

    They are ordered in turn, so that an evaluation that was stopped has as many of each.
    """
    rng = random.Random(seed)
    by_split = []
    for split in HELD_OUT:
        rows = [k for k, row in enumerate(reference.rows) if row.split == split]
        rows.sort(key=lambda k: reference.rows[k].caption)
        rng.shuffle(rows)
        by_split.append(rows)
    most = len(HELD_OUT) * min(map(len, by_split))
    if not len(HELD_OUT) <= num <= most:
        raise UsageError(f"The number of images is {num}; it must be from {len(HELD_OUT)} to {most}.")
    return [k for together in zip(*by_split, strict=False) for k in together][:num]


def build(data: Path, judge: Judge, report: Callable[[str], None] = print) -> Reference:
    """From a folder of the emoji data. Takes minutes: every image is read. Raises PixArtError where data is missing."""
    train = read_split(data / "train")
    held = [(split, record) for split in HELD_OUT for record in read_split(data / split)]
    records = [record for _, record in held]
    report(f"comparing {len(held):,} validation captions with {len(train):,} of training")
    nearest = nearest_captions([record.text for record in records], [record.text for record in train])
    real, copies = look_at(records, judge), look_at([train[k] for k in nearest], judge)
    report(f"measuring {len(train):,} training images")
    features = np.concatenate([plain([record.open() for record in part]) for part in _parts(train)])
    centre = features.mean(axis=0)
    away = features - centre
    _, axes = np.linalg.eigh(away.T @ away)
    axes = np.ascontiguousarray(axes[:, ::-1][:, :COPY_DIMENSIONS])
    rows = [
        HeldOut(record.text, record.style, record.base_concept, split, _first_colour(record), train[k].text)
        for (split, record), k in zip(held, nearest, strict=True)
    ]
    spread = float(np.sqrt((away**2).sum(axis=1).mean()))
    concept = np.unique([record.base_concept for record in train], return_inverse=True)[1]
    return Reference(rows, real, copies, centre, spread, axes, away @ axes, concept, sha256="")


def nearest_captions(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """For each wanted caption the known one whose mean token state is nearest (cosine)."""
    means = mean_states([*wanted, *known])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return [int(k) for k in (means[: len(wanted)] @ means[len(wanted) :].T).argmax(axis=1)]


def save(reference: Reference, folder: Path) -> None:
    """Write it beside a judge: features in 16 or 8 bits, captions as JSON."""
    tensors = {
        "centre": reference.centre.astype(np.float32),
        "spread": np.array([reference.spread], np.float32),
        "axes": reference.axes.astype(np.float16),
        "train_concept": reference.train_concept.astype(np.int32),
        "real.vectors": reference.real.vectors.astype(np.float16),
        "copies.vectors": reference.copies.vectors.astype(np.float16),
    }
    plains = {"train": reference.train, "real.plain": reference.real.plain, "copies.plain": reference.copies.plain}
    for name, values in plains.items():
        scale = np.abs(values).max(axis=0) / 127 + 1e-12
        tensors[name] = np.round(values / scale).astype(np.int8)
        tensors[f"{name}.scale"] = scale.astype(np.float32)
    lines = []
    for k, row in enumerate(reference.rows):
        real, copy = ([seen.styles[k], seen.colours[k]] for seen in (reference.real, reference.copies))
        lines.append(json.dumps({**asdict(row), "real": real, "copy": copy}, ensure_ascii=False))
    (folder / ROWS).write_text("[\n{}\n]\n".format(",\n".join(lines)), encoding="utf-8")
    save_file(tensors, folder / FEATURES)


def open_reference(folder: Path = SHIPPED) -> Reference:
    """Read what `save` wrote. Raises PixArtError where it is not whole."""
    try:
        data, text = (folder / FEATURES).read_bytes(), (folder / ROWS).read_bytes()
        tensors, rows = load(data), json.loads(text)

        def seen(name: str, key: str) -> Seen:
            features = tensors[f"{name}.plain"] * tensors[f"{name}.plain.scale"]
            styles, colours = ([row[key][k] for row in rows] for k in range(2))
            return Seen(tensors[f"{name}.vectors"].astype(np.float32), styles, features, colours)

        return Reference(
            rows=[HeldOut(**{key: value for key, value in row.items() if key not in ("real", "copy")}) for row in rows],
            real=seen("real", "real"),
            copies=seen("copies", "copy"),
            centre=tensors["centre"],
            spread=float(tensors["spread"][0]),
            axes=tensors["axes"].astype(np.float32),
            train=tensors["train"] * tensors["train.scale"],
            train_concept=tensors["train_concept"],
            sha256=hashlib.sha256(data + text).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"The reference in {folder} cannot be read ({reason}); run make.py judge again.") from None


def _parts(records: Sequence[Record]) -> list[Sequence[Record]]:
    return [records[start : start + AT_ONCE] for start in range(0, len(records), AT_ONCE)]


def _first_colour(record: Record) -> str | None:
    """The first colour of the dense caption, "... icon of NAME, yellow, orange and red, on a white background"."""
    before, comma, _ = record.captions[-1].partition(", on a white background")
    if record.style == "black and white" or not comma:
        return None
    words = [word for part in before.split(", ")[-3:] for word in part.replace("mostly ", "").split(" and ")]
    return next((word for word in words if word in COLOURS), None)
