"""The requests of a file of prompts for `pixart generate`, and what is left of them to generate."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixart.checkpoints.controlnet import ControlNetFile
from pixart.checkpoints.model_folder import ModelFolder
from pixart.config import plain
from pixart.errors import PixArtError, UsageError, shown
from pixart.evaluation.prompt_sets import SEPARATORS, Prompt, read_prompts
from pixart.files import write_whole
from pixart.pipeline.image_files import read_settings, slug, title
from pixart.pipeline.request import Request, control_for_images, make_request
from pixart.pipeline.restore import NAMES

LONGEST = 200  # bytes of a prompt as file name; most systems take 255 with number and ending
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
    layout: str | None = None,
) -> tuple[list[Job], int]:
    """What is left to generate of the file `path` into the folder `output`, and how many images are there.

    A line takes `settings` where it has none of its own. Its images are NUMBER-prompt-SEED.png; one that is there
    counts if its file says the same settings, and what `conditions` names besides. Neighbouring lines that differ in
    their prompts only are one job, so that they may share passes of the network.

    `layout` "geneval" or "t2i-compbench" gives images the names that the benchmark's scripts look for; the lines have
    no settings then, and a file that is there and does not count is refused, since the scripts would read it.

    Raises:
        UsageError: names the first line that is wrong, or the first such file.
    """
    there, left = 0, []
    rows = list(_requests(path, folder, settings, layout))
    for number, (prompt, request) in enumerate(rows):
        given = control is not None and request.control is not None
        wanted = conditions | {"control": control_for_images(control, request) if given else None}
        targets: list[Path | None] = []
        for image, seed in enumerate(request.seeds):
            target = output / _name(layout, number, prompt, request, image)
            done = _is_done(target, request, seed, wanted)
            if layout is not None and target.exists() and not done:
                raise UsageError(
                    f"{target} is there, and no image of this prompt, seed and settings; name a new folder."
                )
            targets.append(None if done else target)
        there += targets.count(None)
        if any(targets):
            left.append(Job(request, targets))
    if layout == "geneval":
        for number, (prompt, _) in enumerate(rows):
            about = {"tag": prompt.category, **prompt.about, "prompt": prompt.text}
            write_whole(output / f"{number:05}" / "metadata.jsonl", json.dumps(about) + "\n")
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


def _requests(
    path: Path, folder: ModelFolder, settings: dict[str, Any], layout: str | None
) -> Iterator[tuple[Prompt, Request]]:
    for prompt in read_prompts(path):
        own = prompt.about if layout is None else {}
        try:
            if path.suffix.lower() in SEPARATORS:  # other columns are notes, such as PartiPrompts' Category
                if named := own.keys() & set(KEYS):
                    raise UsageError(f'settings are read from .jsonl only, and the column "{min(named)}" is one.')
                own = {}
            if strange := own.keys() - set(KEYS):
                raise UsageError(f'there is no setting "{shown(min(strange))}"; there are: {", ".join(KEYS)}.')
            if layout == "t2i-compbench" and ("/" in prompt.text or len(prompt.text.encode()) > LONGEST):
                raise UsageError(f'T2I-CompBench has the prompt as file name, which "{shown(prompt.text)}" cannot be.')
            yield prompt, make_request(folder, prompt.text, **settings | own)
        except PixArtError as error:
            raise UsageError(f"{shown(str(path), 200)}, line {prompt.line}: {error}") from None


def _name(layout: str | None, number: int, prompt: Prompt, request: Request, image: int) -> str:
    """The file of an image of a prompt, both counted from 0."""
    if layout == "geneval":  # evaluation/evaluate_images.py of djghosh13/geneval
        return f"{number:05}/samples/{image:04}.png"
    if layout == "t2i-compbench":  # the README of Karine-Huang/T2I-CompBench: the number counts over all images
        return f"samples/{prompt.text}_{number * request.num_images + image:06}.png"
    return f"{prompt.line:04}-{slug(title(prompt.text, request.style))}-{request.seeds[image]}.png"


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
