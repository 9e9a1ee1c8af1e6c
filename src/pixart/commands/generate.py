"""`pixart generate`: images of a prompt, written as PNG, JPEG or WebP."""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from pixart.config import shortened, shown
from pixart.errors import UsageError
from pixart.pipeline.settings import RANDOM_SEED, Settings
from pixart.quiet import quiet_libraries
from pixart.runtime.memory import PLAIN, Memory


@dataclass
class Generate:
    """Generate images of a prompt and write them; prints the path of each.

    The same prompt, seed and settings give the same image. What is left out is taken from the model folder.
    """

    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT", help_behavior_hint="(required)")]] = None
    """What the image shows, in quotes; not required with --text-states of one prompt."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder in the layout of Diffusers, its id on the Hugging Face Hub, or an official file with --parts."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    ema: bool = False
    """Of an official file: the moving average that it holds."""
    num_heads: Annotated[int | None, shown("N", "16")] = None
    """Of an official file: the one size that its tensors do not tell."""
    image_size: Annotated[int | None, shown("PIXELS", "by pos_embed")] = None
    """Of an official file without pos_embed: side of the images that it was trained on."""
    fast: bool = False
    """Use the model's few-step transformer: guidance is in its weights."""
    styles: bool = False
    """Generate the prompt in each of the model's styles, and write them all on one sheet too."""
    lora: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:X]")] = ()
    """An adapter (LoRA and its kin), a safetensors file or folder, at strength X: style.safetensors:0.8. Repeat the
    option for several."""
    settings: Annotated[Settings, arg(name="")] = field(default_factory=Settings)
    size: Annotated[str | None, shown("WxH", "the model's")] = None
    """Width and height together, as in 768x512."""
    binning: bool = False
    """Generate the official size of the nearest shape and fit it to width and height, as models that predict eps do."""
    no_binning: bool = False
    """Generate width and height exactly, as flow models do; they must be multiples of the model's patches."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """onnx (ONNX Runtime, needs the folder's graphs), torch, or auto: the first where it can be had."""
    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32; with torch also bfloat16 and float16; with onnx int8, faster and not quite the same image; or auto."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu; with torch also cuda and mps; or auto: the CPU where the folder has graphs, else the fastest there is."""
    memory: Annotated[Memory, arg(name="")] = PLAIN
    output: Annotated[str | None, shown("PATH", "the current folder")] = None
    """A .png, .jpg or .webp file, or a folder. An existing file is kept: the next free name is taken."""
    transparent: bool = False
    """Cut out the object: the white around it becomes transparent, with soft edges."""
    json: bool = False
    """Print one JSON object per image instead of its path."""
    no_metadata: bool = False
    """Write images without settings, prompt and the mark that they are AI-made; they cannot be generated again."""
    track: Annotated[str | None, shown("TOOL", "none")] = None
    """Record the images in wandb or trackio: configuration, texts, seeds, time."""


def generate(options: Generate) -> int:
    """Run `pixart generate`; prints the path of every image."""
    # Everything that can be wrong with the request is reported before torch is loaded, which takes seconds.
    from pixart.checkpoints.adapters import check_loras
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.checkpoints.styles import style_notice
    from pixart.pipeline.image_files import check_output, plan_output
    from pixart.pipeline.networks import choose_runtime, load_networks
    from pixart.pipeline.request import check_text_states, make_request
    from pixart.progress import Progress

    with quiet_libraries():
        folder = open_model_folder(
            options.model,
            parts=options.parts,
            ema=options.ema,
            num_heads=options.num_heads,
            image_size=options.image_size,
            fast=options.fast,
        )
    style = options.settings.style
    if options.styles and (style is not None or not folder.styles):
        why = f"--style {style} is one of them" if style else "this model has none"
        raise UsageError(f"--styles generates in all styles of the model, and {why}; leave one of the two out.")
    request = make_request(folder, _prompt(options), **_settings(options))
    requests = [request]
    if options.styles:
        same = _settings(options) | {"seed": request.seed}
        requests = [make_request(folder, _prompt(options), **same | {"style": style}) for style in folder.styles]
    loras = check_loras(folder, options.lora)
    for_torch = options.engine == "auto" and request.null_text != "encoded"
    engine = "torch" if for_torch else options.engine
    target = plan_output(options.output, request.resolved_prompts[0], request.seeds[0])
    if options.memory.text_states is not None:
        for each in requests:
            check_text_states(folder, each, options.memory.text_states)
    with quiet_libraries(), Progress() as progress:
        runtime = choose_runtime(folder, engine, options.dtype, options.memory, options.device)
        check_output(target)
        if options.settings.seed in (None, RANDOM_SEED):
            progress.say(f"The seed is {request.seed}, chosen at random; --seed {request.seed} generates this again.")
        if notice := style_notice(request.style, folder.styles):
            progress.say(notice)
        progress.say(runtime.line)
        progress.start("loading the model")
        from pixart.pipeline.pipeline import Pipeline

        for notice in [notice for lora in loras for notice in lora.adapter.notices]:
            progress.say(notice)
        pipeline = Pipeline(folder, load_networks(folder, runtime))
        pipeline.use(loras)
        with _tracking(options.track, target.parent, progress.say) as record:
            _write_all(pipeline, requests, options, target, progress, record)
    return 0


def _write_all(pipeline, requests, options: Generate, target: Path, progress, record) -> None:
    """Generate every request and write its images as they come, then the sheet of styles."""
    from pixart.pipeline.cutout import cut_out
    from pixart.pipeline.image_files import plan_output, slug, write_image

    total = sum(len(request.seeds) * request.steps for request in requests)
    progress.start("generating", total, unit="steps")
    written: set[Path] = set()
    by_style: dict[str | None, list] = {}
    for request in requests:
        for generated in pipeline.generate(request, lambda index, step: progress.advance(), progress.say):
            planned = plan_output(options.output, request.resolved_prompts[0], generated.seed)
            if options.styles and planned == target and options.output and planned == Path(options.output):
                planned = planned.with_stem(f"{planned.stem}-{slug(request.style)}")  # the sheet has the name itself
            by_style.setdefault(request.style, []).append(generated.image)
            if options.transparent:
                settings = {**generated.settings, "transparent": True}
                generated = replace(generated, image=cut_out(generated.image), settings=settings)
            path = write_image(generated.image, generated.settings, planned, metadata=not options.no_metadata)
            written.add(path)
            record(generated)
            if path != planned and planned not in written:  # with one name for several images, the first has it
                progress.say(f"{planned} exists already and was kept; the new image is {path}.")
            result = json.dumps({"path": str(path), **generated.settings}) if options.json else str(path)
            progress.result(result)
    if options.styles:
        from pixart.evaluation.style_sheet import style_sheet

        planned = plan_output(options.output, f"{requests[0].prompts[0]} styles", requests[0].seeds[0])
        sheet = write_image(style_sheet(by_style), None, planned, metadata=not options.no_metadata)
        progress.result(json.dumps({"sheet": str(sheet), "styles": list(by_style)}) if options.json else str(sheet))


def _settings(options: Generate) -> dict[str, Any]:
    """The options that are fields of `Settings`."""
    settings = asdict(options.settings) | {"binning": _either(options.binning, options.no_binning)}
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


def _prompt(options: Generate) -> str:
    """The prompt; if none is given, the one that a file of text states holds."""
    from pixart.encoders.text_states import read_head

    if options.prompt is not None:
        return options.prompt
    if options.memory.text_states is None:
        raise UsageError('There is no prompt; give one, as in: pixart generate "a red apple".')
    prompts = read_head(options.memory.text_states)[0].prompts
    if len(prompts) > 1:
        listed = ", ".join(f'"{prompt}"' for prompt in prompts)
        raise UsageError(f"{options.memory.text_states} holds several prompts; name one of them: {listed}.")
    return prompts[0]
