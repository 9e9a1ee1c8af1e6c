"""How figures were measured, beside the figures: what must be the same for two files to be compared."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pixart.errors import PixArtError
from pixart.evaluation.comparison.results import outcome
from pixart.evaluation.numbers.pictures import Folder, comparison_of
from pixart.evaluation.report import refuse_other_protocols
from pixart.evaluation.table import aligned

FORMAT = 1
# Of our own pictures' settings, what decides their figures and does not say who drew them.
DRAWING = (
    "steps", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_channels", "null_text", "sampler",
    "width", "height",
)  # fmt: skip


def drawing_protocol(folder: Folder) -> dict[str, object]:
    """Steps, guidance, sampler, size and seeds of a folder of our own pictures, by what the files or comparison say.

    A value that differs between pictures is a list; None is for pictures that do not say it, those of others.
    """
    from pixart.pipeline.image_files import read_settings

    plan = comparison_of(folder.path)
    if plan is not None:
        sessions = outcome(folder.path.resolve().parents[1], folder.path.resolve().name).sessions
        used = next((one.settings for one in reversed(sessions) if one.settings), {})
        return {name: used.get(name) for name in DRAWING} | {"seeds": _seeds(list(plan.seeds))}
    try:
        told = [read_settings(file) for file in folder.files]
    except PixArtError:
        return dict.fromkeys((*DRAWING, "seeds"))
    found: dict[str, object] = {}
    for name in DRAWING:
        values = sorted({json.dumps(one.get(name)) for one in told})
        found[name] = [json.loads(value) for value in values] if len(values) > 1 else json.loads(values[0])
    found["seeds"] = _seeds([one["seed"] for one in told if isinstance(one.get("seed"), int)])
    return found


def _seeds(seeds: list[int]) -> str | None:
    return f"{min(seeds)} to {max(seeds)}, {len(set(seeds))} of them" if seeds else None


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(model: Path) -> str:
    """SHA-256 over the weight files of a folder of transformers, or of one file."""
    if model.is_file():
        return hash_file(model)
    files = sorted(path for path in model.glob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
    return hashlib.sha256("".join(hash_file(path) for path in files).encode()).hexdigest()


def hash_texts(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def compare(paths: list[Path], across: tuple[str, ...] = ()) -> str:
    """Files of `pixart metrics` beside each other as text.

    Raises UsageError where they were not measured in the same way; `across` names what may differ.
    """
    told = [_read(path) for path in paths]
    refuse_other_protocols(paths, [one["protocol"] for one in told], across)
    names = list(dict.fromkeys(name for one in told for name in one["figures"]))
    rows = [["", *(path.name for path in paths)]]
    for name in names:
        rows.append([name, *(_shown(one["figures"].get(name)) for one in told)])
    marks = dict.fromkeys(mark for one in told for mark in one["marks"])
    return "\n".join([aligned(rows), *(f"biased: {mark}" for mark in marks)])


def _read(path: Path) -> dict:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] == FORMAT and {"figures", "marks", "protocol", "drawn"} <= set(told):
            return told
        reason = "another format"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
    raise PixArtError(f"{path} is not a file of pixart metrics ({reason}).")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
