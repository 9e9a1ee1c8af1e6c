"""Drawing held-out captions into a folder, so that a run that was stopped goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pixart.errors import PixArtError, UsageError
from pixart.evaluation.reference import Reference, choose

if TYPE_CHECKING:
    from pixart.pipeline.pipeline import Pipeline

SETTINGS = "drawn-as.json"


@dataclass(frozen=True)
class Asked:
    """What is drawn and how; None is the model's own. Picture k has the seed `seed + k`."""

    num: int = 512
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    size: int | None = None

    def request(self, pipeline: "Pipeline", caption: str, number: int):
        """The checked request of picture `number`."""
        from pixart.pipeline.request import make_request

        return make_request(
            pipeline.folder,
            caption,
            seed=self.seed + number,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            sampler=self.sampler,
            width=self.size,
            height=self.size,
        )


@dataclass(frozen=True)
class Drawn:
    """Rows of the reference, the picture files drawn for them, and what was the same for all of them."""

    rows: list[int]
    paths: list[Path]
    settings: dict


def settings_of(pipeline: "Pipeline", asked: Asked) -> dict:
    """Every setting that decides the pictures, resolved: what a folder of pictures is known by."""
    from pixart.checkpoints.model_folder import weight_hashes

    request = asked.request(pipeline, "", 0)
    hashes = weight_hashes(pipeline.folder)
    engine = pipeline.provenance
    return {
        "num": asked.num,
        "seed": asked.seed,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "guidance_interval": list(request.guidance_interval),
        "guidance_rescale": request.guidance_rescale,
        "sampler": request.sampler,
        "width": request.width,
        "height": request.height,
        "model": pipeline.folder.name,
        "model_hash": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        "engine": engine.get("engine"),
        "dtype": engine.get("dtype"),
    }


def draw(
    pipeline: "Pipeline",
    reference: Reference,
    asked: Asked,
    folder: Path,
    report: Callable[[str], None],
) -> Drawn:
    """Draw the held-out captions that are missing in `folder`; raises as `draw_captions`."""
    rows = choose(reference, num=asked.num, seed=asked.seed)
    paths = draw_captions(pipeline, [reference.rows[k].caption for k in rows], asked, folder, report)
    return Drawn(rows, paths, settings_of(pipeline, asked))


def draw_captions(
    pipeline: "Pipeline", captions: Sequence[str], asked: Asked, folder: Path, report: Callable[[str], None]
) -> list[Path]:
    """Draw what is missing in `folder`; a picture that cannot be read is drawn again. Returns a file for each caption.

    Raises:
        UsageError: the folder holds pictures that were drawn otherwise. PixArtError: it cannot be written.
    """
    from pixart.pipeline.image_files import slug, write_image

    settings = settings_of(pipeline, asked)
    _claim(folder, {key: value for key, value in settings.items() if key != "num"})
    paths = [folder / f"{number:04}-{slug(caption)}.png" for number, caption in enumerate(captions)]
    missing = [number for number, path in enumerate(paths) if not whole(path)]
    if missing and len(missing) < len(paths):
        report(f"{len(paths) - len(missing):,} of {len(paths):,} pictures are in {folder} already")
    for count, number in enumerate(missing, 1):
        request = asked.request(pipeline, captions[number], number)
        picture = next(iter(pipeline.generate(request)))
        paths[number].unlink(missing_ok=True)
        write_image(picture.image, picture.settings, paths[number])
        if count % 16 == 0 or count == len(missing):
            report(f"drew {count:,} of {len(missing):,}")
    return paths


def read(paths: list[Path]) -> list[Image.Image]:
    """The pictures, in memory."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


def usual_folder(pipeline: "Pipeline", asked: Asked) -> Path:
    """Where the pictures go that nobody named a place for: the same for the same model and settings."""
    from pixart.pipeline.image_files import slug

    told = {key: value for key, value in settings_of(pipeline, asked).items() if key != "num"}
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "evaluate" / f"{slug(pipeline.folder.name)}-{name}"


def _claim(folder: Path, settings: dict) -> None:
    """Note in the folder how its pictures are drawn; refuse one whose pictures were drawn otherwise."""
    path = folder / SETTINGS
    try:
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            differ = [key for key in settings if there.get(key) != settings[key]]
            if differ:
                raise UsageError(
                    f"{folder} holds pictures drawn with another {' and '.join(differ)}; give another --pictures."
                )
            return
        if folder.is_dir() and any(folder.glob("*.png")):
            raise UsageError(f"{folder} holds pictures already, and no {SETTINGS}; give another --pictures.")
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        os.replace(partial, path)
    except (OSError, ValueError) as error:
        raise PixArtError(f"{folder} cannot be used for pictures: {error}.") from None


def whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, ValueError, SyntaxError):
        return False
