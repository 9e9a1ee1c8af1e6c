"""Generating images for captions, so that a run that was stopped goes on, and reports of what the judge finds."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emojis.judge import Judge
from emojis.measures import CANDIDATES, Estimate, check_enough, mean, per_image, scores
from emojis.reference import Reference, choose, look
from pixart import Pipeline
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.metrics import read
from pixart.files import read_json_object
from pixart.pipeline.image_files import read_settings, slug, write_image

# Of an image's settings: what says how it was generated, and what says by which model.
HOW = ("steps", "guidance_scale", "guidance_interval", "guidance_rescale", "sampler", "width", "height")
WHO = ("model", "model_hash", "fast", "engine", "dtype")
GENERATED, REAL, COPY = "generated", "real images", "nearest caption's image"
GROUPS = {
    "all": "all captions",
    "test_cells": "known concepts, unseen style",
    "test_concepts": "unseen concepts",
    "colour": "thing x colour",
    "skin tone": "person x skin tone x style",
}
# Name: words, kind. The first are those of validation captions, the others those of compositions.
METRICS = {
    "retrieval_at_1": ("own caption first of 500", "share"),
    "retrieval_at_10": ("own caption in the first 10 of 500", "share"),
    "style_accuracy": ("style right", "share"),
    "colour_accuracy": ("leading colour right", "share"),
    "similarity_to_true": ("similarity to the true image", "number"),
    "kernel_distance_judge": ("kernel distance x 1000, judge (lower is better)", "distance"),
    "kernel_distance_plain": ("kernel distance x 1000, plain (lower is better)", "distance"),
    "memorised_share": ("memorised", "share"),
    "thing": ("thing right, of 60", "share"),
    "style": ("style right", "share"),
    "colour": ("colour right", "share"),
    "tone": ("skin tone right, of five", "share"),
    "every": ("all of it right", "share"),
}
Scores = dict[str, dict[str, Estimate]]
Report = Callable[[str], None]


def evaluate(
    pipeline: Pipeline, judge: Judge, reference: Reference, *, num: int, seed: int, settings: dict[str, Any],
    folder: Path | None, report: Report,
) -> tuple[dict, Path]:  # fmt: skip
    """Generate and judge images for `num` validation captions; the report as JSON has it, and the folder of the images.

    Raises as `generate`, and UsageError where there are too few or too many captions.
    """
    check_enough(num)
    rows = choose(reference, num=num, seed=seed)
    chosen = [reference.rows[k] for k in rows]
    paths, shared = generate(pipeline, [row.caption for row in chosen], seed, settings, folder, report)
    report(f"judging {num:,} images")
    seen = look([read(path) for path in paths], judge)
    columns = {
        GENERATED: scores(seen, rows, judge, reference),
        REAL: scores(reference.real[rows], rows, judge, reference),
        COPY: scores(reference.copies[rows], rows, judge, reference),
    }
    named = [{"caption": row.caption, "concept": row.base_concept, "group": row.split} for row in chosen]
    each = per_image(seen, rows, judge, reference)
    protocol = {"set": "validation captions", "candidates": CANDIDATES}
    return as_report(judge, reference, shared, seed, protocol, columns, named, each, paths), paths[0].parent


def generate(
    pipeline: Pipeline, captions: Sequence[str], seed: int, settings: dict[str, Any], folder: Path | None,
    report: Report,
) -> tuple[list[Path], dict[str, Any]]:  # fmt: skip
    """Generate what is missing in `folder`, image k with the seed `seed + k`; files, and the settings that all share.

    `settings` are options of the pipeline. An image that cannot be read is generated again. Without a folder it is one
    in runs/evaluate/, by the model and the settings.

    Raises:
        UsageError: the folder holds images that were generated otherwise. PixArtError: it cannot be written.
    """
    # The first image is always generated, since it says what the settings come to.
    first = json.loads(json.dumps(pipeline(captions[0], seed=seed, **settings).settings[0]))
    shared = {key: first.get(key) for key in (*WHO, *HOW)}
    name = hashlib.sha256(json.dumps([seed, shared], sort_keys=True).encode()).hexdigest()[:8]
    folder = folder or Path("runs") / "evaluate" / f"{slug(str(shared['model']))}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PixArtError(f"{folder} cannot be made: {error.strerror}.") from None
    paths = [folder / f"{number:04}-{slug(caption)}.png" for number, caption in enumerate(captions)]
    missing = []
    for number, path in enumerate(paths):
        found = _settings(path)
        if found is None:
            missing.append(number)
            continue
        wanted = shared | {"prompt": captions[number], "seed": seed + number}
        differ = [key for key, value in wanted.items() if found.get(key) != value]
        if differ:
            raise UsageError(f"{path} was generated with another {' and '.join(differ)}; give another --images.")
    if missing and len(missing) < len(paths):
        report(f"{len(paths) - len(missing):,} of {len(paths):,} images are in {folder} already")
    for count, number in enumerate(missing, 1):
        result = pipeline(captions[number], seed=seed + number, **settings)
        paths[number].unlink(missing_ok=True)
        write_image(result.images[0], result.settings[0], paths[number])
        if count % 16 == 0 or count == len(missing):
            report(f"generated {count:,} of {len(missing):,}")
    return paths, shared


def as_report(
    judge: Judge, reference: Reference, shared: dict, seed: int, protocol: dict, columns: dict[str, Scores],
    named: list[dict], each: dict[str, np.ndarray], paths: Sequence[Path],
) -> dict:  # fmt: skip
    """What was measured and how, as JSON has it: `named` and `each` are of every image, `columns` of all together."""
    how = {key: shared[key] for key in HOW}
    return {
        "format": 1,
        "protocol": {"num": len(paths), "seed": seed, **how, **protocol, "judge": judge.sha256,
                     "reference": reference.sha256},
        **{key: shared[key] for key in WHO},
        "scores": {
            column: {
                group: {name: {key: _number(part) for key, part in asdict(e).items()} for name, e in found.items()}
                for group, found in groups.items()
            }
            for column, groups in columns.items()
        },
        "images": [
            {"file": path.name, "seed": seed + k, **row, **{name: _number(values[k]) for name, values in each.items()}}
            for k, (row, path) in enumerate(zip(named, paths, strict=True))
        ],
    }  # fmt: skip


def table(told: dict, columns: dict[str, dict] | None = None) -> str:
    """The scores of a report as text: a column each, a block of lines for each group of captions."""
    columns = columns or told["scores"]
    rows = [["", *columns]]
    for group, metrics in told["scores"][GENERATED].items():
        rows.append([GROUPS[group].upper(), *("" for _ in columns)])
        for name in metrics:
            words, kind = METRICS[name]
            cells = [column.get(group, {}).get(name) for column in columns.values()]
            rows.append([words, *("-" if cell is None else _written(cell, kind) for cell in cells)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def compare(paths: list[Path], across: tuple[str, ...] = ()) -> str:
    """Two or more reports beside each other as text, the first against each other one image by image.

    Raises UsageError where they were not measured in the same way; `across` names what may differ.
    """
    if len(paths) < 2:
        raise UsageError("Give two reports or more to compare.")
    told = [_read_report(path) for path in paths]
    for path, other in zip(paths[1:], told[1:], strict=True):
        known, theirs = told[0]["protocol"], other["protocol"]
        differ = sorted(k for k in known.keys() | theirs.keys() if known.get(k) != theirs.get(k) and k not in across)
        if differ:
            values = ", ".join(f"{key} {str(known.get(key))[:24]} and {str(theirs.get(key))[:24]}" for key in differ)
            raise UsageError(
                f"{paths[0]} and {path} were measured differently ({values}), so they do not compare. "
                f"If that is what you ask about: --across {','.join(differ)}"
            )
    columns = {f"{one['model']} ({path.name})": one["scores"][GENERATED] for path, one in zip(paths, told, strict=True)}
    columns |= {name: column for name, column in told[0]["scores"].items() if name != GENERATED}
    lines = [table(told[0], columns)]
    before = {row["caption"]: row for row in told[0]["images"]}
    for path, other in zip(paths[1:], told[1:], strict=True):
        lines.append(f"\n{path.name} minus {paths[0].name}, image by image:")
        for name, (words, kind) in METRICS.items():
            pairs = [
                (row["concept"], row[name] - before[row["caption"]][name])
                for row in other["images"]
                if row.get(name) is not None and before.get(row["caption"], {}).get(name) is not None
            ]
            if pairs:
                concepts, differences = zip(*pairs, strict=True)
                lines.append(f"  {words}: {_written(asdict(mean(np.array(differences), np.array(concepts))), kind)}")
    return "\n".join(lines)


def _read_report(path: Path) -> dict:
    report = read_json_object(path)
    if report.get("format") != 1 or not {"protocol", "scores", "images", "model"} <= set(report):
        raise PixArtError(f"{path} is not a report of make.py evaluate.")
    return report


def _settings(path: Path) -> dict | None:
    """What a finished image says of itself; None where there is none that can be read."""
    try:
        with Image.open(path) as image:
            image.load()
        return read_settings(path)
    except (OSError, ValueError, SyntaxError, PixArtError):
        return None


def _written(estimate: dict, kind: str) -> str:
    """As a person reads it, with its interval in brackets."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or low is None:
        return "-"
    if kind == "share":
        return f"{value:.1%} ({low:.1%} to {high:.1%})"
    digits = 2 if kind == "number" else 1
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else round(float(value), 6)
