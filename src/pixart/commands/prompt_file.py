"""The requests of a file of prompts for `pixart generate`, and what is left of them to generate."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.model_folder import ModelFolder
from pixart.config import plain
from pixart.errors import PixArtError, UsageError, shown
from pixart.evaluation.prompt_sets import read_prompts
from pixart.pipeline.image_files import read_settings, slug, title
from pixart.pipeline.request import Request, control_for_images, make_request
from pixart.pipeline.restore import NAMES

TOGETHER = 64  # prompts of a job; what is encoded of them may be kept until its end
KEYS = ("num_images", "image", "mask", "outpaint", "control_image", "control_scale", *NAMES)


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
    for number, request in list(_requests(path, folder, settings)):
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


def _requests(path: Path, folder: ModelFolder, settings: dict[str, Any]) -> Iterator[tuple[int, Request]]:
    for prompt in read_prompts(path):
        try:
            if strange := prompt.about.keys() - set(KEYS):
                raise UsageError(f'there is no setting "{shown(min(strange))}"; there are: {", ".join(KEYS)}.')
            yield prompt.line, make_request(folder, prompt.text, **settings | prompt.about)
        except PixArtError as error:
            raise UsageError(f"{shown(str(path), 200)}, line {prompt.line}: {error}") from None


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
