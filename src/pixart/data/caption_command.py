"""`pixart data caption PATH`: captions from a vision-language model, or from what the data set says already."""

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from pixart.captions.captioner import Captioner
from pixart.captions.metadata_captioner import MetadataCaptioner, Template
from pixart.captions.vision_language import QUESTION, VisionLanguageCaptioner, VisionLanguageSettings
from pixart.data.caption import Account, caption_by, caption_dataset
from pixart.data.caption_batch import OPENINGS, row_settings
from pixart.data.caption_file import CaptionFile, check_source
from pixart.data.dataset import Dataset, captions_folder, open_dataset
from pixart.data.dropped import ALLOWED, check_dropped
from pixart.data.pairs import Pair, printable
from pixart.data.progress import Progress
from pixart.data.storage import is_url
from pixart.errors import PixArtError, UsageError
from pixart.options import parsed, shown

if TYPE_CHECKING:
    from pixart.data.on_ray.cloud import CloudDataset
    from pixart.data.on_ray.session import Cluster


@dataclass(frozen=True)
class CaptionOptions:
    """Caption the pictures of a data set with a vision-language model, or from its columns.

    The captions go beside the data set, one file per source, and every command that reads the data set finds them
    there. Stopped or killed, the same command goes on where it was.
    """

    path: Annotated[str, arg(metavar="PATH")]
    """Folder or file with pictures; docs/data.md lists what is read. With --ray also shards in the cloud."""
    model: Annotated[str | None, shown("FOLDER|ID", "none")] = None
    """An image-text-to-text model of transformers (LLaVA and its like): a folder, or a hub id, which is fetched."""
    template: Annotated[str | None, shown("TEXT", "none")] = None
    """Instead of a model: a caption with column names in braces, such as "a photo of {label}"."""
    question: Annotated[str, arg(metavar="TEXT")] = QUESTION
    """What the model is asked about every picture."""
    hint: bool = False
    """Tell the model the original caption: Given the caption of this image "...", describe this image and so on."""
    num_captions: Annotated[int, arg(metavar="N")] = 1
    """Captions per picture; more than one needs a temperature."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 512
    """A caption of more tokens than this is cut, and marked so."""
    temperature: Annotated[float, arg(metavar="X")] = 0.0
    """0 takes the likeliest word; above 0 words are drawn."""
    top_p: Annotated[float, arg(metavar="X")] = 1.0
    """Draw from the likeliest words that make up this share."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Names the random numbers by which words are drawn."""
    batch_size: Annotated[int, arg(metavar="N")] = 8
    """Pictures that the model looks at together."""
    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (as the model is stored), float32, bfloat16 or float16."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1 ..."""
    source: Annotated[str, shown("NAME", "the model's name")] = ""
    """Name of these captions beside others of the same pictures."""
    openings: Annotated[str, arg(metavar="WHAT")] = "strip"
    """Of boilerplate such as "The image shows": strip it, or flag it and leave it in the caption."""
    limit: Annotated[int | None, shown("N", "all")] = None
    """Only the first N pictures."""
    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Run on a Ray cluster: its address, auto, or local for one on this machine."""
    workers: Annotated[int | None, shown("N", "one per CPU or GPU")] = None
    """With --ray: how many copies of the model work at once."""
    gpus_per_worker: Annotated[float, arg(metavar="X")] = 0.0
    """With --ray: GPUs that each of them takes."""
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the pictures that may be unreadable before the command counts as failed."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with pictures or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with the original captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""
    json: bool = False
    """Print the account as one JSON object instead of the path of the captions."""


def run(arguments: list[str]) -> int:
    """Everything after `pixart data caption`. Returns the exit code; raises PixArtError with one sentence."""
    return parsed(CaptionOptions, arguments, "pixart data caption", _run)


def _run(options: CaptionOptions) -> int:
    settings = _check(options)
    cluster = None
    if options.ray is not None:
        from pixart.data.on_ray.session import start

        cluster = start(options.ray, workers=options.workers, gpus_per_worker=options.gpus_per_worker)
    dataset = _opened(options, cluster)
    # Looked for before the model is loaded, which takes minutes.
    if not any(isinstance(found, Pair) for found in dataset.pairs()):
        raise PixArtError(f"{options.path} ({dataset.layout}) has no picture that can be read; see pixart data check.")
    about = row_settings(settings.about(), options.openings)
    folder, per_picture = _folder(dataset), getattr(settings, "captions_per_picture", 1)
    with (
        warnings.catch_warnings(action="ignore"),
        CaptionFile(folder, str(about["source"]), about, per_picture=per_picture) as file,
    ):
        account = _caption(options, settings, dataset, file, cluster)
    _tell(options, account)
    dropped, total = account.dropped, account.pictures
    if dropped:
        check_dropped(dropped, total, allowed=options.allow_dropped, examples=map(printable, account.examples))
    return 0


def _opened(options: CaptionOptions, cluster: "Cluster | None") -> "Dataset | CloudDataset":
    if is_url(options.path):
        if cluster is None:
            raise UsageError("Pictures in the cloud are captioned on Ray: add --ray local, or a cluster's address.")
        from pixart.data.on_ray.cloud import Columns, open_cloud

        return open_cloud(options.path, cluster, Columns(options.image_column, options.caption_column))
    return open_dataset(
        Path(options.path),
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )


def _folder(dataset: "Dataset | CloudDataset") -> Path:
    return captions_folder(dataset.path) if isinstance(dataset, Dataset) else dataset.captions


def _check(options: CaptionOptions) -> VisionLanguageSettings | MetadataCaptioner:
    """All that can be wrong with the options themselves, before anything is read."""
    if (options.model is None) == (options.template is None):
        raise UsageError(
            "Say who writes the captions: either --model with an image-text-to-text model (a folder or a hub id such "
            "as llava-hf/llava-1.5-7b-hf), or --template with a text such as 'a photo of {label}'."
        )
    check_source(options.source)
    if options.openings not in OPENINGS:
        raise UsageError(f"--openings is {options.openings!r}; give one of {', '.join(OPENINGS)}.")
    for name, value in (("--batch-size", options.batch_size), ("--limit", options.limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give 1 or more.")
    if not 0 <= options.allow_dropped <= 1:
        raise UsageError(f"--allow-dropped is {options.allow_dropped:g}; it is a share, so give 0 to 1.")
    if options.template is not None:
        return MetadataCaptioner(options.source or "template", options.template, Template(options.template))
    return VisionLanguageSettings(
        model=str(options.model),
        question=options.question,
        hint=options.hint,
        captions_per_picture=options.num_captions,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        dtype=options.dtype,
        device=options.device,
        source=options.source,
    )


def _caption(
    options: CaptionOptions,
    settings: VisionLanguageSettings | MetadataCaptioner,
    dataset: "Dataset | CloudDataset",
    file: CaptionFile,
    cluster: "Cluster | None",
) -> Account:
    if cluster is not None:
        return _on_ray(options, settings, dataset, file, cluster)
    if isinstance(settings, VisionLanguageSettings):
        _quiet_transformers()
        _say(f"{options.path} ({dataset.layout}): loading {options.model}.")
        captioner: Captioner = VisionLanguageCaptioner(settings)
    else:
        captioner = settings
    hint = dataset.count_hint()
    with Progress(
        "captioning", min(hint, options.limit) if hint and options.limit else options.limit or hint
    ) as progress:
        return caption_dataset(
            dataset,
            captioner,
            file,
            batch_size=options.batch_size if captioner.looks else 1000,
            openings=options.openings,
            limit=options.limit,
            progress=progress.update,
        )


def _on_ray(
    options: CaptionOptions,
    settings: VisionLanguageSettings | MetadataCaptioner,
    dataset: "Dataset | CloudDataset",
    file: CaptionFile,
    cluster: "Cluster",
) -> Account:
    from pixart.data.on_ray.caption import answers

    looks = isinstance(settings, VisionLanguageSettings)
    _say(f"{options.path} ({dataset.layout}): {cluster.size()} workers on Ray ({options.ray}).")
    with Progress("captioning", dataset.count_hint()) as progress:
        return caption_by(
            answers(cluster, settings, options.openings),
            dataset,
            file,
            looks=looks,
            batch_size=options.batch_size if looks else 1000,
            limit=options.limit,
            progress=progress.update,
        )


def _quiet_transformers() -> None:
    """Before it is imported, and for good: warnings off; its bar over the loading of weights stays on a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def _tell(options: CaptionOptions, account: Account) -> None:
    for example in account.examples:
        _say(f"Not captioned: {printable(example)}")
    if account.dropped > len(account.examples):
        _say(f"... and {account.dropped - len(account.examples):,} more.")
    said = [
        f"{account.captions:,} captions written",
        f"{account.captioned_before:,} pictures had theirs" if account.captioned_before else "",
        f"{account.refused:,} refusals" if account.refused else "",
        f"{account.empty:,} empty answers" if account.empty else "",
        f"{account.openings:,} boilerplate openings {'stripped' if options.openings == 'strip' else 'flagged'}"
        if account.openings
        else "",
        f"{account.cut:,} cut at --max-new-tokens {options.max_new_tokens}" if account.cut else "",
        f"{account.dropped:,} of {account.pictures:,} pictures not captioned" if account.dropped else "",
    ]
    _say(f"{', '.join(part for part in said if part)}; {account.seconds:.0f} s.")
    if options.json:
        print(json.dumps(asdict(account) | {"path": str(account.path), "dropped": account.dropped}))
    else:
        print(account.path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
