"""`pixart evaluate MODEL`: draw held-out captions, judge the drawings, print the table beside real pictures."""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.errors import PixArtError, UsageError
from pixart.options import parsed, shown

HELD_OUT_NUM = 512


@dataclass
class Evaluate:
    """Draw held-out captions of the emoji data and judge the drawings, beside real pictures and the trivial answer.

    The judge was trained on the training split only and is no part of any model. What was drawn is kept, so a run that
    was stopped goes on. pixart evaluate --compare A.json B.json prints two results beside each other.
    """

    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder, or the name of a model on the Hugging Face Hub."""
    fast: bool = False
    """Evaluate the model's fast denoiser."""
    composition: bool = False
    """Instead, draw what the data never shows together, such as a blue apple, and say what of it is right."""
    num: Annotated[int | None, shown("N", "512; with --composition 200")] = None
    """How many captions, half of known concepts in an unseen style, half of unseen concepts."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Chooses the captions; picture k is drawn with the seed N + k."""
    steps: Annotated[int | None, shown("N", "the model's")] = None
    """How many times the network looks at each picture."""
    guidance_scale: Annotated[float | None, shown("X", "the model's")] = None
    """How strongly to follow the caption."""
    guidance_sweep: Annotated[str | None, shown("X,X,...", "none")] = None
    """Evaluate each of these guidance scales: a curve of fidelity against alignment, as a table and an SVG file."""
    sampler: Annotated[str | None, shown("NAME", "the model's")] = None
    """As in pixart generate."""
    size: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Width and height of the pictures."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """As in pixart generate."""
    dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """As in pixart generate."""
    judge: Annotated[Path | None, shown("FOLDER", "the judge in the package")] = None
    """A judge of your own, as pixart train emoji/judge writes it."""
    data: Annotated[Path | None, shown("FOLDER", "none")] = None
    """Folder of pixart data emoji, from which the judge of your own learns what true pictures look like.
    With --composition: what pictures in the asked colours are made from, and the trivial answer."""
    pictures: Annotated[Path | None, shown("FOLDER", "runs/evaluate/...")] = None
    """Where the pictures go and are looked for."""
    output: Annotated[Path | None, shown("FILE.json", "scores-N.json beside the pictures")] = None
    """File for all figures, with the protocol that they hold for."""
    compare: tuple[Path, ...] = ()
    """Files of earlier evaluations, to print beside each other. Nothing is drawn."""
    across: Annotated[str, shown("NAME,...", "none")] = ""
    """With --compare: settings that may differ, such as steps."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart evaluate`. Returns the exit code."""
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given = ["--model", *given]
    return parsed(Evaluate, given, "pixart evaluate", _run)


def _run(options: Evaluate) -> int:
    if options.compare:
        return _compare(options)
    if options.across:
        raise UsageError("--across goes with --compare; nothing is compared here.")
    return _evaluate(options)


def _compare(options: Evaluate) -> int:
    from pixart.evaluation.report import compare

    if len(options.compare) < 2:
        raise UsageError("--compare needs two files or more.")
    print(compare(list(options.compare), tuple(name for name in options.across.split(",") if name)))
    return 0


def _evaluate(options: Evaluate) -> int:
    from pixart.evaluation.drawing import Asked
    from pixart.evaluation.statistics import check_enough
    from pixart.evaluation.sweep import as_svg, read_scales, sweep_table

    num = HELD_OUT_NUM if options.num is None else options.num
    check_enough(num, "An evaluation")
    scales = read_scales(options.guidance_sweep) if options.guidance_sweep is not None else []
    if scales and options.guidance_scale is not None:
        raise UsageError("Give either --guidance-scale or --guidance-sweep.")
    for path in (options.output,):
        if path is not None and (path.is_dir() or path.suffix != ".json"):
            raise UsageError(f"--output {path}: give the name of a .json file.")
    if options.composition and scales:
        raise UsageError("--guidance-sweep is for held-out captions; give --composition one --guidance-scale.")
    judge, reference = _judge(options)
    asked = Asked(num, options.seed, options.steps, options.guidance_scale, options.sampler, options.size)

    from pixart.evaluation.composition import check_data, combinations
    from pixart.evaluation.reference import choose
    from pixart.pipeline.pipeline import Pipeline

    if options.composition:
        combinations(options.num)
        check_data(options.data)
    else:
        choose(reference, num=asked.num, seed=asked.seed)  # says now whether there are so many captions
    pipeline = Pipeline.from_pretrained(options.model, engine=options.engine, dtype=options.dtype, fast=options.fast)
    if options.composition:
        return _composition(pipeline, judge, reference, asked, options)
    if not scales:
        told, path = _one(pipeline, judge, reference, asked, options.pictures, options.output)
        _print(told, path)
        return 0
    found = []
    for scale in scales:
        _say(f"guidance scale {scale:g}")
        pictures = options.pictures / f"guidance-{scale:g}" if options.pictures else None
        told, path = _one(pipeline, judge, reference, replace(asked, guidance_scale=scale), pictures, None)
        found.append(told)
    path = options.output or path.parent.parent / f"guidance-sweep-{pipeline.folder.name}-{asked.num}.json"
    _write(path, json.dumps({"format": 1, "sweep": found}, indent=1, ensure_ascii=False) + "\n")
    _write(path.with_suffix(".svg"), as_svg(found))
    print(sweep_table(found))
    print(f"\n{path}\n{path.with_suffix('.svg')}")
    return 0


def _composition(pipeline, judge, reference, asked, options: Evaluate) -> int:
    from pixart.evaluation import composition, drawing

    folder = options.pictures or drawing.usual_folder(pipeline, asked) / composition.SET
    begun = time.monotonic()
    told = composition.evaluate(pipeline, judge, reference, asked, folder, _say, num=options.num, data=options.data)
    told["seconds"] = round(time.monotonic() - begun, 1)
    path = options.output or folder / f"composition-{told['protocol']['num']}.json"
    _write(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    _print(told, path)
    return 0


def _one(pipeline, judge, reference, asked, pictures: Path | None, output: Path | None) -> tuple[dict, Path]:
    """Draw, look, write the file; what it holds, and where it is."""
    from pixart.evaluation import drawing
    from pixart.evaluation.reference import look
    from pixart.evaluation.report import report

    folder = pictures or drawing.usual_folder(pipeline, asked)
    begun = time.monotonic()
    drawn = drawing.draw(pipeline, reference, asked, folder, _say)
    _say(f"judging {len(drawn.paths):,} pictures")
    told = report(drawn, look(drawing.read(drawn.paths), judge), judge, reference, pipeline.provenance["versions"])
    told["seconds"] = round(time.monotonic() - begun, 1)
    path = output or folder / f"scores-{asked.num}.json"
    _write(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return told, path


def _judge(options: Evaluate):
    """The judge and its reference; that of a judge of one's own is made from the data once and kept beside it."""
    from pixart.evaluation.judge import open_judge
    from pixart.evaluation.reference import FEATURES, build, open_reference, save

    if options.data is not None and options.judge is None and not options.composition:
        raise UsageError("--data goes with --judge: the judge in the package has its true pictures with it.")
    judge = open_judge(options.judge)
    if options.judge is not None and not (options.judge / FEATURES).is_file():
        if options.data is None:
            raise UsageError(
                f"{options.judge} has not seen the true pictures yet; give --data, a folder of pixart data emoji."
            )
        save(build(options.data, judge, _say), options.judge)
    return judge, open_reference(options.judge)


def _print(told: dict, path: Path) -> None:
    from pixart.evaluation.report import columns, table

    protocol = told["protocol"]
    print(table(columns(told), told))
    print(
        f"\n{protocol['num']} pictures of {protocol['width']} x {protocol['height']} px, {protocol['steps']} steps of "
        f"{protocol['sampler']}, guidance scale {protocol['guidance_scale']:g}, seeds {protocol['seed']} to "
        f"{protocol['seed'] + protocol['num'] - 1}. In brackets: 95% intervals."
    )
    print(path)


def _write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
