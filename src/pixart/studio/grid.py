"""Variations: one prompt and seed, with another guidance, number of steps or style in every column and row."""

from itertools import product
from typing import Any

from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.errors import UsageError
from pixart.pipeline.prompts import NO_STYLE, find_style
from pixart.pipeline.request import Request
from pixart.studio.fields import checked

NO_AXIS = "Nothing"
FIELD = {"Guidance scale": "guidance_scale", "Steps": "steps", "Style": "style"}
AXES = [NO_AXIS, *FIELD]
EXAMPLES = {"Guidance scale": "1, 3, 4.5, 7", "Steps": "4, 8, 16, 32", "Style": "", NO_AXIS: ""}
MAX_CELLS = 36


def axis_values(axis: str, text: str, folder: ModelFolder) -> list[float | int | str | None]:
    """What an axis' field holds, separated by commas: numbers, or names of styles (none: the model's own).

    Raises:
        UsageError: the axis, a number or a style is none; says which.
    """
    if axis == NO_AXIS:
        return [None]
    if axis not in FIELD:
        raise UsageError(f'There is no axis "{axis}"; choose one of: {", ".join(AXES)}.')
    words = [word.strip() for word in (text or "").replace(";", ",").split(",") if word.strip()]
    if axis == "Style":
        styles = known_styles(folder.styles)
        return [find_style(word, styles) or NO_STYLE for word in words or list(folder.styles)]
    if not words:
        raise UsageError(f"There are no values for {axis.lower()}; type some, with commas between.")
    kind = int if axis == "Steps" else float
    try:
        return [kind(word) for word in words]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"The values for {axis.lower()} must be {what} with commas between, not {text!r}.") from None


def grid_of(
    values: dict[str, Any], x: tuple[str, str], y: tuple[str, str], folder: ModelFolder
) -> tuple[list[Request], list[str], int]:
    """The requests of a grid, row by row, its labels and how many columns it has.

    `x` and `y` are an axis of AXES and the text of its values. Raises UsageError for what cannot be.
    """
    across, down = (axis_values(axis, text, folder) for axis, text in (x, y))
    if x[0] == y[0]:
        raise UsageError(f"Both axes of the grid are {x[0].lower()}; choose two, or nothing for one of them.")
    if not 1 <= len(across) * len(down) <= MAX_CELLS:
        raise UsageError(f"A grid of {len(across)} by {len(down)} cannot be; it has 1 to {MAX_CELLS} cells.")
    values = {**values, "num_images": 1}
    # One seed for all cells, chosen now if it is to be random.
    values |= {"seed": checked(values, folder).seeds[0], "random_seed": False}
    requests, labels = [], []
    for row, column in product(down, across):
        changes = {axis: value for axis, value in ((x[0], column), (y[0], row)) if axis != NO_AXIS}
        requests.append(checked({**values, **{FIELD[axis]: value for axis, value in changes.items()}}, folder))
        labels.append(" · ".join(_label(axis, value) for axis, value in changes.items()))
    return requests, labels, len(across)


def _label(axis: str, value: Any) -> str:
    return str(value) if axis == "Style" else f"{axis.removesuffix(' scale').lower()} {value:g}"
