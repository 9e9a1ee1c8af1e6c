"""`pixart data extract PATH DEST`: encode images and captions once, into the features that training reads."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from pixart.checkpoints.model_folder import DEFAULT_MODEL
from pixart.commands.check import longest_caption
from pixart.commands.dataset_options import DatasetOptions, RayOptions
from pixart.config import shown
from pixart.data.dataset import ALLOWED
from pixart.data.storage import is_url
from pixart.encoders.text_files import tokenizer_folder
from pixart.encoders.tokenizer import MAX_TOKENS
from pixart.errors import PixArtError, UsageError
from pixart.progress import Progress
from pixart.runtime.device import choose_device, find_devices

if TYPE_CHECKING:
    from pixart.data.extract import Account


@dataclass(frozen=True)
class Extract:
    """Encode the images and captions of a data set into a folder that training reads through a memory map.

    Stopped or killed, the same command goes on where it was. Features that were made from other data, by other
    encoders or with other settings are refused, with what differs.
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
    crop: Literal["centre", "random", "clever"] = "centre"
    """clever cuts where there is least detail."""
    crops: Annotated[int, arg(metavar="N")] = 1
    """Random crops of each image."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides random crops."""
    flip: bool = False
    """Encode the mirror image of each crop too."""
    caption_source: Annotated[tuple[str, ...], shown("NAME ...", "all")] = ()
    """Which captions to encode: original, metadata, or the name of a captioner."""
    masks: bool = False
    """Keep masks for a masked loss: of IMAGE-masklabel.png, else of the alpha channel; without either, all counts."""
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, shown("NAME", "bfloat16 where the device computes in it, else float32")
    ] = None
    """float32 or bfloat16, in which the encoders compute. Features are stored in 16 bits."""
    encoded_pixels: Annotated[int | None, shown("N", "by the memory")] = None
    """Pixels that go through the autoencoder at once."""
    rows: Annotated[int, arg(metavar="N")] = 1024
    """Images in a batch: what is lost at most by a kill, and what a shard is made of."""
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the images that may be unusable before the command stops."""
    json: bool = False
    """Print the account as one JSON object instead of the path of the features."""

    cluster: Annotated[RayOptions, arg(name="")] = field(default_factory=RayOptions)
    dataset: Annotated[DatasetOptions, arg(name="")] = field(default_factory=DatasetOptions)

    def __post_init__(self):
        if not 0 <= self.allow_dropped <= 1:
            raise UsageError(f"--allow-dropped is {self.allow_dropped:g}; it is a share, so give 0 to 1.")
        if self.labels_only and self.text_encoder is not None:
            raise UsageError("--labels-only leaves captions out, and --text-encoder encodes them; give one of the two.")


def extract(options: Extract) -> int:
    """Run `pixart data extract`; prints the folder of the features."""
    vae, text_encoder, tokenizer = _folders(options)  # what is missing is said before torch is loaded
    from pixart.data import extract as extraction
    from pixart.data.features import Settings

    device = choose_device(find_devices())
    machine = extraction.choose_for(device) | ({"threads": 1} if options.cluster.ray else {})
    given = {"precision": options.precision, "encoded_pixels": options.encoded_pixels, "threads": None}
    longest = longest_caption(text_encoder.parent) if text_encoder else MAX_TOKENS
    settings = Settings(
        base_size=options.base_size,
        max_tokens=longest if options.max_tokens is None else options.max_tokens,
        step=options.step,
        square=options.square,
        crop=options.crop,
        crops=options.crops,
        seed=options.seed if options.crop == "random" else None,
        flip=options.flip,
        caption_sources=tuple(dict.fromkeys(options.caption_source)),
        labels=tuple(dict.fromkeys(options.label)),
        masks=options.masks,
        rows=options.rows,
        **{name: machine[name] if value is None else value for name, value in given.items()},
    )
    extraction.check_settings(settings)
    cluster, runner, where = options.cluster.start(), None, device.name
    if cluster is not None:
        from pixart.data.on_ray import runner as on_ray

        runner, where = on_ray(cluster), f"{cluster.size()} workers of Ray ({options.cluster.ray})"
    dataset = options.dataset.open(options.path, cluster)
    if cluster is None and is_url(options.dest):
        raise UsageError("Places in the cloud are written on Ray: add --ray local, or a cluster's address.")
    with Progress() as progress:
        progress.say(f"{options.path} ({dataset.layout}), on {where}.")
        progress.start("extracting", dataset.count_hint(), unit="images")
        folder, account = extraction.extract(
            dataset,
            options.dest,
            extraction.Encoders(vae, text_encoder, tokenizer),
            settings,
            run=runner,
            chosen=[name for name, value in given.items() if value is None],
            allow_dropped=options.allow_dropped,
            progress=lambda done: progress.update(done.images, f"{done.skipped:,} skipped" if done.skipped else ""),
        )
    _show(account, folder, options)
    return 0


def _folders(options: Extract) -> tuple[Path, Path | None, Path | None]:
    """Autoencoder, text encoder and tokenizer. Raises PixArtError where one of them is not there."""
    model = options.model or DEFAULT_MODEL
    vae = options.vae or model / "vae"
    text_encoder = tokenizer = None
    if not options.labels_only:
        text_encoder = options.text_encoder or model / "text_encoder"
        beside = (text_encoder.parent / "tokenizer", text_encoder)
        tokenizer = tokenizer_folder(*((options.tokenizer,) if options.tokenizer else beside))
    for folder in (vae, text_encoder):
        if folder is not None and not (folder / "config.json").is_file():
            raise PixArtError(f"{folder} holds no config.json; give a folder in the layout of Hugging Face.")
    return vae, text_encoder, tokenizer


def _show(account: "Account", folder: str, options: Extract) -> None:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    kept = account.images - account.skipped
    if account.complete:
        say(f"{folder} holds the features of {kept:,} of {account.images:,} images already; nothing has changed.")
    else:
        for example in account.examples:
            say(f"Skipped: {example}")
        if account.skipped > len(account.examples):
            say(f"... and {account.skipped - len(account.examples):,} more; {folder}/features.json names them all.")
        say(
            f"{kept:,} images extracted, {account.found_done:,} of them before; {account.skipped:,} skipped, "
            f"{account.cut:,} captions cut; {account.bytes / 1e6:,.1f} MB; {account.seconds:.0f} s."
        )
    if options.json:
        values = {name: getattr(account, name) for name in ("images", "found_done", "skipped", "cut", "bytes")}
        print(json.dumps({"path": folder, **values, "reasons": account.reasons, "seconds": round(account.seconds, 1)}))
    else:
        print(folder)
