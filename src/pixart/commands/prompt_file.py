"""A file of prompts for `pixart generate`: one a line, or JSON lines with settings; and what is left of it to do."""

import itertools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.model_folder import ModelFolder
from pixart.config import plain
from pixart.errors import PixArtError, UsageError, shown
from pixart.files import parse_json, read_bytes
from pixart.pipeline.image_files import read_settings, slug, title
from pixart.pipeline.request import Request, control_for_images, make_request
from pixart.pipeline.restore import NAMES

MAX_BYTES = 16 << 20
LINE_END = re.compile(r"\r?\n|\r")
MAX_LINES = 100_000
TOGETHER = 64  # prompts of a job; what is encoded of them may be kept until its end
KEYS = ("prompt", "num_images", "image", "mask", "outpaint", "control_image", "control_scale", *NAMES)


@dataclass(frozen=True)
class Job:
    """A request, and where to write its images, prompt by prompt and seed by seed; None: that one is there already."""

    request: Request
    targets: list[Path | None]


def jobs_of(
    path: Path,
    folder: ModelFolder,
    settings: dict[str, Any],
    output: Path,
    conditions: dict[str, Any],
    control: ControlNetFile | None = None,
) -> tuple[list[Job], int]:
    """What is left to generate of the file `path` into the folder `output`, and how many images are there.

    A line takes `settings` where it has none of its own. Its images are NUMBER-prompt-SEED.png; one that is there
    counts if its file says the same settings, and what `conditions` names besides. Neighbouring lines that differ in
    their prompts only are one job, so that they may share passes of the network.

    Raises:
        UsageError: names the first line that is wrong.
    """
    there, left = 0, []
    for number, request in _read(path, folder, settings):
        given = control is not None and request.control is not None
        wanted = conditions | {"control": control_for_images(control, request) if given else None}
        stem = f"{number:04}-{slug(title(request.prompts[0], request.style))}"
        targets: list[Path | None] = []
        for seed in request.seeds:
            target = output / f"{stem}-{seed}.png"
            targets.append(None if _is_done(target, request, seed, wanted) else target)
        there += targets.count(None)
        if any(targets):
            left.append(Job(request, targets))
    jobs = []
    for _, group in itertools.groupby(left, lambda job: _settings_of(job.request)):
        alike = list(group)
        for some in (alike[start : start + TOGETHER] for start in range(0, len(alike), TOGETHER)):
            together = replace(
                some[0].request,
                prompts=tuple(prompt for job in some for prompt in job.request.prompts),
                resolved_prompts=tuple(prompt for job in some for prompt in job.request.resolved_prompts),
            )
            jobs.append(Job(together, [target for job in some for target in job.targets]))
    return jobs, there


def prompts_of_stdin() -> list[str]:
    """The lines of standard input, without empty ones. Raises UsageError where they are too many, or no text."""
    content = sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b""  # None where it is closed
    if len(content) > MAX_BYTES:
        raise UsageError(f"Standard input has more than {MAX_BYTES:,} bytes.")
    try:
        prompts = [line.strip() for line in LINE_END.split(content.decode("utf-8-sig")) if line.strip()]
    except UnicodeDecodeError:
        raise UsageError("Standard input is not a text in UTF-8.") from None
    if not 0 < len(prompts) <= MAX_LINES:
        raise UsageError(f"Standard input has {len(prompts):,} prompts; from 1 to {MAX_LINES:,} are taken.")
    return prompts


def _read(path: Path, folder: ModelFolder, settings: dict[str, Any]) -> list[tuple[int, Request]]:
    name = shown(str(path), 200)
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not a text in UTF-8.") from None
    rows = [(number, row.strip()) for number, row in enumerate(LINE_END.split(text), 1) if row.strip()]
    if not 0 < len(rows) <= MAX_LINES:
        raise UsageError(f"{name} has {len(rows):,} prompts; from 1 to {MAX_LINES:,} are taken.")
    lines = []
    for number, row in rows:
        try:
            own = _json(row) if path.suffix.lower() == ".jsonl" else {"prompt": row}
            lines.append((number, make_request(folder, **settings | own)))
        except PixArtError as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
    return lines


def _json(row: str) -> dict[str, Any]:
    own = parse_json(row, "It")
    if not isinstance(own, dict) or not isinstance(own.get("prompt"), str):
        raise UsageError('it must be a JSON object with a "prompt".')
    if strange := own.keys() - set(KEYS):
        raise UsageError(f'there is no setting "{shown(min(strange))}"; there are: {", ".join(KEYS)}.')
    return own


def _settings_of(request: Request) -> tuple[Any, ...]:
    control = request.control and (request.control.image, request.control_scale)
    return (request.num_images, request.image, control, *(getattr(request, name) for name in NAMES))


def _is_done(path: Path, request: Request, seed: int, conditions: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    try:
        record = read_settings(path)
    except PixArtError:
        return False
    image = request.image and request.image.fitted(request.image_height, request.image_width, lambda notice: None)
    wanted = {name: plain(getattr(request, name)) for name in NAMES} | conditions
    wanted |= {"seed": seed, "resolved_prompt": request.resolved_prompts[0], "image": image and image.hashes}
    return all(record.get(name) == value for name, value in wanted.items())
