"""`pixart verify`: generate an image again from the settings in its file, and compare every pixel."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from pixart.config import shown as option
from pixart.errors import PixArtError, UsageError, shown
from pixart.pipeline.image_metadata import ImageTexts, read_texts

MAX_FILE = 256 * 2**20  # bytes
CODES = {"identical": 0, "differs": 1, "unchecked": 2}


@dataclass
class Verify:
    """Generate images again from the settings in their files, and compare every pixel.

    The model is found by its hash: the shipped one, one in the Hub's cache, or the one that --model names. Engine,
    dtype and threads are the image's own where they can be had. Exit code 0: all are identical; 1: one differs, with
    the reasons; 2: one could not be checked.
    """

    files: Positional[Annotated[list[Path], arg(metavar="FILE")]]
    """PNG or WebP files."""
    model: Annotated[str | None, option("MODEL", "found by its hash")] = None
    """Model folder, hub id, or an official file with --parts."""
    parts: Annotated[str | None, option("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    json: bool = False
    """Print one JSON object per image instead of sentences."""


@dataclass
class Report:
    """The result for one image. Differences are of 255, over all values of all pixels."""

    path: str
    verdict: Literal["identical", "differs", "unchecked"]
    reasons: list[str] = field(default_factory=list)
    generated_with: str = ""
    maximum: int | None = None
    mean: float | None = None
    share: float | None = None  # of the values that differ
    file_sha256: str | None = None
    stored_sha256: str | None = None
    generated_sha256: str | None = None


def verify(options: Verify) -> int:
    """Run `pixart verify`; prints a line per image, and a line per reason."""
    if not options.files:
        raise UsageError("There is no image to verify; name at least one PNG file.")
    code, pipelines = 0, {}
    for path in options.files:
        try:
            report = check(path, model=options.model, parts=options.parts, pipelines=pipelines)
        except PixArtError as error:
            report = Report(shown(str(path), 500), "unchecked", [str(error)])
        print(json.dumps(asdict(report)) if options.json else _lines(report), flush=True)
        code = max(code, CODES[report.verdict])
    return code


def check(
    path: Path, *, model: str | None = None, parts: str | None = None, pipelines: dict[Any, Any] | None = None
) -> Report:
    """Generate one image again and compare.

    Args:
        pipelines: loaded models by what they were loaded for; images with the same conditions share one.

    Raises:
        PixArtError: it cannot be checked, and why.
    """
    import numpy as np

    from pixart.pipeline.again import differences, find_model, request_of, runtime_of, with_threads
    from pixart.pipeline.cutout import cut_out
    from pixart.pipeline.image_files import pixel_hash, read_record
    from pixart.pipeline.networks import load_networks
    from pixart.pipeline.pipeline import Pipeline
    from pixart.pixels import on_white
    from pixart.progress import Progress

    texts = read_texts(path)
    record = read_record(texts)
    if record is None:
        raise PixArtError(_why_not(path, texts))
    image = _open(path)
    pipelines = {} if pipelines is None else pipelines
    folder = find_model(record, model, parts)
    request, (runtime, threads) = request_of(record, folder), runtime_of(record, folder)
    how = (runtime.engine, runtime.device.type, runtime.dtype, runtime.memory, threads)
    key = (folder.path, folder.fast, folder.source, how)
    with with_threads(threads), Progress() as progress:
        if key not in pipelines:
            progress.start("loading the model")
            pipelines.clear()  # one model in memory at a time
            pipelines[key] = Pipeline(folder, load_networks(folder, runtime))
        progress.start(f"generating {shown(Path(path).name)} again", request.steps, unit="steps")
        (generated,) = pipelines[key].generate(request, lambda index, step: progress.update(step.index + 1))
    now, again = generated.settings, generated.image
    if record.get("transparent") is True:
        again = on_white(cut_out(again))
        now = {**now, "transparent": True, "pixels_sha256": pixel_hash(again)}
    stored = record.get("pixels_sha256")
    report = Report(
        path=shown(str(path), 500),
        verdict="identical",
        generated_with=f"{now['model']}, {now['engine']}, {now['dtype']}, {_counted(now['threads'], 'thread')}",
        file_sha256=pixel_hash(image),
        stored_sha256=stored if isinstance(stored, str) else None,
        generated_sha256=now["pixels_sha256"],
    )
    edited = report.stored_sha256 is not None and report.stored_sha256 != report.file_sha256
    if report.file_sha256 == report.generated_sha256:
        if edited:
            report.reasons.append("The hash of the pixels among its settings is another one.")
        return report
    report.verdict = "differs"
    then_and_now = differences(record, now)
    if edited:
        report.reasons.append("The pixels were changed after the image was written.")
        if report.stored_sha256 == report.generated_sha256:
            report.reasons.append("Its settings still generate what was written, to the last bit.")
            then_and_now = []
    if image.size != again.size:
        sizes = [f"{width} x {height}" for width, height in (image.size, again.size)]
        report.reasons.append(f"The image is {sizes[0]}, and its settings generate {sizes[1]}.")
    else:
        values = [np.asarray(one.convert("RGB")).astype(np.int16) for one in (image, again)]
        apart = np.abs(values[0] - values[1])
        report.maximum, report.mean = int(apart.max()), float(apart.mean())
        report.share = float((apart > 0).mean())
    report.reasons += [f"Not the same: {phrase}." for phrase in then_and_now]
    if not report.reasons:
        report.reasons.append(
            "Model, engine, versions and threads in the file are the same here: either another processor generated it, "
            "or the settings in the file were changed."
        )
    return report


def _open(path: Path):
    """The file's pixels as an RGB PIL image; raises PixArtError for what cannot be decoded safely."""
    from pixart.data.images import open_image

    size = Path(path).stat().st_size
    if size > MAX_FILE:
        raise PixArtError(f"The file has {size:,} bytes; at most {MAX_FILE:,} are read.")
    return open_image(Path(path).read_bytes()).image


def _why_not(path: Path, texts: ImageTexts) -> str:
    """Why an image without our record cannot be generated again."""
    from pixart.pipeline.restore import restore_settings

    if texts.notices:
        return f"It holds no settings that can be read. {texts.notices[0]}"
    try:
        source = restore_settings(path).source
    except UsageError:
        source = None
    if source == "A1111" and ", Version: pixart" in texts.texts.get("parameters", ""):
        return "It holds only the short copy of its settings for other tools, and another program has dropped the rest."
    if source is not None:
        return (
            f"It holds settings of {source}, whose images pixart cannot generate again; `pixart app` takes them over."
        )
    return (
        "It holds no settings: pixart did not generate it, or did so with --no-metadata, or another program has saved "
        "it without them."
    )


def _lines(report: Report) -> str:
    match report.verdict:
        case "identical":
            first = f"identical, SHA-256 {report.generated_sha256[:16]}; generated again with {report.generated_with}."
        case "differs" if report.maximum is not None:
            first = (
                f"differs from what {report.generated_with} gives: by at most {report.maximum} of 255, "
                f"{report.mean:.3g} on average, in {report.share:.1%} of the values."
            )
        case "differs":
            first = f"differs from what {report.generated_with} gives."
        case _:
            return f"{report.path}: cannot be checked. {' '.join(report.reasons)}"
    return "\n".join([f"{report.path}: {first}", *(f"  {reason}" for reason in report.reasons)])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
