"""What drawings are judged against: the held-out pictures, the trivial answer to each caption, the training pictures.

The package brings it as features, so that a judgement needs neither the data nor an hour; `build` makes it from the
data, which `pixart data emoji` makes.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pixart.data.imagefolder import Record, read_split
from pixart.data.split import SPLITS
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.judge import SHIPPED, OpenedJudge
from pixart.evaluation.plain_features import leading_colour, plain

HELD_OUT = SPLITS[1:]
ROWS, FEATURES = "held_out.json", "reference.safetensors"
COPY_DIMENSIONS = 64  # of the space in which copies of training pictures are looked for
AT_ONCE = 256


@dataclass(frozen=True)
class HeldOut:
    """A held-out caption: what is drawn, and what is known of its true picture."""

    caption: str
    style: str
    base_concept: str
    split: str
    colour: str | None  # the first that the caption maker named; None for black and white
    copied: str  # the training caption nearest to it, whose picture is the trivial answer


@dataclass(frozen=True)
class Look:
    """What can be said of N pictures without their captions."""

    vectors: np.ndarray  # (N, D), the judge's
    styles: list[str]
    plain: np.ndarray  # (N, 1024)
    colours: list[str | None]

    def __getitem__(self, rows: Sequence[int]) -> "Look":
        return Look(
            self.vectors[rows], [self.styles[k] for k in rows], self.plain[rows], [self.colours[k] for k in rows]
        )


@dataclass(frozen=True)
class Reference:
    """Held-out captions with their true pictures and trivial answers, row by row, and the training pictures.

    `centre` (1024,) and `axes` (1024, 64) are the mean and the principal axes of the training pictures' plain features,
    `train` (T, 64) their coordinates, `train_concept` (T,) a number for the concept of each.
    """

    rows: list[HeldOut]
    real: Look
    copies: Look
    centre: np.ndarray
    spread: float  # the mean length of a training picture's plain features from `centre`
    axes: np.ndarray
    train: np.ndarray
    train_concept: np.ndarray
    sha256: str


def look(images: Sequence[Image.Image], judge: OpenedJudge) -> Look:
    """Look at pictures of any size."""
    vectors, styles = judge.pictures(images)
    return Look(vectors, styles, plain(images), [leading_colour(image) for image in images])


def choose(reference: Reference, *, num: int = 512, seed: int = 0, splits: Sequence[str] = HELD_OUT) -> list[int]:
    """`num` rows, as many of each split, by chance and `seed`; the first ones of a larger choice are a smaller one's.

    They are ordered in turn, so that a drawing that was stopped has as many of each.
    """
    rng = random.Random(seed)
    by_split = []
    for split in splits:
        rows = sorted(
            (k for k, row in enumerate(reference.rows) if row.split == split), key=lambda k: reference.rows[k].caption
        )
        rng.shuffle(rows)
        by_split.append(rows)
    most = len(splits) * min(map(len, by_split))
    if not len(splits) <= num <= most:
        raise UsageError(
            f"The number of pictures is {num}; it must be from {len(splits)} to {most}, the held-out captions."
        )
    return [k for together in zip(*by_split, strict=False) for k in together][:num]


def build(data: Path, judge: OpenedJudge, report: Callable[[str], None] = print) -> Reference:
    """From a folder of `pixart data emoji`. Takes minutes: every picture is looked at.

    Raises PixArtError where the data is missing: it names the command that makes it.
    """
    missing = [split for split in SPLITS if not (data / split / "metadata.jsonl").is_file()]
    if missing:
        raise PixArtError(f"{data} has no {missing[0]}/metadata.jsonl. Make the data first: pixart data emoji {data}")
    train, held = read_split(data / "train"), [record for split in HELD_OUT for record in read_split(data / split)]
    where = {record.path: split for split in HELD_OUT for record in read_split(data / split)}
    report(f"reading {len(train):,} captions for the nearest of them to each of {len(held):,}")
    nearest = nearest_captions([record.text for record in held], [record.text for record in train], judge)
    real = _look_at(held, judge, report)
    copies = _look_at([train[k] for k in nearest], judge, report)
    features = np.concatenate([plain(list(map(_opened, part))) for part in _parts(train, report)])
    centre = features.mean(axis=0)
    away = features - centre
    _, axes = np.linalg.eigh(away.T @ away)
    axes = axes[:, ::-1][:, :COPY_DIMENSIONS]
    rows = [
        HeldOut(
            record.text, record.style, record.base_concept, where[record.path], _first_colour(record), train[k].text
        )
        for record, k in zip(held, nearest, strict=True)
    ]
    spread = float(np.sqrt((away**2).sum(axis=1).mean()))
    concept = np.unique([record.base_concept for record in train], return_inverse=True)[1]
    return Reference(rows, real, copies, centre, spread, np.ascontiguousarray(axes), away @ axes, concept, sha256="")


def nearest_captions(asked: Sequence[str], known: Sequence[str], judge: OpenedJudge) -> list[int]:
    """For each asked caption the known one whose mean token state is nearest (cosine), by the judge's text encoder."""
    from pixart.data.encode import encode_captions

    both, _ = encode_captions(judge.text_encoder, [*asked, *known])
    means = np.stack([states.float().mean(dim=0).numpy() for states in both])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return [int(k) for k in (means[: len(asked)] @ means[len(asked) :].T).argmax(axis=1)]


def save(reference: Reference, folder: Path) -> None:
    """Write it beside a judge: features in 16 or 8 bits, captions as JSON."""
    from safetensors.numpy import save_file

    tensors = {
        "centre": reference.centre.astype(np.float32),
        "spread": np.array([reference.spread], np.float32),
        "axes": reference.axes.astype(np.float16),
        "train_concept": reference.train_concept.astype(np.int32),
    }
    plains = (
        ("train", reference.train),
        ("real.plain", reference.real.plain),
        ("copies.plain", reference.copies.plain),
    )
    for name, values in plains:
        scale = np.abs(values).max(axis=0) / 127 + 1e-12
        tensors[name] = np.round(values / scale).astype(np.int8)
        tensors[f"{name}.scale"] = scale.astype(np.float32)
    for name, of in (("real", reference.real), ("copies", reference.copies)):
        tensors[f"{name}.vectors"] = of.vectors.astype(np.float16)
    rows = [
        {
            **asdict(row),
            "real": [reference.real.styles[k], reference.real.colours[k]],
            "copy": [reference.copies.styles[k], reference.copies.colours[k]],
        }
        for k, row in enumerate(reference.rows)
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    save_file(tensors, folder / FEATURES)
    (folder / ROWS).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def open_reference(folder: Path | None = None) -> Reference:
    """Read what `save` wrote; None is the one in the package. Raises PixArtError where it is not whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = folder or SHIPPED
    try:
        data, text = (folder / FEATURES).read_bytes(), (folder / ROWS).read_bytes()
        tensors, rows = load(data), json.loads(text)
        looks = {}
        for name in ("real", "copies"):
            told = [row["copy" if name == "copies" else name] for row in rows]
            features = tensors[f"{name}.plain"] * tensors[f"{name}.plain.scale"]
            looks[name] = Look(
                tensors[f"{name}.vectors"].astype(np.float32), [style for style, _ in told], features,
                [colour for _, colour in told],
            )  # fmt: skip
        return Reference(
            rows=[HeldOut(**{key: value for key, value in row.items() if key not in ("real", "copy")}) for row in rows],
            real=looks["real"],
            copies=looks["copies"],
            centre=tensors["centre"],
            spread=float(tensors["spread"][0]),
            axes=tensors["axes"].astype(np.float32),
            train=tensors["train"] * tensors["train.scale"],
            train_concept=tensors["train_concept"],
            sha256=hashlib.sha256(data + text).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"The reference in {folder} cannot be read ({reason}); give the data with --data.") from None


def _look_at(records: Sequence[Record], judge: OpenedJudge, report: Callable[[str], None]) -> Look:
    looks = [look([_opened(record) for record in part], judge) for part in _parts(records, report)]
    return Look(
        np.concatenate([one.vectors for one in looks]),
        [style for one in looks for style in one.styles],
        np.concatenate([one.plain for one in looks]),
        [colour for one in looks for colour in one.colours],
    )


def _parts(records: Sequence[Record], report: Callable[[str], None]) -> list[Sequence[Record]]:
    """Some at a time, so that not all pictures are in memory at once."""
    report(f"looking at {len(records):,} pictures")
    return [records[start : start + AT_ONCE] for start in range(0, len(records), AT_ONCE)]


def _opened(record: Record) -> Image.Image:
    try:
        with Image.open(record.path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise PixArtError(f"The picture {record.path} cannot be read: {error}") from None


def _first_colour(record: Record) -> str | None:
    """The first colour of the dense caption, "... icon of NAME, yellow, orange and red, on a white background"."""
    from pixart.captions.colours import COLOURS

    if record.style == "black and white":
        return None
    said = record.captions[-1].removesuffix(", on a white background").removesuffix(" on a white background")
    words = said.split(", ")[-3:]
    named = [w for part in words for w in part.replace("mostly ", "").split(" and ") if w in COLOURS]
    return named[0] if named and record.captions[-1].endswith(", on a white background") else None
