"""`pixart finetune IMAGES`: a model that knows your images, in one command.

Checks the data, encodes it, chooses what was left open and says why, trains, and ends with an adapter and the command
that generates with it. Everything lies in one folder; stopped or killed, the same command goes on.

    OUTPUT/finetune.json   what was given
    OUTPUT/class/          images of the class that the model has made, for prior preservation
    OUTPUT/features/       the encoded images and captions
    OUTPUT/recipe.toml     what is trained, for `pixart train`
    OUTPUT/run/            the run folder, with samples
    OUTPUT/NAME.safetensors, or OUTPUT/run/model for the method full
"""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from pixart.config import shown
from pixart.data.dataset import Dataset, captions_folder, open_dataset
from pixart.data.pairs import ORIGINAL, Caption, ImageProblem, Pair, Problem, read_bytes
from pixart.errors import UsageError
from pixart.files import read_json_object, write_json, write_whole
from pixart.images import open_image
from pixart.pipeline.settings import MIN_SIZE
from pixart.runtime.device import Device, choose_device, choose_precision, find_devices

if TYPE_CHECKING:
    from pixart.checkpoints.model_folder import ModelFolder

FEWEST = 5  # images; fewer are learned by heart
ALLOWED = 0.2  # share of the images that may be unusable, each of which is named
PASSES = 30  # over the images, within the two numbers of image passes below
PASSES_FEWEST, PASSES_MOST = 800, 40_000
LARGEST_BATCH = 8
RATE, RATE_WIDTH = {"adapter": 2e-4, "full": 1e-5}, 1152  # of XL/2; narrower networks take more, in proportion
# Bytes that training holds per token, width and block, and what remains with activations computed again.
ACTIVATION_BYTES, RECOMPUTED_BYTES = 100, 6
MEMORY_SHARE = 0.8  # of the free memory
TRAINED_BYTES = {"adamw": 20, "came": 16}  # per parameter in fp32: weight, gradient, optimizer, average
UNMASKED_WEIGHT = 0.1  # of the loss outside of masks
CAPTIONED = 8  # images that a captioner gets together


@dataclass
class Finetune:
    """Teach a model a style or a subject from a folder of images; prints the path of the adapter.

    The model itself stays as it is. Stopped or killed, the same command goes on. What is chosen, and why, is shown
    before it begins; --dry-run ends there. docs/finetuning.md goes through an example.
    """

    images: Annotated[str, arg(metavar="IMAGES")]
    """Folder or file with images and captions, in any layout of docs/data.md."""
    model: Annotated[str | None, shown("MODEL", "the model in the package")] = None
    """Model folder, hub id, or an official file with --parts."""
    parts: Annotated[str | None, shown("FOLDER", "none")] = None
    """For an official file: the model folder or hub id that has the text encoder, autoencoder and the rest."""
    output: Annotated[Path | None, shown("FOLDER", "runs/NAME, after the images")] = None
    """Folder for everything that is made."""
    method: Literal["lora", "dora", "lokr", "loha", "full", "dreambooth"] = "lora"
    """What is trained: an adapter of a kind, or all weights. dreambooth: a LoRA of one subject with --class-prompt."""
    trigger: Annotated[str | None, shown("TEXT", "none")] = None
    """Words that call what is learned: the caption of images that have none, such as "a photo of sks dog", or a part of
    every caption, such as "inkhatch style"."""
    captioner: Annotated[str | None, shown("FOLDER|ID", "none")] = None
    """A vision-language model that writes the captions of images that have none, as pixart data caption does."""
    masked: bool = False
    """Learn what is white in IMAGE-masklabel.png, or opaque in the image, and little of the rest."""
    class_prompt: Annotated[str | None, shown("TEXT", "captions without the trigger")] = None
    """What the model knew before, such as "a photo of a dog". With a trigger, its own images of that are trained on as
    well, so that it does not forget it (prior preservation)."""
    class_images: Annotated[int | None, shown("N", "as many as there are images")] = None
    """How many of those; 0 for none."""
    size: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Images have about this number squared of pixels, in their own shapes."""
    steps: Annotated[int | None, shown("N", "by the number of images", "--max-train-steps")] = None
    """Optimizer steps."""
    batch_size: Annotated[int | None, shown("N", "8, or the number of images")] = None
    """Images in a step."""
    learning_rate: Annotated[float | None, shown("X", "by method and width")] = None
    """Peak of the learning rate."""
    rank: Annotated[int, arg(metavar="N")] = 16
    """Of the adapter."""
    prompts: Annotated[tuple[str, ...], shown("TEXT ...", "two captions, and one prompt of the model")] = ()
    """What is sampled while training."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the training."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, cuda, mps, or auto."""
    price: Annotated[float | None, shown("X", "none")] = None
    """Of an hour on this machine, in any currency: the plan then says what the training costs."""
    dry_run: bool = False
    """Check the data, show the plan, and end."""


@dataclass(frozen=True)
class Found:
    """A data set that was read once: its captions, image by image (without the trigger)."""

    dataset: Dataset
    captions: list[str | None]
    class_prompts: list[str]
    class_images: int

    @property
    def images(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, kw_only=True)
class Captioned(Dataset):
    """A data set with the trigger as the caption of images that have none, and images of the class behind it.

    `shares`: how often an image of either kind is trained on.
    """

    trigger: str | None
    classes: Dataset | None
    shares: tuple[int, int]

    def pairs(self) -> Iterator[Pair | Problem]:
        for one in super().pairs():
            if isinstance(one, Pair):
                captions = with_trigger(one, self.trigger)
                problem = None if captions else one.caption_problem
                one = replace(one, captions=captions, caption_problem=problem, repeats=one.repeats * self.shares[0])
            yield one
        for one in self.classes.pairs() if self.classes else ():
            yield replace(one, key=f"class/{one.key}", repeats=self.shares[1]) if isinstance(one, Pair) else one


def with_trigger(pair: Pair, trigger: str | None) -> tuple[Caption, ...]:
    """The captions of an image: the trigger itself where there are none, and in front of those that a model wrote."""
    if not trigger:
        return pair.captions
    written = [caption.source != ORIGINAL and trigger not in caption.text for caption in pair.captions]
    captions = zip(pair.captions, written, strict=True)
    return tuple(replace(c, text=f"{trigger}, {c.text}") if new else c for c, new in captions) or (
        Caption(trigger, ORIGINAL),
    )


@dataclass(frozen=True)
class Plan:
    """A recipe as a table, and why it is so: (what, value, reason)."""

    recipe: dict[str, Any]
    lines: list[tuple[str, str, str]]


def finetune(options: Finetune) -> int:
    """Run `pixart finetune`."""
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.progress import Progress
    from pixart.training.recipe import load
    from pixart.training.run import train

    _check(options)
    output = options.output or Path("runs") / (Path(options.images).resolve().name or "finetune")
    begun = _begun(output, options)
    found = look(options)
    folder = open_model_folder(options.model, parts=options.parts)
    with Progress() as progress:
        if options.captioner and None in found.captions and not options.dry_run:
            _write_captions(options, found.dataset, progress)
            found = look(options)
        if not begun:
            device = choose_device(find_devices(), options.device)
            plan = choose(options, found, folder, device, output)
            for what, value, reason in [*plan.lines, *_cost(options, found, folder, plan, device)]:
                progress.say(f"  {what:16} {value:24} {reason}")
            if options.dry_run:
                return 0
            write_json(output / "finetune.json", _given(options))
            write_whole(output / "recipe.toml", to_toml(plan.recipe))
        _extract(options, found, folder, output, progress)
    task, recipe = load(str(output / "recipe.toml"))
    made = train(task, recipe)
    name = [] if options.model is None else ["--model", str(options.model)]
    name += [] if options.parts is None else ["--parts", options.parts]
    prompt = next((text for text in found.captions if text), options.trigger)
    if made.suffix == ".safetensors":
        made = _named(made, output / f"{output.name}.safetensors", options)
        name += ["--lora", str(made)]
    else:
        name = ["--model", str(made)]
    with Progress() as progress:
        progress.say(f"Generate with it: {shlex.join(['pixart', 'generate', str(prompt), *name])}")
        progress.result(str(made))
    return 0


def look(options: Finetune) -> Found:
    """Read the data set once, without its pixels.

    Raises:
        UsageError: it has too few images, images without captions and no trigger, or captions without the trigger.
    """
    dataset = open_dataset(Path(options.images))
    pairs = [one for one in dataset.pairs() if isinstance(one, Pair)]
    if len(pairs) < FEWEST:
        raise UsageError(f"{options.images} has {len(pairs)} images; fine-tuning needs at least {FEWEST}.")
    captions = [with_trigger(pair, options.trigger)[0].text if pair.captions else None for pair in pairs]
    bare = sum(text is None for text in captions)
    if bare and not options.trigger and not options.captioner:
        raise UsageError(
            f"{bare:,} of {len(pairs):,} images have no caption; give one for them with --trigger "
            '"a photo of sks dog", or a model that writes them with --captioner llava-hf/llava-1.5-7b-hf.'
        )
    trigger = options.trigger or ""
    other = [pair.key for pair in pairs for c in with_trigger(pair, trigger) if trigger not in c.text]
    if options.masked and not any(map(_has_mask, pairs)):
        raise UsageError(
            f"--masked, and no image of {options.images} is transparent or has a mask beside it, such as "
            "cat-masklabel.png for cat.jpg."
        )
    if other:
        raise UsageError(
            f'{len(other):,} captions do not contain the trigger "{options.trigger}", the first of {other[0]}; write '
            "it into them, or leave --trigger out."
        )
    prompts = [options.class_prompt] if options.class_prompt else []
    if options.trigger and not prompts:
        prompts = [" ".join((text or "").replace(options.trigger, " ").split()).strip(" ,.;") for text in captions]
        prompts = list(dict.fromkeys(text for text in prompts if text))
    wanted = len(pairs) if options.class_images is None else options.class_images
    return Found(dataset, captions, prompts, wanted if prompts else 0)


def choose(options: Finetune, found: Found, folder: "ModelFolder", device: Device, output: Path) -> Plan:
    """Everything that was left open, from the model, the data and the device's free memory; a pure function."""
    config, method = folder.transformer, "lora" if options.method == "dreambooth" else options.method
    kind, width = "full" if method == "full" else "adapter", config["cross_attention_dim"]
    size = options.size or folder.native_size
    precision = choose_precision(device)
    images = found.images + found.class_images
    validation = max(1, images // 10)
    batch = options.batch_size or min(LARGEST_BATCH, images - validation)
    tokens = (size // folder.size_multiple) ** 2
    parameters = _parameters(config)
    image = tokens * width * config["num_layers"] * ACTIVATION_BYTES
    for optimizer in TRAINED_BYTES:  # the second is for less memory
        weights = parameters * (TRAINED_BYTES[optimizer] if kind == "full" else 4)
        left = device.free_bytes * MEMORY_SHARE - weights
        again = left < 2 * image
        needed = image * RECOMPUTED_BYTES // ACTIVATION_BYTES if again else image
        if left >= needed or kind != "full":
            break
    image = needed
    if left < image:
        need = (weights + image) / MEMORY_SHARE / 1e9
        raise UsageError(
            f"{options.method} of this model at {size} pixels needs about {need:.1f} GB, and {device.name} has "
            f"{device.free_bytes / 1e9:.1f} GB free; give a smaller --size"
            + (", or --method lora." if kind == "full" else ".")
        )
    parts = next(n for n in range(1, batch + 1) if batch % n == 0 and (batch // n) * image <= left)
    passes = min(max(PASSES * images, PASSES_FEWEST), PASSES_MOST)
    steps = options.steps or math.ceil(passes / batch)
    rate = options.learning_rate or float(f"{RATE[kind] * RATE_WIDTH / width:.1e}")
    objective = "flow" if folder.scheduler.get("use_flow_sigmas") else "ddpm"
    prompts = options.prompts or _prompts(options, found)
    every = math.ceil(steps / 4)
    masked = {"unmasked_weight": UNMASKED_WEIGHT} if options.masked else {}
    task = {
        "init": str(folder.path) if options.model is None else options.model,
        "validation": validation,
        "caption_dropout": 0.1 if kind == "full" else 0.0,  # an adapter leaves the model without text as it is
        "allow_dropped": ALLOWED,
        **masked,
        **({"flow_shift": float(folder.scheduler.get("flow_shift", 1.0))} if objective == "flow" else {}),
    }
    recipe = {
        "task": "text_to_image",
        "output": str(output / "run"),
        "text_to_image": task,
        "trainable": {"method": method} | ({} if kind == "full" else {"rank": options.rank}),
        "loop": {
            "seed": options.seed, "device": device.type, "accumulate": parts, "checkpoint_activations": again,
            "log_every": max(1, min(20, steps // 10)), "validate_every": every, "save_every": every,
        },
        "optimizer": {"name": optimizer, "learning_rate": rate, "warmup_steps": min(100, steps // 10)},
        "ema": {"decays": [0.98]},
        "samples": {"prompts": list(prompts), "guidance_scale": float(folder.defaults.get("guidance_scale", 4.5))},
        "phases": [{"steps": steps, "batch_size": batch, "features": str(output / "features")}],
    }  # fmt: skip
    own = "as given"
    in_parts = f"{batch}" if parts == 1 else f"{batch} in {parts} parts"
    named = sum(text is not None for text in found.captions)
    other = f"those of {options.captioner}" if options.captioner else f'"{options.trigger}"'
    lines = [
        ("images", f"{found.images:,}", f"{validation} of {images:,} in all validate, and are never trained on"),
        ("captions", f"{named:,} own", f"the other images get {other}" if named < found.images else "each"),
        ("the model's own", f"{found.class_images:,} images", "so that it does not forget what it knew"),
        ("method", method if kind == "full" else f"{method}, rank {options.rank}", "the model itself stays as it is"),
        ("objective", objective, "what the model was trained with"),
        ("size", f"about {size} x {size}", own if options.size else "what the model was trained at"),
        ("learning rate", f"{rate:g}", own if options.learning_rate else f"{RATE[kind]:g} of XL/2, by the width"),
        ("batch", in_parts, f"{device.free_bytes / 1e9:.1f} GB free on {device.name}"),
        ("activations", "computed again" if again else "kept", f"{image / 1e6:,.0f} MB for each image"),
        ("memory", f"{(weights + batch // parts * image) / 1e9:.1f} GB", f"computed; the optimizer is {optimizer}"),
        ("steps", f"{steps:,}", own if options.steps else f"{steps * batch / images:.0f} passes over all images"),
        ("precision", precision.arithmetic, precision.reason),
        ("recipe", str(output / "recipe.toml"), "for pixart train, to go on by hand"),
    ]
    if options.masked:
        lines.insert(2, ("masks", f"{UNMASKED_WEIGHT:g} of the loss", "is left where they are black"))
    if kind == "full":
        lines = [line for line in lines if line[0] != "method"]
        lines.insert(2, ("method", method, "all weights; ends as a model folder"))
    return Plan(recipe, lines)


def to_toml(table: dict[str, Any]) -> str:
    """A recipe's table as TOML: values, tables of values and lists of such tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and key != "phases"}
    blocks = ["\n".join(f"{key} = {_toml_value(value)}" for key, value in plain.items())]
    tables = [(f"[{key}]", value) for key, value in table.items() if isinstance(value, dict)]
    tables += [("[[phases]]", phase) for phase in table["phases"]]
    blocks += ["\n".join([head, *(f"{key} = {_toml_value(v)}" for key, v in body.items())]) for head, body in tables]
    return "\n\n".join(blocks) + "\n"


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's values are TOML's too


def _check(options: Finetune) -> None:
    if options.method == "dreambooth" and not (options.trigger and options.class_prompt):
        raise UsageError(
            'dreambooth needs the subject\'s words and its class: --trigger "a photo of sks dog" --class-prompt '
            '"a photo of a dog".'
        )
    for name, least, most in (
        ("class_images", 0, 10_000),
        ("size", MIN_SIZE, 8192),
        ("seed", 0, 2**40),
        ("rank", 1, 4096),
        ("steps", 1, 10**7),
        ("batch_size", 1, 4096),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; give {least} to {most:,}.")
    if options.price is not None and not 0 <= options.price < 1e6:
        raise UsageError(f"--price is {options.price:g}; give what an hour costs, from 0 to a million.")
    if options.learning_rate is not None and not 0 < options.learning_rate < 1:
        raise UsageError(f"--learning-rate is {options.learning_rate}; give a number between 0 and 1.")
    if options.trigger is not None and not options.trigger.strip():
        raise UsageError("--trigger is empty; give the words that name what is learned.")


def _given(options: Finetune) -> dict[str, Any]:
    """What decides the result, as finetune.json has it."""
    given = {k: v for k, v in asdict(options).items() if k not in ("output", "dry_run", "device", "price")}
    return json.loads(json.dumps(given))


def _begun(output: Path, options: Finetune) -> bool:
    """Whether a run was begun there. UsageError where it is another one."""
    if not (output / "finetune.json").is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"{output} is not empty and not of pixart finetune; give another --output.")
        return False
    there, wanted = read_json_object(output / "finetune.json"), _given(options)
    differ = [key for key in wanted if there.get(key) != wanted[key]]
    if differ:
        raise UsageError(f"{output} was begun with other options ({', '.join(differ)}); give another --output.")
    return (output / "recipe.toml").is_file()


def _parameters(config: dict[str, Any]) -> int:
    from pixart.checkpoints.adapters import layer_shapes

    return sum(rows * columns for rows, columns in layer_shapes(config).values())


def _prompts(options: Finetune, found: Found) -> list[str]:
    """Two captions that are not alike, and something that the model knew before."""
    texts = list(dict.fromkeys(text for text in (one or options.trigger for one in found.captions) if text))
    two = [texts[0], texts[len(texts) // 2]] if texts else []
    return list(dict.fromkeys([*two, *(found.class_prompts[:1] or ["a red apple"])]))


def _cost(
    options: Finetune, found: Found, folder: "ModelFolder", plan: Plan, device: Device
) -> list[tuple[str, str, str]]:
    """How long the training takes on this device, and what that costs: lines for the plan."""
    import torch

    from pixart.training.cost import seconds_per_image

    phase, loop, full = plan.recipe["phases"][0], plan.recipe["loop"], options.method == "full"
    rows = phase["batch_size"] // loop["accumulate"]
    side = (options.size or folder.native_size) // 8 // 2 * 2
    precision = choose_precision(device).arithmetic
    place = torch.device(device.type)
    one = seconds_per_image(folder.transformer, side, place, precision, rows=min(rows, 2), trained=full)
    passes = phase["steps"] * phase["batch_size"] * (4 / 3 if loop["checkpoint_activations"] else 1)
    # The model's own images: two forward passes for each denoising step, which are a half, or a third, of a training's.
    passes += found.class_images * folder.defaults.get("steps", 20) * 2 / (3 if full else 2)
    hours = one * passes / 3600
    lines = [
        (
            "time",
            f"about {max(1, round(60 * hours)):,} min",
            f"{one:.2g} s for an image in a step, measured; encoding and samples come on top",
        )
    ]
    if options.price is not None:
        lines.append(("cost", f"about {hours * options.price:,.2f}", f"at {options.price:g} for an hour"))
    return lines


def _has_mask(pair: Pair) -> bool:
    try:
        return pair.mask is not None or open_image(read_bytes(pair.image)).alpha
    except ImageProblem:
        return False


def _write_captions(options: Finetune, dataset: Dataset, progress: Any) -> None:
    """Captions for the images that have none, where `pixart data caption` writes them; stopped, it goes on there."""
    from pixart.data.captioner import caption_batch, item_of
    from pixart.data.vision_language import VisionLanguageCaptioner
    from pixart.data.written_captions import CaptionFile

    captioner = VisionLanguageCaptioner(options.captioner, device=options.device)
    with CaptionFile(captions_folder(dataset.path), captioner.source, captioner.about()) as file:
        pairs = [one for one in dataset.pairs() if isinstance(one, Pair) and not one.captions and one.key not in file]
        progress.start("captioning", len(pairs), unit="images")
        captioner.load()
        for start in range(0, len(pairs), CAPTIONED):
            rows = caption_batch(captioner, [item_of(pair) for pair in pairs[start : start + CAPTIONED]])
            file.add(rows)
            for row in rows:
                if row["caption"] is None:
                    progress.say(f"not captioned: {row['key']} ({row['rejected']})")
            progress.update(start + len(rows))


def _extract(options: Finetune, found: Found, folder: "ModelFolder", output: Path, progress: Any) -> None:
    """The features of the images, and of the class's; says what was left out."""
    from pixart.data.extract import Account, Encoders, choose_for, extract
    from pixart.data.features import Settings

    classes = _class_images(options, found, folder, output, progress) if found.class_images else None
    ratio = found.class_images / found.images if classes else 1.0
    shares = max(1, round(ratio)), max(1, round(1 / ratio))  # so that both kinds are trained on equally often
    dataset = Captioned(
        found.dataset.path, found.dataset.found, trigger=options.trigger, classes=classes, shares=shares
    )
    progress.start("encoding the images", found.images + found.class_images, unit="images")
    machine = choose_for(choose_device(find_devices(), options.device))
    sizes = {"base_size": options.size or folder.native_size, "max_tokens": folder.max_tokens}
    settings = Settings(**sizes, masks=options.masked, **machine)
    encoders = Encoders(*(folder.path / name for name in ("vae", "text_encoder", "tokenizer")))

    def show(account: Account) -> None:
        progress.update(account.images)

    _, account = extract(
        dataset, output / "features", encoders, settings, chosen=list(machine), allow_dropped=ALLOWED, progress=show
    )
    for example in account.examples:
        progress.say(f"left out: {example}")
    if account.cut:
        progress.say(f"{account.cut} captions are longer than the {folder.max_tokens} tokens that the model reads.")


def _class_images(options: Finetune, found: Found, folder: "ModelFolder", output: Path, progress: Any) -> Dataset:
    """The model's own images of the class, made where they are not there yet."""
    from pixart.pipeline.networks import choose_runtime, load_networks
    from pixart.pipeline.pipeline import Pipeline

    place = output / "class"
    missing = [n for n in range(found.class_images) if not (place / f"{n:05d}.png").is_file()]
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        progress.start("generating the model's own images", found.class_images, unit="images")
        pipeline = Pipeline(folder, load_networks(folder, choose_runtime(folder, device=options.device)))
        for number in missing:
            prompt = found.class_prompts[number % len(found.class_prompts)]
            image = pipeline(prompt, seed=options.seed + number).images[0]
            write_whole(place / f"{number:05d}.txt", prompt)
            partial = place / f".{number:05d}.part"
            image.save(partial, format="png")
            partial.replace(place / f"{number:05d}.png")
            progress.update(number + 1)
    return open_dataset(place)


def _named(made: Path, dest: Path, options: Finetune) -> Path:
    """The adapter under its own name, with the words that call it in its header."""
    from pixart.checkpoints.adapters import read_adapter, write_adapter

    words = {"modelspec.trigger_phrase": options.trigger} if options.trigger else {}
    write_adapter(read_adapter(made), dest, header=words | {"modelspec.title": dest.stem})
    return dest
