"""`pixart generate`: images of a prompt, written as PNG, JPEG or WebP."""

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from pixart.checkpoints.official import OfficialFile
from pixart.config import shortened, shown
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.settings import RANDOM_SEED, Settings
from pixart.runtime.memory import AUTO, PLAIN, Computing, Memory

if TYPE_CHECKING:
    from pixart.checkpoints.controlnet import ControlNetFile
    from pixart.checkpoints.model_folder import ModelFolder
    from pixart.commands.prompt_file import Job
    from pixart.pipeline.request import Request


EXAMPLES = """examples:
  pixart generate "a red apple"                               the model in the package, on any processor
  pixart generate "a fox" -n 4 --seed 7 -o foxes/             four images, the seeds 7 to 10
  pixart generate "a fox" --model PixArt-alpha/PixArt-XL-2-1024-MS --size 1024x768
  pixart generate "a red fox" --image fox.png --strength 0.6  from an image
  pixart generate --prompts prompts.txt -o out/               one prompt a line; so does: ... | pixart generate -"""


@dataclass
class FromImage:
    """Image-to-image, inpainting, ControlNet."""

    image: Annotated[Path | None, shown("FILE", "none")] = None
    """An image to start from; --strength says how far from it."""
    mask: Annotated[Path | None, shown("FILE", "none")] = None
    """White where the image is generated anew; the rest of it stays."""
    outpaint: bool = False
    """Keep the image, in the middle of width and height, and generate what is around it."""
    control: Annotated[str | None, shown("FILE", "none")] = None
    """A ControlNet: an official .pth or safetensors file, or a folder as of Diffusers' research project. With torch."""
    control_image: Annotated[Path | None, shown("FILE", "none")] = None
    """What it is given: an image of edges, or of what else it was trained on, of any size."""
    control_edges: Annotated[str | None, shown("canny|FILE", "none")] = None
    """Makes edges of that image: canny, or ControlNetHED.pth of the PixArt repositories, for official ControlNets."""
    control_scale: Annotated[float | None, shown("X", "1")] = None
    """How much of its effect is added: 0 is none."""


@dataclass
class Model:
    """Which model, and adapters for it."""

    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder in the layout of Diffusers, its id on the Hugging Face Hub, or an official file with --parts."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:X]")] = ()
    """An adapter (LoRA and its kin), a safetensors file or folder, at strength X: style.safetensors:0.8. Repeat the
    option for several."""
    fast: bool = False
    """Use the model's few-step transformer: guidance is in its weights."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    file: Annotated[OfficialFile, arg(name="")] = field(default_factory=OfficialFile)


@dataclass
class Output:
    """Files and what is printed."""

    output: Annotated[str | None, shown("PATH", "the current folder", "-o", "--outdir")] = None
    """A .png, .jpg or .webp file, or a folder. An existing file is kept: the next free name is taken."""
    transparent: bool = False
    """Cut out the object: the white around it becomes transparent, with soft edges."""
    json: bool = False
    """Print one JSON object per image instead of its path."""
    no_metadata: bool = False
    """Write images without settings, prompt and the mark that they are AI-made; they cannot be generated again."""
    track: Annotated[str | None, shown("TOOL", "none")] = None
    """Record the images in wandb or trackio: configuration, texts, seeds, time."""


@dataclass
class Generate:
    """Generate images of a prompt and write them; prints the path of each.

    The same prompt, seed and settings give the same image. What is left out is taken from the model folder.
    """

    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT", help_behavior_hint="(required)")]] = None
    """What the image shows, in quotes; - reads prompts from standard input, one a line. Not required with --prompts, or
    --text-states of one prompt."""
    prompts: Annotated[Path | None, shown("FILE", "none")] = None
    """A file of prompts, one a line, or .jsonl with settings; the same command again goes on where it was stopped."""
    layout: Annotated[Literal["geneval", "t2i-compbench"] | None, shown("geneval|t2i-compbench", "none")] = None
    """With --prompts: a benchmark's file, into the folders that its scripts read. The papers take -n 4 and -n 10."""
    styles: bool = False
    """Generate the prompt in each of the model's styles, and write them all on one sheet too."""
    size: Annotated[str | None, shown("WxH", "the model's")] = None
    """Width and height together, as in 768x512."""
    binning: bool = False
    """Generate the official size of the nearest shape and fit it to width and height, as models that predict eps do."""
    no_binning: bool = False
    """Generate width and height exactly, as flow models do; they must be multiples of the model's patches."""
    settings: Annotated[Settings, arg(name="image"), OmitArgPrefixes] = field(default_factory=Settings)
    start: Annotated[FromImage, arg(name="image-input"), OmitArgPrefixes] = field(default_factory=FromImage)
    weights: Annotated[Model, arg(name="model"), OmitArgPrefixes] = field(default_factory=Model)
    computing: Annotated[Computing, arg(name="device"), OmitArgPrefixes] = AUTO
    memory: Annotated[Memory, OmitArgPrefixes] = PLAIN
    output: Annotated[Output, OmitArgPrefixes] = field(default_factory=Output)


def generate(options: Generate) -> int:
    """Run `pixart generate`; prints the path of every image."""
    # Everything that can be wrong with the request is reported before torch is loaded, which takes seconds.
    from pixart.checkpoints.adapters import check_loras
    from pixart.checkpoints.controlnet import controlnet_for
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.checkpoints.styles import style_notice
    from pixart.pipeline.image_files import check_output
    from pixart.pipeline.networks import choose_runtime, load_networks
    from pixart.pipeline.request import check_text_states
    from pixart.progress import Progress

    model, start = options.weights, options.start
    folder = open_model_folder(
        model.model, parts=model.parts, how=model.file, fast=model.fast, text_encoder=options.memory.text_encoder
    )
    style = options.settings.style
    if options.styles and (style is not None or not folder.styles):
        why = f"--style {style} is one of them" if style else "this model has none"
        raise UsageError(f"--styles generates in all styles of the model, and {why}; leave one of the two out.")
    if start.control is None:
        incomplete = start.control_image is not None or start.control_edges is not None
    else:
        incomplete = start.control_image is None and options.prompts is None  # whose lines may name their own images
    if incomplete:
        raise UsageError("A ControlNet and the image that it is given go together; give --control and --control-image.")
    if start.control is not None and options.computing.engine == "onnx":
        raise UsageError("A ControlNet is computed by torch, not by the graphs of ONNX Runtime; give --engine torch.")
    loras = check_loras(folder, model.lora)
    control = None if start.control is None else controlnet_for(folder, start.control, start.control_edges)
    jobs, there = _jobs(options, folder, [lora.for_images() for lora in loras], control)
    if control is None and any(job.request.control for job in jobs):
        raise UsageError(f"{options.prompts} has images for a ControlNet; name one with --control.")
    if not jobs:
        print(f"All {there:,} images of {options.prompts} are there already.", file=sys.stderr)
        return 0
    request = jobs[0].request
    engines = {_engine(options.computing.engine, job.request, folder) for job in jobs}
    engine = "torch" if "torch" in engines else options.computing.engine
    target = next(target for target in jobs[0].targets if target)
    if options.memory.text_states is not None:
        for job in jobs:
            check_text_states(folder, job.request, options.memory.text_states)
    with Progress() as progress:
        largest = max((job.request.largest for job in jobs), key=math.prod)
        how = (engine, options.computing.dtype, options.memory, options.computing.device)
        facts = {"size": largest, "once": len(jobs) == 1, "control": control, "compile": options.computing.compile}
        runtime = choose_runtime(folder, *how, **facts)
        check_output(target)
        if there:
            progress.say(f"{there:,} images are there already.")
        if options.settings.seed in (None, RANDOM_SEED) and options.prompts is None:
            progress.say(f"The seed is {request.seed}, chosen at random; --seed {request.seed} generates this again.")
        if notice := style_notice(request.style, folder.styles):
            progress.say(notice)
        progress.say(runtime.line)
        progress.start("loading the model")
        from pixart.pipeline.pipeline import Pipeline

        for notice in [notice for lora in loras for notice in lora.adapter.notices]:
            progress.say(notice)
        pipeline = Pipeline(folder, load_networks(folder, runtime, progress, control))
        pipeline.use(loras)
        with _tracking(options.output.track, target.parent, progress.say) as record:
            _write_all(pipeline, jobs, options, progress, record)
    return 0


def _engine(given: str, request: "Request", folder: "ModelFolder") -> str:
    """The engine that is given; what graphs cannot do is left to torch, or said before they are loaded."""
    from pixart.checkpoints.model_folder import ENCODER_GRAPH

    encodes = request.image is not None or request.upscale > 1
    lacking = encodes and not (folder.path / ENCODER_GRAPH).is_file()
    if lacking and given == "onnx":
        raise PixArtError(
            f"{folder.path} has no {ENCODER_GRAPH}, which reads images; give --engine torch, or write it with: pixart "
            f"convert {folder.path} --to onnx"
        )
    texts = request.null_text != "encoded" or request.prompt_weights
    if texts and given == "onnx":
        raise UsageError("The graphs take no null caption and no prompt weights; give --engine torch.")
    return "torch" if given == "auto" and (lacking or texts) else given


def _jobs(
    options: Generate, folder: "ModelFolder", loras: list[dict[str, Any]], control: "ControlNetFile | None"
) -> tuple[list["Job"], int]:
    """The requests with the paths of their images, and how many images of a prompt file are there already."""
    from pixart.checkpoints.model_folder import transformer_hash, weight_hashes
    from pixart.commands.prompt_file import Job, jobs_of
    from pixart.pipeline.image_files import plan_output, slug, title
    from pixart.pipeline.request import make_request

    settings = _settings(options)
    if options.prompts is not None:
        if options.prompt is not None or options.styles or options.memory.text_states is not None:
            raise UsageError("--prompts names a file of prompts; leave PROMPT, --styles and --text-states out.")
        output = Path(options.output.output or ".")
        if plan_output(output, "any", 0).parent != output:
            raise UsageError("The images of a prompt file get names of their own; --output must be a folder.")
        if settings["seed"] is None:
            settings["seed"] = 0  # so that it can go on where it was stopped
        conditions = {
            "model_hash": transformer_hash(weight_hashes(folder)),
            "fast": folder.fast,
            "transparent": options.output.transparent or None,
            "loras": loras or None,
        }
        return jobs_of(options.prompts, folder, settings, output, conditions, control, options.layout)
    if options.layout is not None:
        raise UsageError(f"--layout {options.layout} is for the prompts of a file; give --prompts.")
    prompts = _prompts(options)
    request = make_request(folder, prompts, **settings)
    requests = [request]
    if options.styles:
        same = settings | {"seed": request.seed}
        requests = [make_request(folder, prompts, **same | {"style": style}) for style in folder.styles]
    jobs = []
    for each in requests:
        names = [title(prompt, each.style) for prompt in each.prompts]
        targets = [plan_output(options.output.output, name, seed) for name in names for seed in each.seeds]
        if options.styles and options.output.output and targets[0] == Path(options.output.output):
            targets = [path.with_stem(f"{path.stem}-{slug(each.style)}") for path in targets]  # the sheet has the name
        jobs.append(Job(each, targets))
    return jobs, 0


def _write_all(pipeline, jobs: list["Job"], options: Generate, progress, record) -> None:
    """Generate every request and write its images as they come, then the sheet of styles."""
    from pixart.pipeline.cutout import cut_out
    from pixart.pipeline.image_files import plan_output, write_image

    total = sum(len(job.targets) * job.request.steps_in_all for job in jobs)
    progress.start("generating", total, unit="steps")
    written: set[Path] = set()
    by_style: dict[str | None, list] = {}
    for job in jobs:
        images = pipeline.generate(job.request, lambda index, step: progress.advance(), progress.say)
        for planned, generated in zip(job.targets, images, strict=True):
            if planned is None:
                continue
            by_style.setdefault(job.request.style, []).append(generated.image)
            if options.output.transparent:
                settings = {**generated.settings, "transparent": True}
                generated = replace(generated, image=cut_out(generated.image), settings=settings)
            planned.parent.mkdir(parents=True, exist_ok=True)
            path = write_image(generated.image, generated.settings, planned, metadata=not options.output.no_metadata)
            written.add(path)
            record(generated)
            if path != planned and planned not in written:  # with one name for several images, the first has it
                progress.say(f"{planned} exists already and was kept; the new image is {path}.")
            result = json.dumps({"path": str(path), **generated.settings}) if options.output.json else str(path)
            progress.result(result)
    if options.styles:
        from pixart.evaluation.style_sheet import style_sheet

        request = jobs[0].request
        planned = plan_output(options.output.output, f"{request.prompts[0]} styles", request.seed)
        sheet = write_image(style_sheet(by_style), None, planned, metadata=not options.output.no_metadata)
        progress.result(
            json.dumps({"sheet": str(sheet), "styles": list(by_style)}) if options.output.json else str(sheet)
        )


def _settings(options: Generate) -> dict[str, Any]:
    """The options that `make_request` takes."""
    settings = asdict(options.settings) | {"binning": _either(options.binning, options.no_binning)}
    settings |= {"image": options.start.image, "mask": options.start.mask, "outpaint": options.start.outpaint}
    settings |= {"control_image": options.start.control_image, "control_scale": options.start.control_scale}
    if options.size is not None:
        match = re.fullmatch(r"(\d{1,5})\s*[xX*\u00d7]\s*(\d{1,5})", options.size.strip())
        if match is None:
            raise UsageError(f'--size {shortened(options.size)} is not a size; give it as in "768x512".')
        if settings["width"] or settings["height"]:
            raise UsageError("--size is width and height together; leave --width and --height out.")
        settings |= {"width": int(match[1]), "height": int(match[2])}
    return settings


def _either(on: bool, off: bool) -> bool | None:
    """What --binning and --no-binning together mean; None if neither was given."""
    if on and off:
        raise UsageError("--binning and --no-binning exclude each other; give one of them.")
    return True if on else False if off else None


@contextlib.contextmanager
def _tracking(tool: str | None, folder: Path, say: Callable[[str], None]):
    """A function that takes each image when it is done; the service gets them together, as one call, at the end."""
    if tool is None:
        yield lambda image: None
        return
    from pixart.tracking.generations import GenerationTracker

    images: list = []
    with GenerationTracker(tool, folder, report=say) as tracker:
        begun = time.monotonic()
        try:
            yield images.append
        finally:
            tracker.log(images, time.monotonic() - begun)


def _prompts(options: Generate) -> list[str]:
    """The prompt, or those of standard input; if none is given, the one that a file of text states holds."""
    from pixart.encoders.text_states import read_head
    from pixart.evaluation.prompt_sets import read_prompts

    if options.prompt == "-":
        return [prompt.text for prompt in read_prompts("-")]
    if options.prompt is not None:
        if options.prompt.endswith((".txt", ".jsonl")) and Path(options.prompt).is_file():
            raise UsageError(f"{options.prompt} is a file; to generate the prompts in it, give --prompts before it.")
        return [options.prompt]
    if options.memory.text_states is None:
        raise UsageError('There is no prompt; give one, as in: pixart generate "a red apple".')
    prompts = read_head(options.memory.text_states)[0].prompts
    if len(prompts) > 1:
        listed = ", ".join(f'"{prompt}"' for prompt in prompts)
        raise UsageError(f"{options.memory.text_states} holds several prompts; name one of them: {listed}.")
    return [prompts[0]]
