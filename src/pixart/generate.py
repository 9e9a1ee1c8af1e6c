"""`pixart generate`: draw pictures of a prompt and write them as PNG."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart.errors import UsageError
from pixart.options import either, shown
from pixart.quiet import quiet_libraries
from pixart.sampling.memory import PLAIN, Memory


@dataclass
class Generate:
    """Draw pictures of a prompt and write them as PNG; prints the path of each.

    The same prompt, seed and settings give the same bytes, alone or among others. What is left out is taken from the
    model folder.
    """

    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT", help_behavior_hint="(required)")]] = None
    """What to draw, in quotes; not required with --text-states of one prompt."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder in the layout of Diffusers, its id on the Hugging Face Hub, or an official file with --parts."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    ema: bool = False
    """Of an official file: the moving average that it holds."""
    num_heads: Annotated[int | None, shown("N", "16")] = None
    """Of an official file: the one size that its tensors do not tell."""
    image_size: Annotated[int | None, shown("PIXELS", "by pos_embed")] = None
    """Of an official file without pos_embed: side of the pictures that it was trained on."""
    fast: bool = False
    """Draw with the model's fast denoiser: a few steps, and guidance is in its weights."""
    style: Annotated[str | None, shown("NAME", "none")] = None
    """One of the model's styles."""
    styles: bool = False
    """Draw the prompt in each of the model's styles, and write them all on one sheet too."""
    negative_prompt: Annotated[str, shown("TEXT", "none")] = ""
    """What to steer away from."""
    seed: Annotated[int | None, shown("N", "at random")] = None
    """Names the noise that the first picture starts from; the next pictures take the next seeds."""
    num_images: Annotated[int, arg(metavar="N")] = 1
    """How many pictures."""
    steps: Annotated[int | None, shown("N", "the model's, else what suits the sampler")] = None
    """How many times the network looks at each picture."""
    guidance_scale: Annotated[float | None, shown("X", "the model's, else what suits the sampler")] = None
    """How strongly to follow the prompt; 1 means no guidance."""
    guidance_interval: Annotated[tuple[int, int], arg(metavar="FROM TO")] = (0, 1000)
    """Timesteps at which guidance acts: 0 is clean, 1000 is noise. Outside, the work is halved."""
    guidance_rescale: Annotated[float, arg(metavar="X")] = 0.0
    """From 0 to 1: takes back the oversaturation of strong guidance."""
    null_text: Annotated[str, arg(metavar="NAME")] = "encoded"
    """What guidance leads away from: the encoded text, or an official checkpoint's null caption: caption, under the
    prompt's mask, or caption-all."""
    guidance_channels: Annotated[int | None, shown("N", "all")] = None
    """Guide the first channels of the latent only; the official IDDPM script did 3 of 4."""
    block_cache: Annotated[int, arg(metavar="N")] = 1
    """With torch: compute the middle blocks at every Nth step only; faster, and not quite the same picture."""
    width: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Width of the picture."""
    height: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Height of the picture."""
    binning: bool = False
    """Draw the official size of the nearest shape and fit it to width and height, as models that predict eps do."""
    no_binning: bool = False
    """Draw width and height exactly, as flow models do; they must be multiples of what the model patches."""
    sampler: Annotated[str | None, shown("NAME", "the model's, else dpm-solver")] = None
    """dpm-solver, sa-solver, euler; for models that predict eps also ddim, ddpm, lcm."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """onnx (ONNX Runtime, needs the folder's graphs), torch, or auto: the first where it can be had."""
    dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """float32; or int8, faster and not quite the same picture, with the engine onnx; or bfloat16 with torch."""
    device: Annotated[str, arg(metavar="NAME")] = "cpu"
    """cpu, or with torch cuda."""
    memory: Annotated[Memory, arg(name="")] = PLAIN
    output: Annotated[str | None, shown("PATH", "the current folder")] = None
    """A .png file or a folder. An existing file is kept: the next free name is taken."""
    transparent: bool = False
    """Cut out what is drawn: the white around it becomes transparent, with soft edges."""
    json: bool = False
    """Print one JSON object per picture instead of its path."""
    no_metadata: bool = False
    """Write pictures without settings, prompt and the mark that they are AI-made; they cannot be drawn again."""
    track: Annotated[str | None, shown("TOOL", "none")] = None
    """Record the drawing in wandb or trackio: configuration, texts, seeds, time, pictures."""


def generate(options: Generate) -> int:
    """Run `pixart generate`; prints the path of every picture."""
    # All that can be wrong with the request is said before torch is loaded, which takes seconds.
    from pixart.sampling.cutout import cut_out
    from pixart.sampling.engine import check_block_cache, choose_engine
    from pixart.sampling.image_files import check_output, plan_output, slug, write_png
    from pixart.sampling.model_folder import open_model_folder
    from pixart.sampling.request import check_text_states
    from pixart.sampling.styles import style_notice

    with quiet_libraries():
        folder = open_model_folder(
            options.model,
            parts=options.parts,
            ema=options.ema,
            num_heads=options.num_heads,
            image_size=options.image_size,
            fast=options.fast,
        )
    if options.styles and (options.style is not None or not folder.styles):
        why = f"--style {options.style} is one of them" if options.style else "this model has none"
        raise UsageError(f"--styles draws in all styles of the model, and {why}; leave one of the two out.")
    requests = [_request(folder, options, options.style, options.seed)]
    if options.styles:
        requests = [_request(folder, options, style, requests[0].seeds[0]) for style in folder.styles]
    request = requests[0]
    for_torch = request.null_text != "encoded" or request.block_cache > 1
    wanted = "torch" if options.engine == "auto" and for_torch else options.engine
    engine = choose_engine(folder, wanted, options.dtype, options.memory, options.device)
    if request.block_cache > 1:
        check_block_cache(engine)
    if options.memory.text_states is not None:
        for asked in requests:
            check_text_states(folder, asked, options.memory.text_states)
    target = plan_output(options.output, request.resolved_prompts[0], request.seeds[0])
    check_output(target)

    from pixart.drawing_progress import DrawingProgress

    with (
        quiet_libraries(),
        DrawingProgress(len(requests) * len(request.seeds), request.steps) as progress,
        _tracking(options.track, target.parent, progress.say) as record,
    ):
        if options.seed is None:
            progress.say(
                f"The seed is {request.seeds[0]}, chosen at random; --seed {request.seeds[0]} draws this again."
            )
        if said := style_notice(request.style, folder.styles):
            progress.say(said)
        progress.loading()
        from pixart.sampling.pipeline import Pipeline

        pipeline = Pipeline(folder, engine=engine, dtype=options.dtype, memory=options.memory, device=options.device)
        progress.drawing()
        written: set[Path] = set()
        by_style: dict[str | None, list] = {}
        for asked in requests:
            for picture in pipeline.draw(asked, progress.step, progress.say):
                planned = plan_output(options.output, asked.resolved_prompts[0], picture.seed)
                if options.styles and planned == target and options.output and planned == Path(options.output):
                    planned = planned.with_stem(f"{planned.stem}-{slug(asked.style)}")  # the sheet has the name itself
                by_style.setdefault(asked.style, []).append(picture.image)
                if options.transparent:
                    settings = {**picture.settings, "transparent": True}
                    picture = replace(picture, image=cut_out(picture.image), settings=settings)
                path = write_png(picture.image, picture.settings, planned, metadata=not options.no_metadata)
                written.add(path)
                record(picture)
                progress.drawn(picture.seed)
                if path != planned and planned not in written:  # with one name for several pictures, the first has it
                    progress.say(f"{planned} exists already and was kept; the new picture is {path}.")
                progress.result(json.dumps({"path": str(path), **picture.settings}) if options.json else str(path))
        if options.styles:
            from pixart.evaluation.style_sheet import style_sheet

            planned = plan_output(options.output, f"{request.prompts[0]} styles", request.seeds[0])
            sheet = write_png(style_sheet(by_style), None, planned, metadata=not options.no_metadata)
            progress.result(json.dumps({"sheet": str(sheet), "styles": list(by_style)}) if options.json else str(sheet))
    return 0


def _request(folder, options: Generate, style: str | None, seed: int | None):
    """The options as a checked request, in one style, from one seed on."""
    from pixart.sampling.request import make_request

    return make_request(
        folder,
        _prompt(options),
        negative_prompt=options.negative_prompt,
        style=style,
        seed=seed,
        num_images=options.num_images,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        guidance_interval=options.guidance_interval,
        guidance_rescale=options.guidance_rescale,
        guidance_channels=options.guidance_channels,
        null_text=options.null_text,
        block_cache=options.block_cache,
        width=options.width,
        height=options.height,
        binning=either(options.binning, options.no_binning, "binning"),
        sampler=options.sampler,
    )


@contextlib.contextmanager
def _tracking(tool: str | None, folder: Path, say: Callable[[str], None]):
    """A function that takes each picture when it is drawn; the service gets them together, as one call, at the end."""
    if tool is None:
        yield lambda picture: None
        return
    from pixart.tracking.generations import GenerationTracker

    pictures: list = []
    with GenerationTracker(tool, folder, report=say) as tracker:
        begun = time.monotonic()
        try:
            yield pictures.append
        finally:
            tracker.log(pictures, time.monotonic() - begun)


def _prompt(options: Generate) -> str:
    """The prompt; if none is given, the one that a file of text states holds."""
    from pixart.encoders.text_states import read_head

    if options.prompt is not None:
        return options.prompt
    if options.memory.text_states is None:
        raise UsageError('There is no prompt; say what to draw, as in: pixart generate "a red apple".')
    prompts = read_head(options.memory.text_states)[0].prompts
    if len(prompts) > 1:
        listed = ", ".join(f'"{prompt}"' for prompt in prompts)
        raise UsageError(f"{options.memory.text_states} holds several prompts; name one of them: {listed}.")
    return prompts[0]
