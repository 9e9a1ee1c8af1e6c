"""`pixart metrics`: the metrics that papers report."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from pixart.config import shown
from pixart.errors import PixArtError, UsageError
from pixart.files import file_hash, read_json_object, write_json

FORMAT = 2


@dataclass
class Metrics:
    """FID, KID, precision and recall against reference images; CLIPScore against the prompts.

    The protocol is printed and stored with the metrics. pixart metrics --compare A.json B.json prints two results
    beside each other.
    """

    images: Positional[Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(required)")]] = None
    """Folder of generated images."""
    reference: Annotated[Path | None, shown("FOLDER", "none")] = None
    """Folder of real images, for FID, KID, precision and recall."""
    metrics: Annotated[str, arg(metavar="NAME,...")] = "fid,kid,prc"
    """Which of fid, kid and prc to measure with --reference."""
    inception: Annotated[Path | None, shown("FILE", "torch's cache")] = None
    """Inception v3 as TorchScript, as StyleGAN2-ADA publishes it."""
    clip: Annotated[str | None, shown("FOLDER", "not measured")] = None
    """CLIP for CLIPScore: a folder or hub id in the cache."""
    prompts: Annotated[Path | None, shown("FILE", "what the images hold")] = None
    """A prompt for each image, in the order of their names."""
    num: Annotated[int | None, shown("N", "all")] = None
    """Measure the first N images by name only, of both folders."""
    size: Annotated[int, arg(metavar="PIXELS")] = 299
    """Side that the middle square of every image is brought to before Inception."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cuda, mps, cpu, or auto: the fastest there is."""
    output: Annotated[Path | None, shown("FILE.json", "none")] = None
    """File for metrics and protocol."""
    compare: tuple[Path, ...] = ()
    """Files of earlier measurements, to print beside each other. Nothing is measured."""
    across: Annotated[str, shown("NAME,...", "none")] = ""
    """With --compare: what may differ, such as steps."""


def metrics(options: Metrics) -> int:
    """Run `pixart metrics`."""
    if options.compare or options.across:
        if len(options.compare) < 2:
            raise UsageError("--compare needs two files or more.")
        print(_beside(options.compare, set(filter(None, options.across.split(",")))))
        return 0
    if options.images is None or (options.reference is None and options.clip is None):
        raise UsageError(
            "There is nothing to measure: give a folder of generated images, and --reference for FID, KID, precision "
            "and recall, or --clip for CLIPScore."
        )
    from pixart.evaluation import metrics as measure
    from pixart.evaluation.prompt_sets import read_prompts
    from pixart.runtime.device import choose_device, find_devices

    wanted = tuple(options.metrics.split(","))
    if not set(wanted) <= set(measure.METRICS):
        raise UsageError(f"--metrics {options.metrics}: it takes {', '.join(measure.METRICS)}, with commas between.")
    device = choose_device(find_devices(), options.device).type
    images = measure.open_folder(options.images, options.num)
    found: dict[str, float] = {}
    marks: list[str] = []
    protocol: dict[str, Any] = {"count": len(images), **measure.sampling_settings(images)}
    if options.reference is not None:
        real = measure.open_folder(options.reference, options.num)
        marks = measure.check_count(len(images), len(real), wanted)
        weights = measure.find_weights(options.inception)
        protocol["reference"], protocol["reference_count"] = real.sha256, len(real)
        protocol["resize"] = f"middle square, Pillow's bicubic filter to {options.size} px"
        protocol["inception"] = file_hash(weights)
    if options.clip is not None:
        given = [prompt.text for prompt in read_prompts(options.prompts)] if options.prompts else None
        prompts = measure.prompts_of(images, given)
        protocol["prompts"] = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        clip = measure.Clip(options.clip, device)
        protocol["clip"] = clip.sha256
        values = clip.scores(images, prompts)
        found["clip_score"] = float(values.mean())
        found["clip_score_error"] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    if options.reference is not None:
        found |= measure.fidelity(images, real, wanted, weights, options.size, device)
    if options.output is not None:
        result = {"format": FORMAT, "metrics": found, "marks": marks, "protocol": protocol}
        write_json(options.output, result | {"images": {"folder": str(images.path), "sha256": images.sha256}})
    for name, value in found.items():
        print(f"{name:<18} {value:.4f}")
    for mark in marks:
        print(f"biased: {mark}")
    print(", ".join(f"{name} {_short(value)}" for name, value in protocol.items()))
    return 0


def _short(value: object) -> str:
    """A value of the protocol on the terminal; the file has hashes in full."""
    text = "unknown" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _beside(paths: tuple[Path, ...], across: set[str]) -> str:
    """Files of `pixart metrics` as one table.

    Raises UsageError where they were not measured in the same way; `across` names what may differ.
    """
    results = [read_json_object(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if result.get("format") != FORMAT or not {"metrics", "marks", "protocol"} <= set(result):
            raise PixArtError(f"{path} is not a file of pixart metrics in the format {FORMAT}; measure again.")
    protocols = [result["protocol"] for result in results]
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    differ = [n for n in names if n not in across and len({str(p[n]) for p in protocols if n in p}) > 1]
    if differ:
        values = " and ".join(_short(protocol.get(differ[0])) for protocol in protocols)
        raise UsageError(
            f"{' and '.join(map(str, paths))} were measured differently ({differ[0]} {values}); if that is what you "
            f"compare, give --across {','.join(differ)}."
        )
    rows = [["", *(path.name for path in paths)]]
    for name in dict.fromkeys(name for result in results for name in result["metrics"]):
        values = [result["metrics"].get(name) for result in results]
        rows.append([name, *("-" if value is None else f"{value:.4f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    marks = dict.fromkeys(mark for result in results for mark in result["marks"])
    return "\n".join([*lines, *(f"biased: {mark}" for mark in marks)])
