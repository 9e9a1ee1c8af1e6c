"""`pixart data extract PATH DEST`: what training needs of pictures and captions, computed once."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.data.dataset import Dataset, open_dataset
from pixart.data.dropped import ALLOWED
from pixart.data.extract_batch import ExtractSettings
from pixart.data.progress import Progress
from pixart.errors import PixArtError, UsageError
from pixart.options import parsed, shown

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"


@dataclass(frozen=True)
class ExtractOptions:
    """Encode the pictures and captions of a data set into a folder that training reads through a memory map.

    Stopped or killed, the same command goes on where it was. Features that were made from other data, by other
    encoders or with other settings are refused, with what differs.
    """

    path: Annotated[str, arg(metavar="PATH")]
    """Folder or file with pictures; docs/data.md lists what is read. With --ray also a place in the cloud."""
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
    labels_only: bool = False
    """Leave captions out: for stage 1, which trains on classes."""
    base_size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Pictures have about this number squared of pixels, in buckets of many shapes."""
    step: Annotated[int | None, shown("PIXELS", "the official buckets, else 16")] = None
    """Compute the buckets: all sides are multiples of this."""
    square: bool = False
    """One bucket only, the square."""
    crop: Annotated[str, arg(metavar="HOW")] = "centre"
    """centre, random, or clever (cuts where little is to be seen)."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides random crops."""
    flip: bool = False
    """Encode every picture mirrored too."""
    caption_source: Annotated[tuple[str, ...], shown("NAME ...", "all")] = ()
    """Which captions to encode: original, metadata, or the name of a captioner."""
    precision: Annotated[str, arg(metavar="NAME")] = "bf16"
    """bf16 or fp32, in which the encoders compute. Features are stored in 16 bits."""
    rows: Annotated[int, arg(metavar="N")] = 1024
    """Pictures in a batch: what is lost at most by a kill, and what a shard is made of."""
    workers: Annotated[int | None, shown("N", "one per GPU or core")] = None
    """Processes; what they make does not depend on their number."""
    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Run on a Ray cluster: its address, auto, or local for one on this machine."""
    gpus_per_worker: Annotated[float, arg(metavar="X")] = 0.0
    """With --ray: GPUs that each worker takes; 0.5 puts two on one."""
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the pictures that may be unusable before the command stops."""
    leave_out_failed: bool = False
    """Finish without the batches that failed every time."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with pictures or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""
    json: bool = False
    """Print the account as one JSON object instead of the path of the features."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart data extract`. Returns the exit code; raises PixArtError with one sentence."""
    return parsed(ExtractOptions, arguments, "pixart data extract", _run)


def _run(options: ExtractOptions) -> int:
    settings = _settings(options)
    from pixart.data.extract import extract
    from pixart.data.storage import is_url

    if options.ray is not None:
        from pixart.data.on_ray import cloud, session
        from pixart.data.on_ray.extract import runner as on_ray

        cluster = session.start(options.ray, workers=options.workers, gpus_per_worker=options.gpus_per_worker)
        if is_url(options.path):
            dataset = cloud.open_cloud(
                options.path, cluster, cloud.Columns(options.image_column, options.caption_column)
            )
        else:
            dataset = _open(options.path, options)
        runner = on_ray(cluster)
        _say(f"{options.path} ({dataset.layout}): {cluster.size()} workers on Ray ({options.ray}).")
    else:
        if is_url(options.path) or is_url(options.dest):
            raise UsageError(
                "Places in the cloud are read and written on Ray: add --ray local, or a cluster's address."
            )
        dataset = _open(options.path, options)
        from pixart.data import extract_workers

        on = extract_workers.devices()
        weights = extract_workers.weights_bytes(settings.vae, settings.text_encoder)
        workers = extract_workers.choose(weights, options.workers, on)
        runner = extract_workers.runner(workers, on)
        _say(f"{options.path} ({dataset.layout}): {workers} worker{'s' * (workers > 1)} on {', '.join(on)}.")
    with Progress("extracting", dataset.count_hint()) as progress:
        folder, account = extract(
            dataset,
            options.dest,
            settings,
            run=runner,
            allow_dropped=options.allow_dropped,
            leave_out_failed=options.leave_out_failed,
            progress=progress.update,
        )
    _tell(account, folder, options)
    return 0


def _settings(options: ExtractOptions) -> ExtractSettings:
    """All that can be wrong with the options, before torch is loaded."""
    if not 0 <= options.allow_dropped <= 1:
        raise UsageError(f"--allow-dropped is {options.allow_dropped:g}; it is a share, so give 0 to 1.")
    if options.workers is not None and not 1 <= options.workers <= 10_000:
        raise UsageError(f"--workers is {options.workers}; give 1 or more.")
    if options.gpus_per_worker and options.ray is None:
        raise UsageError("--gpus-per-worker goes with --ray; without it there is one worker per GPU.")
    if options.labels_only and options.text_encoder is not None:
        raise UsageError("--labels-only leaves captions out, and --text-encoder encodes them; give one of the two.")
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
    return ExtractSettings(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, base_size=options.base_size, step=options.step,
        square=options.square, crop=options.crop, seed=options.seed, flip=options.flip,
        caption_sources=tuple(dict.fromkeys(options.caption_source)), precision=options.precision, rows=options.rows,
    )  # fmt: skip


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def _open(path: str, options: ExtractOptions) -> Dataset:
    return open_dataset(
        Path(path),
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )


def _tell(account, folder: str, options: ExtractOptions) -> None:
    for example in account.examples:
        _say(f"Skipped: {example}")
    if account.skipped > len(account.examples) and not account.complete:
        _say(f"... and {account.skipped - len(account.examples):,} more; {folder}/skipped.jsonl names them all.")
    kept = account.pictures - account.skipped
    if account.complete:
        _say(f"{folder} holds the features of {kept:,} of {account.pictures:,} pictures already; all is as it was.")
    said = [
        f"{kept:,} pictures extracted",
        f"{account.found_done:,} pictures were done before" if account.found_done else "",
        f"{account.skipped:,} skipped" if account.skipped else "",
        f"{account.cut:,} captions cut at the encoder's longest" if account.cut else "",
        f"{account.bytes / 1e6:,.1f} MB" if account.bytes else "",
    ]
    if not account.complete:
        _say(f"{'; '.join(part for part in said if part)}; {account.seconds:.0f} s.")
    if options.json:
        values = {name: getattr(account, name) for name in ("pictures", "found_done", "skipped", "cut", "bytes")}
        print(json.dumps({"path": folder, **values, "reasons": account.reasons, "seconds": round(account.seconds, 1)}))
    else:
        print(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
