"""`pixart verify`: generate an image again from the settings in its file, and compare every pixel.

The settings are what a file says, and not trusted: whatever in them cannot be is refused in one sentence.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from pixart.config import shown as option
from pixart.errors import PixArtError, UsageError, shown

MAX_FILE = 256 * 2**20  # bytes
MAX_THREADS = 256
MAX_RESOLVED = 100_000  # characters of a prompt with the words of its style
CODES = {"identical": 0, "differs": 1, "unchecked": 2}
# Of a record: what besides the request may change pixels.
CONDITIONS = ("weights", "engine", "device", "dtype", "arithmetic", "memory", "threads", "versions", "bin",
              "loras")  # fmt: skip


@dataclass
class Verify:
    """Generate images again from the settings in their files, and compare every pixel.

    The model is the shipped one if its hash is that of the image, else the one that --model names. Engine, dtype and
    threads are the image's own where they can be had. Exit code 0: all are identical; 1: one differs, with the reasons;
    2: one could not be checked.
    """

    files: Positional[Annotated[list[Path], arg(metavar="FILE")]]
    """PNG or WebP files."""
    model: Annotated[str | None, option("MODEL", "the shipped one")] = None
    """Model folder, hub id, or an official file with --parts."""
    parts: Annotated[str | None, option("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    text_encoder: Annotated[Path | None, option("FILE_OR_FOLDER", "the model's")] = None
    """The text encoder that was given in the place of the model's."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:X]")] = ()
    """An adapter that the images were generated with; repeat the option for several."""
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
            report = check(path, options, pipelines)
        except PixArtError as error:
            report = Report(shown(str(path), 500), "unchecked", [str(error)])
        print(json.dumps(asdict(report)) if options.json else _lines(report), flush=True)
        code = max(code, CODES[report.verdict])
    return code


def check(path: Path, options: Verify, pipelines: dict[Any, Any]) -> Report:
    """Generate one image again and compare; `pipelines` keeps the model for the next image.

    Raises:
        PixArtError: it cannot be checked, and why.
    """
    import numpy as np

    from pixart.checkpoints.adapters import check_loras
    from pixart.pipeline.cutout import cut_out
    from pixart.pipeline.image_files import pixel_hash
    from pixart.pipeline.networks import load_networks
    from pixart.pipeline.pipeline import Pipeline
    from pixart.pixels import on_white
    from pixart.progress import Progress

    record, image = _read(path)
    folder = _find_model(record, options)
    loras = check_loras(folder, options.lora)
    if record.get("loras") and not loras:
        raise PixArtError("It was generated with adapters; name them with --lora, as they were given then.")
    request, runtime, threads = _request(record, folder), _runtime(record, folder), record.get("threads")
    if type(threads) is int and 1 <= threads <= MAX_THREADS:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # which both engines read when they load
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    key = (folder.path, folder.fast, folder.source, runtime, os.environ.get("OMP_NUM_THREADS"))
    with Progress() as progress:
        if key not in pipelines:
            progress.start("loading the model")
            pipelines.clear()  # one model in memory at a time
            pipelines[key] = Pipeline(folder, load_networks(folder, runtime))
        pipelines[key].use(loras)
        progress.start(f"generating {shown(Path(path).name)} again", request.steps, unit="steps")
        (generated,) = pipelines[key].generate(request, lambda index, step: progress.update(step.index + 1))
    now, again = generated.settings, generated.image
    if record.get("transparent") is True:
        again = on_white(cut_out(again))
    stored = record.get("pixels_sha256")
    report = Report(
        path=shown(str(path), 500),
        verdict="identical",
        generated_with=f"{now['model']}, {now['engine']}, {now['dtype']}, threads: {now['threads']}",
        file_sha256=pixel_hash(image),
        stored_sha256=stored if isinstance(stored, str) else None,
        generated_sha256=pixel_hash(again),
    )
    edited = report.stored_sha256 not in (None, report.file_sha256)
    if report.file_sha256 == report.generated_sha256:
        if edited:
            report.reasons.append("The hash of the pixels among its settings is another one.")
        return report
    report.verdict = "differs"
    if edited:
        report.reasons.append("The pixels were changed after the image was written.")
    if edited and report.stored_sha256 == report.generated_sha256:
        report.reasons.append("Its settings still generate what was written, to the last bit.")
    else:
        report.reasons += [f"Not the same: {phrase}." for phrase in differences(record, now)]
    if image.size != again.size:
        sizes = [f"{width} x {height}" for width, height in (image.size, again.size)]
        report.reasons.append(f"The image is {sizes[0]}, and its settings generate {sizes[1]}.")
    else:
        apart = np.abs(np.asarray(image).astype(np.int16) - np.asarray(again.convert("RGB")))
        report.maximum, report.mean = int(apart.max()), float(apart.mean())
        report.share = float((apart > 0).mean())
    if not report.reasons:
        report.reasons.append(
            "Model, engine, versions and threads in the file are the same here: either another processor generated it, "
            "or the settings in the file were changed."
        )
    return report


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    """Our record in an image file, and its pixels as an RGB PIL image; raises PixArtError."""
    from pixart.images import open_image
    from pixart.pipeline.image_files import read_record
    from pixart.pipeline.image_metadata import read_texts
    from pixart.pipeline.restore import restore_settings

    texts = read_texts(path)
    record = read_record(texts)
    if record is None:
        if texts.notices:
            raise PixArtError(f"It holds no settings that can be read. {texts.notices[0]}")
        source = restore_settings(path).source  # says that there are none, too
        raise PixArtError(
            f"It holds settings in the form of {source} only, from which pixart cannot generate the same image; "
            "`pixart app` takes them over."
        )
    if record.get("image") is not None:
        raise PixArtError("It was made from another image, which is not in the file; generate it again with --image.")
    if record.get("noise") is not None:
        raise PixArtError("Its noise did not come from its seed, but from a generator or latents of a Python program.")
    if record.get("control") is not None:
        raise PixArtError(
            "It was made with a ControlNet, whose image is not in the file; generate it again with --control and "
            "--control-image."
        )
    size = Path(path).stat().st_size
    if size > MAX_FILE:
        raise PixArtError(f"The file has {size:,} bytes; at most {MAX_FILE:,} are read.")
    return record, open_image(Path(path).read_bytes()).image


def _find_model(record: dict[str, Any], options: Verify) -> Any:
    """The model folder: the one that is named, else the shipped one; raises PixArtError if that is another one."""
    from pixart.checkpoints.model_folder import open_model_folder, transformer_hash, weight_hashes
    from pixart.checkpoints.official import PLAIN, OfficialFile

    source, fast = record.get("source"), record.get("fast") is True
    source = source if isinstance(source, dict) else {}
    if options.model is not None:
        how = PLAIN
        if options.parts is not None:
            sizes = {name: source[name] for name in ("num_heads", "image_size") if type(source.get(name)) is int}
            how = OfficialFile(source.get("ema") is True, **sizes)
        text_encoder = options.text_encoder
        return open_model_folder(options.model, parts=options.parts, how=how, fast=fast, text_encoder=text_encoder)
    hashes = record.get("weights")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise UsageError("Its settings do not name its weights.")
    shipped = open_model_folder()
    if fast and shipped.fast_settings:
        shipped = open_model_folder(fast=True)
    if transformer_hash(weight_hashes(shipped)) != transformer_hash(hashes):
        raise PixArtError(
            f'It was generated with the model "{shown(record.get("model"))}" (transformer '
            f"{shown(transformer_hash(hashes), 12)}), which is not the shipped one; name it with --model."
        )
    return shipped


def _request(record: dict[str, Any], folder: Any) -> Any:
    """The request of a record, with the texts as the model got them, whatever has become of the styles since."""
    from pixart.pipeline.prompts import check_text
    from pixart.pipeline.request import make_request
    from pixart.pipeline.restore import NAMES

    for key in ("resolved_prompt", "resolved_negative_prompt"):
        what = key.replace("_", " ")
        if not isinstance(record.get(key), str) or len(record[key]) > MAX_RESOLVED:
            raise UsageError(f"Its {what} is missing, or no text of at most {MAX_RESOLVED:,} letters.")
        check_text(record[key], what, MAX_RESOLVED)
    settings = {key: record.get(key) for key in NAMES if key not in ("negative_prompt", "style")}
    prompts = (record["resolved_prompt"],)
    negative = record["resolved_negative_prompt"]
    request = make_request(folder, "", **settings)
    return replace(request, prompts=prompts, resolved_prompts=prompts, resolved_negative_prompt=negative)


def _runtime(record: dict[str, Any], folder: Any) -> Any:
    """Engine, dtype, memory and device of the record where they are to be had here, else float32 on what is."""
    from pixart.pipeline.networks import choose_runtime
    from pixart.runtime.memory import PATHS, PLAIN, Memory

    engine, dtype, device = (
        record[key] if isinstance(record.get(key), str) else "auto" for key in ("engine", "dtype", "device")
    )
    known = {each.name: type(getattr(PLAIN, each.name)) for each in fields(Memory) if each.name not in PATHS}
    memory = record["memory"] if isinstance(record.get("memory"), dict) else {}
    memory = {key: value for key, value in memory.items() if known.get(key) is type(value)}
    try:
        return choose_runtime(folder, engine, dtype, Memory(**memory), device)
    except PixArtError:
        return choose_runtime(folder, "auto", "float32")


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two records of one image, besides the request, is not the same; a phrase each."""
    found = []
    for key in CONDITIONS:
        old, new = then.get(key), now.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            names = {name: None for name in (*new, *old) if old.get(name) != new.get(name)}
            for name in list(names)[:20]:
                if key == "weights":
                    found.append(f"{shown(name)} is another file")
                else:
                    values = [shown(one[name]) if name in one else "nothing" for one in (old, new)]
                    found.append(f"{shown(name)}: {values[0]} then, {values[1]} now")
        elif old is not None and old != new:  # an older record may not say
            found.append(f"{key}: {shown(old)} then, {shown(new)} now")
    return found


def _lines(report: Report) -> str:
    if report.verdict == "unchecked":
        return f"{report.path}: cannot be checked. {' '.join(report.reasons)}"
    if report.verdict == "identical":
        first = f"identical, SHA-256 {report.generated_sha256[:16]}; generated again with {report.generated_with}."
    else:
        by = ""
        if report.maximum is not None:
            by = f": by at most {report.maximum} of 255, on average {report.mean:.3g}, in {report.share:.1%} of values"
        first = f"differs from what {report.generated_with} gives{by}."
    return "\n".join([f"{report.path}: {first}", *(f"  {reason}" for reason in report.reasons)])
