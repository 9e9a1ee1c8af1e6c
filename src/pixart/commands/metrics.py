"""`pixart metrics`: the metrics that papers report. `pixart layout`: images in the folders of benchmarks."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from pixart.config import shown
from pixart.errors import PixArtError, UsageError
from pixart.files import file_hash, read_json_object, write_json, write_whole
from pixart.progress import Progress

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


@dataclass
class Layout:
    """Generate a benchmark's prompts into the folders that its own scripts read. A run that was stopped goes on."""

    layout: Positional[Literal["geneval", "t2i-compbench"]]
    """The benchmark."""
    prompts: Positional[Annotated[Path, arg(metavar="FILE")]]
    """Its prompt file: evaluation_metadata.jsonl of GenEval, or a list of prompts."""
    dest: Positional[Annotated[Path, arg(metavar="DEST")]]
    """Folder to write into."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """As in pixart generate."""
    num_images: Annotated[int | None, shown("N", "4 for geneval, 10 for t2i-compbench")] = None
    """Images for each prompt."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the first image of every prompt."""
    steps: Annotated[int | None, shown("N", "the model's")] = None
    """As in pixart generate."""
    guidance_scale: Annotated[float | None, shown("X", "the model's")] = None
    """As in pixart generate."""
    size: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Width and height of the images."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """As in pixart generate."""


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


def layout(options: Layout) -> int:
    """Run `pixart layout`."""
    from pixart.evaluation.metrics import LAYOUTS, places
    from pixart.evaluation.prompt_sets import read_prompts
    from pixart.pipeline.image_files import read_settings, write_image
    from pixart.pipeline.pipeline import Pipeline
    from pixart.pipeline.request import make_request

    prompts = read_prompts(options.prompts)
    count = options.num_images if options.num_images is not None else LAYOUTS[options.layout]
    if count < 1:
        raise UsageError(f"--num-images is {count}; it must be at least 1.")
    every = list(places(options.layout, options.dest, [prompt.text for prompt in prompts], count))
    wanted = {"steps": options.steps, "guidance_scale": options.guidance_scale}
    wanted |= {"width": options.size, "height": options.size}
    missing: dict[int, list[tuple[int, Path]]] = {}  # by the number of an image of its prompt
    for number, image, path in every:
        if not path.exists():
            missing.setdefault(image, []).append((number, path))
            continue
        expected = {"prompt": prompts[number].text, "seed": options.seed + image, **wanted}
        there = read_settings(path)
        if differs := [name for name, value in expected.items() if value is not None and there.get(name) != value]:
            raise UsageError(f"{path} was generated with another {differs[0]}; give another folder.")
    if options.layout == "geneval":
        for number, prompt in enumerate(prompts):
            row = {"tag": prompt.category, **prompt.about, "prompt": prompt.text}
            write_whole(options.dest / f"{number:05}" / "metadata.jsonl", json.dumps(row) + "\n")
    pipeline = Pipeline.from_pretrained(options.model, device=options.device)
    with Progress() as progress:
        left = sum(map(len, missing.values()))
        progress.start("generating", len(every), unit="images", done=len(every) - left)
        for image, rows in missing.items():
            # All that start from one seed in one request: the pipeline makes as many at once as suit the device.
            texts = [prompts[number].text for number, _ in rows]
            request = make_request(pipeline.folder, texts, seed=options.seed + image, **wanted)
            for generated, (_, path) in zip(pipeline.generate(request), rows, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(generated.image, generated.settings, path)
                progress.advance()
        progress.result(str(options.dest))
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
