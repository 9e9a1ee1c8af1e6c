"""The file of an evaluation: the figures with the protocol that they hold for, and when two files may be compared."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pixart.errors import PixArtError, UsageError
from pixart.evaluation import composition
from pixart.evaluation.drawing import Drawn
from pixart.evaluation.judge import OpenedJudge
from pixart.evaluation.reference import Look, Reference
from pixart.evaluation.score import CANDIDATES, Scores, per_picture, scores
from pixart.evaluation.statistics import Estimate, mean
from pixart.evaluation.table import FIGURES, GROUPS, aligned, written
from pixart.evaluation.table import lines as lines_of

# Of the settings, what says who drew and not how it was measured.
WHO = ("model", "model_hash", "engine", "dtype")
RESIZE = "judge: Lanczos to {size} px; plain: box filter to 16 and 64 px"
DRAWN, REAL, COPY = "drawn", "real pictures", "nearest caption's picture"


def report(drawn: Drawn, seen: Look, judge: OpenedJudge, reference: Reference, versions: dict[str, str]) -> dict:
    """Protocol, who drew, scores of model, real pictures and trivial answers, and each picture, as JSON values."""
    rows = drawn.rows
    captions = judge.captions([row.caption for row in reference.rows])
    each = per_picture(seen, rows, captions, reference)
    told = {
        DRAWN: scores(seen, rows, judge, reference),
        REAL: scores(reference.real[rows], rows, judge, reference),
        COPY: scores(reference.copies[rows], rows, judge, reference),
    }
    return {
        "format": 1,
        "protocol": {
            **{key: value for key, value in drawn.settings.items() if key not in WHO},
            "candidates": CANDIDATES,
            "judge": judge.sha256,
            "reference": reference.sha256,
            "resize": RESIZE.format(size=judge.size),
        },
        **{key: drawn.settings[key] for key in WHO},
        "versions": versions,
        "scores": {name: _plain(column) for name, column in told.items()},
        "pictures": [
            {
                "file": path.name,
                "caption": reference.rows[row].caption,
                "concept": reference.rows[row].base_concept,
                "split": reference.rows[row].split,
                "seed": drawn.settings["seed"] + number,
                **{name: _number(values[number]) for name, values in each.items()},
            }
            for number, (row, path) in enumerate(zip(rows, drawn.paths, strict=True))
        ],
    }


def columns(told: dict) -> dict[str, Scores]:
    """The scores of a report, as the table takes them."""
    return {
        name: {group: {figure: Estimate(**_nan(e)) for figure, e in found.items()} for group, found in column.items()}
        for name, column in told["scores"].items()
    }


def figures_of(told: dict) -> tuple[dict[str, str], tuple[tuple[str, str, str], ...]]:
    """The groups of captions and the figures that a report of its kind has."""
    return (composition.GROUPS, composition.FIGURES) if told.get("set") == composition.SET else (GROUPS, FIGURES)


def table(columns: dict[str, Scores], told: dict) -> str:
    """The columns as text, with the rows that `told`, a report, has."""
    return aligned(lines_of(columns, *figures_of(told)))


def read_report(path: Path) -> dict:
    """Raises PixArtError where it is no file of `pixart evaluate`."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] == 1 and {"protocol", "scores", "pictures", "model"} <= set(told):
            return told
        reason = "another format"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
    raise PixArtError(f"{path} is not a file of pixart evaluate ({reason}).")


def compare(paths: list[Path], across: tuple[str, ...] = ()) -> str:
    """Two or more reports beside each other as text, the first against each other one picture by picture.

    Raises UsageError where they were not measured in the same way; `across` names what may differ.
    """
    told = [read_report(path) for path in paths]
    refuse_other_protocols(paths, [one["protocol"] for one in told], across)
    named = {f"{one['model']} ({path.name})": columns(one)[DRAWN] for path, one in zip(paths, told, strict=True)}
    beside = {name: column for name, column in columns(told[0]).items() if name != DRAWN}
    lines = [table({**named, **beside}, told[0])]
    for path, other in zip(paths[1:], told[1:], strict=True):
        lines.append(f"\n{path.name} minus {paths[0].name}, picture by picture:")
        for name, words, kind in figures_of(told[0])[1]:
            difference = _difference(told[0]["pictures"], other["pictures"], name)
            if difference:
                lines.append(f"  {words}: {written(difference, kind)}")
    return "\n".join(lines)


def refuse_other_protocols(paths: list[Path], protocols: list[dict], across: tuple[str, ...]) -> None:
    """UsageError where the files `paths` were not measured as the first of them; `across` names what may differ."""
    known = protocols[0]
    strange = [key for key in across if not any(key in protocol for protocol in protocols)]
    if strange:
        raise UsageError(f"--across {strange[0]}: the protocol has {', '.join(known)}.")
    for path, other in zip(paths[1:], protocols[1:], strict=True):
        keys = [key for key in known.keys() | other.keys() if known.get(key) != other.get(key)]
        differ = sorted(set(keys) - set(across))
        if differ:
            shown = ", ".join(f"{key} {_short(known.get(key))} and {_short(other.get(key))}" for key in differ)
            raise UsageError(
                f"{paths[0]} and {path} were measured differently ({shown}), so their figures do not compare. "
                f"If that is what you ask about: --across {','.join(differ)}"
            )


def _difference(before: list[dict], after: list[dict], name: str) -> Estimate | None:
    """Of a figure that each picture has, over the captions that both have."""
    first = {row["caption"]: row.get(name) for row in before}
    pairs = [(row["concept"], row.get(name), first.get(row["caption"])) for row in after]
    kept = [(concept, b - a) for concept, b, a in pairs if a is not None and b is not None]
    if not kept:
        return None
    return mean(np.array([value for _, value in kept]), np.array([concept for concept, _ in kept]))


def _plain(column: Scores) -> dict:
    return {
        group: {name: {key: _number(part) for key, part in asdict(e).items()} for name, e in found.items()}
        for group, found in column.items()
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else round(float(value), 6)


def _nan(estimate: dict) -> dict:
    return {key: float("nan") if part is None else part for key, part in estimate.items()}


def _short(value: object) -> str:
    return "unknown" if value is None else str(value)[:24]
