"""What a comparison is made of: comparison.json in its folder. The same plan goes on there, another is refused."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import SAME_BYTES, Model, Settings
from pixart.evaluation.prompt_sets import Prompt

PLAN = "comparison.json"
LOCK = "lock.json"  # of the command that draws here
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """A prompt as every model gets it: with a style, its words are in `text` and `negative_prompt` already."""

    text: str
    set: str
    category: str
    about: dict[str, Any]
    style: str | None = None
    negative_prompt: str = ""


@dataclass(frozen=True)
class Cell:
    """One picture of a model: the number of its row, and its seed."""

    row: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.row:04d}-{self.seed}.png"


@dataclass(frozen=True)
class Plan:
    """Everything that decides the pictures. `id` names it: votes belong to one plan."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    models: tuple[Model, ...]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(row, seed) for row in range(len(self.rows)) for seed in self.seeds]

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(_deciding(_as_json(self)), sort_keys=True).encode()).hexdigest()[:12]


def make_rows(prompts: list[Prompt], styles: dict[str, Any] | None) -> tuple[Row, ...]:
    """The prompts; or each of them in each style (name -> sampling.prompts.Style)."""
    from pixart.pipeline.prompts import apply_style

    rows = []
    for prompt in prompts:
        common = {"set": prompt.set, "category": prompt.category, "about": prompt.about}
        if styles is None:
            rows.append(Row(prompt.text, **common))
            continue
        for name, style in styles.items():
            text, negative = apply_style(prompt.text, "", style)
            rows.append(Row(text, **common, style=name, negative_prompt=negative))
    return tuple(rows)


def check_free(plan: Plan, folder: Path) -> None:
    """Whether `plan` can begin or go on in `folder`; writes nothing.

    Raises:
        UsageError: the folder holds another comparison (says what differs) or something else.
        PixArtError: its plan cannot be read.
    """
    if (folder / PLAN).is_file():
        different = _difference(_deciding(_as_json(read(folder))), _deciding(_as_json(plan)))
        if different:
            raise UsageError(f"{folder} holds another comparison: {different}. Give another --output for this one.")
    elif folder.is_file():
        raise UsageError(f"{folder} is a file; give a folder with --output.")
    elif folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise UsageError(f"{folder} is in use and holds no comparison; give a new folder with --output.")


def begin(plan: Plan, folder: Path) -> None:
    """Make `folder` the place of this plan, or go on with it; raises as `check_free`.

    What changes no byte of a picture may differ from what it began with. Raises PixArtError if it cannot be written.
    """
    check_free(plan, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PLAN, json.dumps({"format": FORMAT, "id": plan.id, **_as_json(plan)}, indent=1).encode())
    except OSError as error:
        raise PixArtError(f"{folder} cannot be written: {error.strerror or error}.") from None


def read(folder: Path) -> Plan:
    """The plan of a comparison's folder. Raises PixArtError where there is none or it is damaged."""
    path = folder / PLAN
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, and this version reads {FORMAT}")
        return Plan(
            rows=tuple(Row(**row) for row in value["prompts"]),
            seeds=tuple(value["seeds"]),
            models=tuple(Model(**{**model, "settings": Settings(**model["settings"])}) for model in value["models"]),
        )
    except FileNotFoundError:
        raise PixArtError(f"{folder} holds no comparison: {path.name} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PixArtError(f"{path} cannot be read ({error}).") from None


def _as_json(plan: Plan) -> dict[str, Any]:
    rows = [dataclasses.asdict(row) for row in plan.rows]
    models = [{**dataclasses.asdict(model), "settings": model.settings.given()} for model in plan.models]
    # Through JSON, so that what was read again equals what was written.
    return json.loads(json.dumps({"prompts": rows, "seeds": list(plan.seeds), "models": models}))


def _deciding(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without the settings that change no byte of a picture."""
    models = []
    for model in plan["models"]:
        kept = {key: value for key, value in model["settings"].items() if key not in SAME_BYTES}
        models.append({**model, "settings": kept})
    return {**plan, "models": models}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What differs first, in words: what is there, and what was asked for."""
    if old == new:
        return None
    theirs, ours = ([model["name"] for model in plan["models"]] for plan in (old, new))
    if theirs != ours:
        return f"of {', '.join(theirs)}, not of {', '.join(ours)}"
    for before, now in zip(old["models"], new["models"], strict=True):
        for key in ("source", "kind"):
            if before[key] != now[key]:
                return f"its model {now['name']} has {key} {before[key]}, not {now[key]}"
        for key in sorted(before["settings"] | now["settings"]):
            was, asked = before["settings"].get(key), now["settings"].get(key)
            if was != asked:
                return f"its model {now['name']} has {key} {_said(was)}, not {_said(asked)}"
    if old["seeds"] != new["seeds"]:
        return f"its seeds are {_listed(old['seeds'])}, not {_listed(new['seeds'])}"
    if len(old["prompts"]) != len(new["prompts"]):
        return f"it has {len(old['prompts']):,} prompts, not {len(new['prompts']):,}"
    number = next(n for n, pair in enumerate(zip(old["prompts"], new["prompts"], strict=True)) if pair[0] != pair[1])
    return f'its prompt {number} is "{old["prompts"][number]["text"]}", not "{new["prompts"][number]["text"]}"'


def _said(value: Any) -> str:
    return "left to the model" if value is None else str(value)


def _listed(values: list[int]) -> str:
    return " ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")


def write_whole(path: Path, data: bytes) -> None:
    """The file appears under its name only when all of it is on disk."""
    import os

    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
