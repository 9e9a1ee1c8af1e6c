"""Variations: one prompt and seed, with another guidance, number of steps or style in every column and row."""

from dataclasses import asdict, replace
from itertools import product

from pixart.checkpoints.model_folder import ModelFolder
from pixart.checkpoints.styles import known_styles
from pixart.errors import UsageError
from pixart.pipeline.prompts import NO_STYLE, find_style
from pixart.pipeline.request import Request
from pixart.web.form import Form

NO_AXIS = "Nothing"
FIELD = {"Guidance scale": "guidance_scale", "Steps": "steps", "Style": "style"}
AXES = [NO_AXIS, *FIELD]
DEFAULT_VALUES = {"Guidance scale": "1, 3, 4.5, 7", "Steps": "4, 8, 16, 32", "Style": "", NO_AXIS: ""}
MAX_CELLS = 36


def axis_values(axis: str, text: str, folder: ModelFolder) -> list[float | int | str | None]:
    """What stands in an axis' field, separated by commas: numbers, or names of styles (none: the model's own).

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
        return [find_style(word, styles, [NO_STYLE, *styles]) or NO_STYLE for word in words or list(folder.styles)]
    if not words:
        raise UsageError(f"There are no values for {axis.lower()}; type some, with commas between.")
    kind = int if axis == "Steps" else float
    try:
        return [kind(word) for word in words]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"The values for {axis.lower()} must be {what} with commas between, not {text!r}.") from None


class Grid:
    """The requests of a grid, row by row, and its labels."""

    def __init__(self, form: Form, x: tuple[str, str], y: tuple[str, str], folder: ModelFolder):
        """`x` and `y` are an axis of AXES and the text of its values. Raises UsageError for what cannot be."""
        across, down = (axis_values(axis, text, folder) for axis, text in (x, y))
        if x[0] == y[0]:
            raise UsageError(f"Both axes of the grid are {x[0].lower()}; choose two, or nothing for one of them.")
        if len(across) * len(down) > MAX_CELLS:
            raise UsageError(
                f"A grid of {len(across)} by {len(down)} has {len(across) * len(down)} cells; at most {MAX_CELLS}."
            )
        seed = form.requests(folder)[0].seeds[0]  # one seed for all cells, chosen now if it is to be random
        self.columns = len(across)
        self.form = replace(form, num_images=1, batches=1).with_seed(seed)
        self.cells = [(column, row) for row, column in product(down, across)]
        self.x, self.y = x[0], y[0]
        self.labels = tuple(
            " · ".join(_label(axis, value) for axis, value in ((x[0], column), (y[0], row)) if axis != NO_AXIS)
            for column, row in self.cells
        )

    def requests(self, folder: ModelFolder) -> list[Request]:
        requests = []
        for column, row in self.cells:
            changes = {FIELD[axis]: value for axis, value in ((self.x, column), (self.y, row)) if axis != NO_AXIS}
            requests += replace(self.form, **changes).requests(folder)
        return requests

    def record(self) -> dict:
        """The form as it stood, for run.json."""
        return asdict(self.form)


def _label(axis: str, value: float | int | str | None) -> str:
    return str(value) if axis == "Style" else f"{axis.removesuffix(' scale').lower()} {value:g}"
