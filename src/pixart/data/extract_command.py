"""`pixart data extract PATH DEST`: encode images and captions once, into the features that training reads."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.config import run_command, shown
from pixart.data.dropped import ALLOWED
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
BY_MACHINE = ("precision", "encoded_pixels", "threads")


@dataclass(frozen=True)
class ExtractOptions:
    """Encode the images and captions of a data set into a folder that training reads through a memory map.

    Stopped or killed, the same command goes on where it was. Features that were made from other data, by other
    encoders or with other settings are refused, with what differs. Under torchrun each process takes its part.
    """

    path: Annotated[str, arg(metavar="PATH")]
    """Folder or file with images; docs/data.md lists what is read. With --ray also a place in the cloud."""
    dest: Annotated[str, arg(metavar="DEST")]
    """Folder for the features; made if it is not there."""
    model: Annotated[Path | None, shown("FOLDER", "the shipped model")] = None
    """Model folder whose autoencoder and text encoder are used."""
    vae: Annotated[Path | None, shown("FOLDER", "the model's")] = None
    """Another autoencoder: a Diffusers AutoencoderKL."""
    text_encoder: Annotated[Path | None, shown("FOLDER", "the model's")] = None
    """Another text encoder: BERT or T5 of transformers."""
    tokenizer: Annotated[Path | None, shown("FOLDER", "beside the text encoder")] = None
    """Its tokenizer."""
    max_tokens: Annotated[int | None, shown("N", "300 for PixArt-Sigma's, else 120")] = None
    """Longest caption in tokens; must be what the model to train reads."""
    labels_only: bool = False
    """Leave captions out: for training on classes."""
    label: Annotated[tuple[str, ...], shown("COLUMN ...", "the data set's classes")] = ()
    """Metadata columns with classes."""
    base_size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Images have about this number squared of pixels, in buckets of many shapes."""
    step: Annotated[int | None, shown("PIXELS", "the official buckets, else 16")] = None
    """Compute the buckets: all sides are multiples of this."""
    square: bool = False
    """One bucket only, the square."""
    crop: Annotated[str, arg(metavar="HOW")] = "centre"
    """centre, random, or clever (cuts where there is least detail)."""
    crops: Annotated[int, arg(metavar="N")] = 1
    """Random crops of each image."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides random crops."""
    flip: bool = False
    """Encode the mirror image of each crop too."""
    caption_source: Annotated[tuple[str, ...], shown("NAME ...", "all")] = ()
    """Which captions to encode: original, metadata, or the name of a captioner."""
    precision: Annotated[str | None, shown("NAME", "bfloat16 where the device computes in it, else float32")] = None
    """float32 or bfloat16, in which the encoders compute. Features are stored in 16 bits."""
    encoded_pixels: Annotated[int | None, shown("N", "by the memory")] = None
    """Pixels that go through the autoencoder at once."""
    rows: Annotated[int, arg(metavar="N")] = 1024
    """Images in a batch: what is lost at most by a kill, and what a shard is made of."""
    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Run on a Ray cluster: its address, auto, or local for one on this machine."""
    workers: Annotated[int | None, shown("N", "one per CPU or share of a GPU")] = None
    """With --ray: workers; what they make does not depend on their number."""
    gpus_per_worker: Annotated[float, arg(metavar="X")] = 0.0
    """With --ray: GPUs that each worker takes; 0.5 puts two on one."""
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the images that may be unusable before the command stops."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with images or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""
    json: bool = False
    """Print the account as one JSON object instead of the path of the features."""

    def __post_init__(self):
        if not 0 <= self.allow_dropped <= 1:
            raise UsageError(f"--allow-dropped is {self.allow_dropped:g}; it is a share, so give 0 to 1.")
        if (self.gpus_per_worker or self.workers is not None) and self.ray is None:
            raise UsageError("--workers and --gpus-per-worker go with --ray; on one machine start ranks with torchrun.")
        if self.labels_only and self.text_encoder is not None:
            raise UsageError("--labels-only leaves captions out, and --text-encoder encodes them; give one of the two.")
        for name, most in (("rows", 100_000), ("base_size", 4096), ("crops", 64)):
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 to {most:,}.")
        for name in ("max_tokens", "encoded_pixels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more.")


def run(arguments: list[str]) -> int:
    """Everything after `pixart data extract`. Returns the exit code; raises PixArtError with one sentence."""
    return run_command(ExtractOptions, arguments, "pixart data extract", _run)


def _run(options: ExtractOptions) -> int:
    folders = _folders(options)  # what is missing is said before torch is loaded
    from pixart.data.dataset import open_dataset
    from pixart.data.extract import Account, Encoders, choose_for, extract
    from pixart.data.features import Settings
    from pixart.data.storage import is_url
    from pixart.progress import Progress
    from pixart.runtime.device import choose_device, find_devices

    vae, text_encoder, tokenizer = folders
    device = choose_device(find_devices())
    machine = choose_for(device) | ({"threads": 1} if options.ray else {})
    given = {name: getattr(options, name, None) for name in BY_MACHINE}
    settings = Settings(
        base_size=options.base_size, max_tokens=options.max_tokens or _max_tokens(text_encoder), step=options.step,
        square=options.square, crop=options.crop, crops=options.crops,
        seed=options.seed if options.crop == "random" else None, flip=options.flip,
        caption_sources=tuple(dict.fromkeys(options.caption_source)), labels=tuple(dict.fromkeys(options.label)),
        rows=options.rows, **{name: machine[name] if given[name] is None else given[name] for name in BY_MACHINE},
    )  # fmt: skip
    runner, where = None, device.name
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    if options.ray is not None:
        from pixart.data.layouts.layout import Columns
        from pixart.data.on_ray import cloud, session
        from pixart.data.on_ray.extract import runner as on_ray

        cluster = session.start(options.ray, workers=options.workers, gpus_per_worker=options.gpus_per_worker)
        runner, where = on_ray(cluster), f"{cluster.size()} workers of Ray ({options.ray})"
    elif is_url(options.path) or is_url(options.dest):
        raise UsageError("Places in the cloud are read and written on Ray: add --ray local, or a cluster's address.")
    if is_url(options.path):
        dataset = cloud.open_cloud(options.path, cluster, Columns(options.image_column, options.caption_column))
    else:
        dataset = open_dataset(Path(options.path), layout=options.layout, image_root=options.image_root, **columns)

    with Progress() as progress:
        progress.say(f"{options.path} ({dataset.layout}), on {where}.")
        progress.start("extracting", dataset.count_hint(), unit="images")

        def show(account: Account) -> None:
            progress.update(account.images, f"{account.skipped:,} skipped" if account.skipped else "")

        done = extract(
            dataset, options.dest, Encoders(vae, text_encoder, tokenizer), settings, run=runner, progress=show,
            chosen=[name for name in BY_MACHINE if given[name] is None], allow_dropped=options.allow_dropped,
        )  # fmt: skip
    if done:
        _show_account(done[1], done[0], options)
    return 0


def _folders(options: ExtractOptions) -> tuple[Path, Path | None, Path | None]:
    """Autoencoder, text encoder and tokenizer. Raises PixArtError where one of them is not there."""
    model = options.model or DEFAULT_MODEL
    vae = options.vae or model / "vae"
    text_encoder = tokenizer = None
    if not options.labels_only:
        text_encoder = options.text_encoder or model / "text_encoder"
        beside = [text_encoder.parent / "tokenizer", text_encoder]
        tokenizer = options.tokenizer or next((f for f in beside if _has_tokenizer(f)), beside[0])
        if not _has_tokenizer(tokenizer):
            raise PixArtError(f"{tokenizer} holds no tokenizer.json or spiece.model; name its folder with --tokenizer.")
    for folder in (vae, text_encoder):
        if folder is not None and not (folder / "config.json").is_file():
            raise PixArtError(f"{folder} holds no config.json; give a folder in the layout of Hugging Face.")
    return vae, text_encoder, tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def _max_tokens(text_encoder: Path | None) -> int:
    """What the model that the text encoder belongs to reads."""
    index = text_encoder.parent / "model_index.json" if text_encoder else None
    sigma = (
        index is not None and index.is_file() and read_json_object(index).get("_class_name") == "PixArtSigmaPipeline"
    )
    return 300 if sigma else 120


def _show_account(account, folder: str, options: ExtractOptions) -> None:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    kept = account.images - account.skipped
    if account.complete:
        say(f"{folder} holds the features of {kept:,} of {account.images:,} images already; nothing has changed.")
    else:
        for example in account.examples:
            say(f"Skipped: {example}")
        if account.skipped > len(account.examples):
            say(f"... and {account.skipped - len(account.examples):,} more; {folder}/skipped.jsonl names them all.")
        parts = [
            f"{kept:,} images extracted",
            f"{account.found_done:,} images were done before" if account.found_done else "",
            f"{account.skipped:,} skipped" if account.skipped else "",
            f"{account.cut:,} captions cut at the encoder's longest" if account.cut else "",
            f"{account.bytes / 1e6:,.1f} MB" if account.bytes else "",
        ]
        say(f"{'; '.join(part for part in parts if part)}; {account.seconds:.0f} s.")
    if options.json:
        values = {name: getattr(account, name) for name in ("images", "found_done", "skipped", "cut", "bytes")}
        print(json.dumps({"path": folder, **values, "reasons": account.reasons, "seconds": round(account.seconds, 1)}))
    else:
        print(folder)
