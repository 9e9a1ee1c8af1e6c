"""`pixart metrics DRAWN`: the figures that papers report. `pixart layout`: pictures in the folders of benchmarks."""

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.errors import PixArtError, UsageError
from pixart.options import parsed, shown


@dataclass
class Metrics:
    """FID, KID, precision and recall against true pictures; CLIPScore, HPSv2 and ImageReward against the prompts.

    Each is measured where its extractor's weights are there; what is missing is named. The protocol is printed and
    stored with the figures. pixart metrics --compare A.json B.json prints two results beside each other.
    """

    drawn: Annotated[Path | None, arg(metavar="DRAWN", help_behavior_hint="(required)")] = None
    """Folder of drawn pictures, the first word after pixart metrics."""
    reference: Annotated[Path | None, shown("FOLDER", "none")] = None
    """Folder of true pictures, for FID, KID, precision and recall."""
    metrics: Annotated[str, arg(metavar="NAME,...")] = "fid,kid,prc"
    """Which of fid, kid and prc to measure with --reference."""
    inception: Annotated[Path | None, shown("FILE", "torch's cache")] = None
    """Inception v3 as TorchScript, as StyleGAN2-ADA publishes it."""
    clip: Annotated[str | None, shown("FOLDER", "not measured")] = None
    """CLIP for CLIPScore: a folder or hub id in the cache."""
    hps: Annotated[Path | None, shown("FILE", "not measured")] = None
    """HPSv2: the official .pt file, or a CLIP folder with its weights."""
    hps_config: Annotated[str | None, shown("FOLDER", "laion's ViT-H/14")] = None
    """CLIP folder with the sizes and the tokenizer of HPSv2."""
    image_reward: Annotated[Path | None, shown("FILE", "not measured")] = None
    """ImageReward: the official ImageReward.pt."""
    prompts: Annotated[Path | None, shown("FILE", "what the pictures hold")] = None
    """A prompt for each picture, in the order of their names."""
    num: Annotated[int | None, shown("N", "all")] = None
    """Measure the first N pictures by name only, of both folders."""
    size: Annotated[int, arg(metavar="PIXELS")] = 299
    """Side that the middle square of every picture is brought to before Inception sees it."""
    output: Annotated[Path | None, shown("FILE.json", "none")] = None
    """File for figures and protocol."""
    compare: tuple[Path, ...] = ()
    """Files of earlier measurements, to print beside each other. Nothing is measured."""
    across: Annotated[str, shown("NAME,...", "none")] = ""
    """With --compare: what may differ, such as steps."""


@dataclass
class Layout:
    """Draw a benchmark's prompts into the folders that its own scripts read. A run that was stopped goes on."""

    layout: Annotated[str, arg(metavar="LAYOUT")]
    """geneval or t2i-compbench."""
    prompts: Annotated[Path, arg(metavar="FILE")]
    """The benchmark's prompt file: evaluation_metadata.jsonl of GenEval, or a list of prompts."""
    dest: Annotated[Path, arg(metavar="DEST")]
    """Folder to write into."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """As in pixart generate."""
    num_images: Annotated[int | None, shown("N", "4 for geneval, 10 for t2i-compbench")] = None
    """Pictures for each prompt."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the first picture of every prompt."""
    steps: Annotated[int | None, shown("N", "the model's")] = None
    """As in pixart generate."""
    guidance_scale: Annotated[float | None, shown("X", "the model's")] = None
    """As in pixart generate."""
    size: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Width and height of the pictures."""


def run_metrics(arguments: list[str]) -> int:
    """Everything after `pixart metrics`. Returns the exit code."""
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given = ["--drawn", *given]
    return parsed(Metrics, given, "pixart metrics", _metrics)


def run_layout(arguments: list[str]) -> int:
    """Everything after `pixart layout`. Returns the exit code."""
    return parsed(Layout, arguments, "pixart layout", _layout)


def _metrics(options: Metrics) -> int:
    from pixart.evaluation.numbers import alignment, fidelity, protocol
    from pixart.evaluation.numbers.pictures import Pictures, open_folder, prompts_of

    if options.compare:
        if len(options.compare) < 2:
            raise UsageError("--compare needs two files or more.")
        across = tuple(name for name in options.across.split(",") if name)
        print(protocol.compare(list(options.compare), across))
        return 0
    if options.across:
        raise UsageError("--across goes with --compare; nothing is compared here.")
    if options.drawn is None:
        raise UsageError("There is nothing to measure: pixart metrics takes a folder of drawn pictures.")
    by_prompt = any(given is not None for given in (options.clip, options.hps, options.image_reward))
    if options.reference is None and not by_prompt:
        raise UsageError(
            "There is nothing to measure: give --reference for FID, KID and the like, --clip, --hps, or --image-reward."
        )
    metrics = tuple(options.metrics.split(","))
    if not set(metrics) <= set(fidelity.METRICS):
        raise UsageError(f"--metrics {options.metrics}: it takes {', '.join(fidelity.METRICS)}, with commas between.")
    drawn = open_folder(options.drawn, options.num)
    figures: dict[str, float] = {}
    how: dict[str, object] = {"count": len(drawn.files), **protocol.drawing_protocol(drawn)}
    marks: tuple[str, ...] = ()
    lacking: list[str] = []

    @contextlib.contextmanager
    def if_there():
        """A network that is missing or damaged is named at the end, and the others measure."""
        try:
            yield
        except UsageError:
            raise
        except PixArtError as error:
            lacking.append(str(error))

    def score(name: str, values, weights: Path) -> None:
        figures[name], figures[f"{name}_error"] = float(values.mean()), _error(values)
        how[name] = protocol.weight_hashes(weights)

    if options.reference is not None:
        true = open_folder(options.reference, options.num)
        with if_there():
            found = fidelity.fidelity(drawn, true, metrics=metrics, weights=options.inception, size=options.size)
            marks = found.marks
            figures |= {k: v for k, v in asdict(found).items() if k != "marks" and v is not None}
            how |= {
                "reference": true.sha256,
                "reference_count": len(true.files),
                "resize": f"middle square, PIL bicubic to {options.size} px",
                "inception": protocol.hash_file(fidelity.find_weights(options.inception)),
            }
    if by_prompt:
        prompts = prompts_of(drawn, _prompts(options.prompts))
        pictures = Pictures(drawn)
        how["prompts"] = protocol.hash_texts(prompts)
        with if_there():
            if options.clip is not None:
                clip = alignment.open_clip(options.clip)
                score("clip_score", alignment.clip_scores(clip, pictures, prompts), clip.path)
        with if_there():
            if options.hps is not None:
                clip = alignment.open_hps(options.hps, options.hps_config or alignment.HPS_CONFIG)
                score("hps_v2", alignment.hps_scores(clip, pictures, prompts), options.hps)
        with if_there():
            if options.image_reward is not None:
                from pixart.evaluation.numbers.image_reward import open_image_reward

                reward = open_image_reward(options.image_reward)
                score("image_reward", reward.scores(pictures, prompts), options.image_reward)
    if lacking and not figures:
        raise PixArtError(" ".join(lacking))
    told = {"format": protocol.FORMAT, "figures": figures, "marks": list(marks), "protocol": how}
    told["drawn"] = {"folder": str(drawn.path), "sha256": drawn.sha256}
    if options.output is not None:
        _write(options.output, json.dumps(told, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:<18} {value:.4f}")
    for mark in marks:
        print(f"biased: {mark}")
    print(", ".join(f"{name} {_short(value)}" for name, value in how.items()))
    if lacking:
        raise PixArtError(f"Not all was measured. {' '.join(lacking)}")
    return 0


def _prompts(path: Path | None) -> list[str] | None:
    from pixart.evaluation.prompt_sets.prompts import read_prompts

    return None if path is None else [prompt.text for prompt in read_prompts(path)]


def _error(values) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _layout(options: Layout) -> int:
    from pixart.checkpoints.model_folder import weight_hashes
    from pixart.evaluation.drawing import whole
    from pixart.evaluation.numbers import layouts
    from pixart.evaluation.prompt_sets.prompts import read_prompts
    from pixart.pipeline.image_files import write_image
    from pixart.pipeline.pipeline import Pipeline
    from pixart.pipeline.request import make_request

    rows = layouts.geneval_lines(options.prompts) if options.layout == "geneval" else []
    prompts = [row["prompt"] for row in rows] or [prompt.text for prompt in read_prompts(options.prompts)]
    images = options.num_images if options.num_images is not None else layouts.USUAL.get(options.layout, 1)
    if images < 1:
        raise UsageError(f"--num-images is {images}; it must be at least 1.")
    every = list(layouts.places(options.layout, options.dest, prompts, images))
    pipeline = Pipeline.from_pretrained(options.model)

    def ask(place: layouts.Place):
        return make_request(
            pipeline.folder,
            prompts[place.prompt],
            seed=options.seed + place.image,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            width=options.size,
            height=options.size,
        )

    missing = [place for place in every if not whole(place.path)]
    weights = weight_hashes(pipeline.folder) if len(missing) < len(every) else {}
    for place in sorted(set(every) - set(missing), key=lambda place: place.path):
        request = ask(place)
        kept = {name: getattr(request, name) for name in ("steps", "guidance_scale", "width", "height", "sampler")}
        given = {"prompt": request.prompts[0], "seed": request.seeds[0]}
        layouts.refuse_other(place.path, given | kept | {"weights": weights})
    layouts.write_metadata(options.dest, rows)
    for count, place in enumerate(missing, 1):
        request = ask(place)
        picture = next(iter(pipeline.generate(request)))
        place.path.parent.mkdir(parents=True, exist_ok=True)
        place.path.unlink(missing_ok=True)
        write_image(picture.image, picture.settings, place.path)
        if count % 16 == 0 or count == len(missing):
            print(f"drew {count:,} of {len(missing):,}", file=sys.stderr, flush=True)
    print(options.dest)
    return 0


def _short(value: object) -> str:
    """A value of the protocol on the terminal; the file has hashes whole."""
    text = "unknown" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise PixArtError(f"{path} cannot be written: {error.strerror or error}.") from None
