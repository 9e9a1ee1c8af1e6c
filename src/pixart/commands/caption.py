"""`pixart data caption PATH`: captions from a vision-language model, or from what the data set says already."""

import itertools
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from pixart.config import shown
from pixart.data.captioning.caption_file import CaptionFile, check_source
from pixart.data.captioning.captioner import Captioner, Item, TemplateCaptioner, item_of
from pixart.data.captioning.rows import caption_batch
from pixart.data.captioning.vision_language import QUESTION, VisionLanguageCaptioner
from pixart.data.dataset import Dataset, captions_folder, open_dataset
from pixart.data.dropped import ALLOWED, check_dropped
from pixart.data.pairs import Pair, Problem, printable
from pixart.data.storage import is_url
from pixart.errors import PixArtError, UsageError
from pixart.progress import Progress

if TYPE_CHECKING:
    from pixart.data.on_ray.cloud import CloudDataset
    from pixart.data.on_ray.session import Cluster

COUNTED = ["images", "captioned_before", "captions", "openings", "cut", "refusal", "empty", "unreadable", "failed"]
EXAMPLES = 20  # images named on the terminal; the file in failed-captions/ names all


@dataclass(frozen=True)
class Caption:
    """Caption the images of a data set with a vision-language model, or from its columns.

    The captions go beside the data set, one file per source, and every command that reads the data set finds them
    there. Stopped or killed, the same command goes on where it was.
    """

    path: Annotated[str, arg(metavar="PATH")]
    """Folder or file with images; docs/data.md lists what is read. With --ray also shards in the cloud."""
    model: Annotated[str | None, shown("FOLDER|ID", "none")] = None
    """An image-text-to-text model of transformers (LLaVA and its like): a folder, or a hub id, which is fetched."""
    template: Annotated[str | None, shown("TEXT", "none")] = None
    """Instead of a model: a caption with column names in braces, such as "a photo of {label}"."""
    question: Annotated[str, arg(metavar="TEXT")] = QUESTION
    """What the model gets with every image."""
    hint: bool = False
    """Give the model the original caption: Given the caption of this image "...", describe this image and so on."""
    num_captions: Annotated[int, arg(metavar="N")] = 1
    """Captions per image; more than one needs a temperature."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 512
    """A caption of more tokens than this is cut, and marked so."""
    temperature: Annotated[float, arg(metavar="X")] = 0.0
    """0 takes the likeliest token; above 0 tokens are sampled."""
    top_p: Annotated[float, arg(metavar="X")] = 1.0
    """Sample from the likeliest tokens that make up this share."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the random numbers by which tokens are sampled."""
    batch_size: Annotated[int, arg(metavar="N")] = 8
    """Images that the model gets together."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: as the model is stored, if the device computes in that."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU where there is one."""
    source: Annotated[str, shown("NAME", "the model's name")] = ""
    """Name of these captions beside others of the same images."""
    limit: Annotated[int | None, shown("N", "all")] = None
    """Only the first N images."""
    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Run on a Ray cluster: its address, auto, or local for one on this machine."""
    workers: Annotated[int | None, shown("N", "one per CPU or GPU")] = None
    """With --ray: how many copies of the model work at once."""
    gpus_per_worker: Annotated[float, arg(metavar="X")] = 0.0
    """With --ray: GPUs that each of them takes."""
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the images that may be unreadable before the command counts as failed."""
    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with images or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with the original captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""
    json: bool = False
    """Print what was done as one JSON object instead of the path of the captions."""


@dataclass
class Account:
    """What became of the images, in `counts`.

    `images` (all), `captioned_before`, `unreadable` and `failed` count images; `captions` those that this run wrote,
    `openings` (stripped) and `cut` among them; `refusal` and `empty` answers that are no captions.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)  # of images without an answer, with the reason

    @property
    def dropped(self) -> int:
        return self.counts["unreadable"] + self.counts["failed"]

    def take(self, rows: list[dict]) -> None:
        for row in rows:
            self.counts[row.get("rejected", "captions")] += 1
            self.counts["openings"] += "opening" in row
            self.counts["cut"] += "cut" in row
            if "error" in row:
                self._name(row["key"], row["error"])

    def lose(self, problem: Problem) -> None:
        self.counts["unreadable"] += 1
        self._name(problem.key, problem.reason)

    def _name(self, key: str, reason: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(printable(f"{key}: {reason.rstrip('.')}"))


def caption(options: Caption) -> int:
    """Run `pixart data caption`; prints the path of the captions."""
    captioner = _captioner(options)
    cluster = None
    if options.ray is not None:
        from pixart.data.on_ray.session import start

        cluster = start(options.ray, workers=options.workers, gpus_per_worker=options.gpus_per_worker)
    dataset = _opened(options, cluster)
    # Looked for before the model is loaded, which takes minutes.
    if not any(isinstance(found, Pair) for found in dataset.pairs()):
        raise PixArtError(f"{options.path} ({dataset.layout}) has no image that can be read; see pixart data check.")
    folder = captions_folder(dataset.path) if isinstance(dataset, Dataset) else dataset.captions
    began, account, about = time.monotonic(), Account(), captioner.about()
    with (
        warnings.catch_warnings(action="ignore"),
        CaptionFile(folder, str(about["source"]), about, per_image=captioner.per_image) as file,
        Progress() as progress,
    ):
        _write(options, captioner, dataset, file, cluster, account, progress)
    _print(options, account, file.path, time.monotonic() - began)
    if account.dropped:
        total = account.counts["images"]
        check_dropped(account.dropped, total, allowed=options.allow_dropped, examples=account.examples)
    return 0


def _captioner(options: Caption) -> VisionLanguageCaptioner | TemplateCaptioner:
    """All that can be wrong with the options themselves is found here, before anything is read."""
    if (options.model is None) == (options.template is None):
        raise UsageError(
            "Give either --model with an image-text-to-text model (a folder or a hub id such as "
            "llava-hf/llava-1.5-7b-hf), or --template with a text such as 'a photo of {label}'."
        )
    check_source(options.source)
    for name, value in (("--batch-size", options.batch_size), ("--limit", options.limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give 1 or more.")
    if not 0 <= options.allow_dropped <= 1:
        raise UsageError(f"--allow-dropped is {options.allow_dropped:g}; it is a share, so give 0 to 1.")
    if options.template is not None:
        return TemplateCaptioner(options.template, options.source or "template")
    names = ("question", "hint", "max_new_tokens", "temperature", "top_p", "seed", "batch_size", "dtype", "device")
    given = {name: getattr(options, name) for name in (*names, "source")}
    return VisionLanguageCaptioner(str(options.model), per_image=options.num_captions, **given)


def _opened(options: Caption, cluster: "Cluster | None") -> "Dataset | CloudDataset":
    if is_url(options.path):
        if cluster is None:
            raise UsageError("Images in the cloud are captioned on Ray: add --ray local, or a cluster's address.")
        from pixart.data.layouts.layout import Columns
        from pixart.data.on_ray.cloud import open_cloud

        return open_cloud(options.path, cluster, Columns(options.image_column, options.caption_column))
    return open_dataset(
        Path(options.path),
        layout=options.layout,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_root=options.image_root,
    )


def _write(
    options: Caption,
    captioner: Captioner,
    dataset: "Dataset | CloudDataset",
    file: CaptionFile,
    cluster: "Cluster | None",
    account: Account,
    progress: Progress,
) -> None:
    """Caption what has no caption in `file` yet, batch by batch."""
    items = _items(options, captioner, dataset, file, account)
    batches = iter(lambda: list(itertools.islice(items, captioner.batch_size)), [])
    if cluster is not None:
        from pixart.data.on_ray.caption import caption_on

        progress.say(f"{options.path} ({dataset.layout}): {cluster.size()} workers on Ray ({options.ray}).")
        written = caption_on(cluster, captioner, batches)
    else:
        if captioner.looks:
            _quiet_transformers()
            progress.say(f"{options.path} ({dataset.layout}): loading {options.model}.")
        captioner.load()
        written = (caption_batch(captioner, batch) for batch in batches)
    hint = dataset.count_hint()
    progress.start("captioning", min(hint, options.limit or hint) if hint else options.limit, unit="images")
    counts = account.counts
    for rows in written:
        file.add(rows)
        account.take(rows)
        progress.update(counts["images"])
        # A million images are not tried with a captioner that failed at the first eight.
        if counts["failed"] >= 8 and not counts["captions"] + counts["refusal"] + counts["empty"]:
            raise PixArtError(f"None of the first {counts['failed']} images was captioned ({account.examples[-1]}).")


def _items(
    options: Caption, captioner: Captioner, dataset: "Dataset | CloudDataset", file: CaptionFile, account: Account
) -> Iterator[Item]:
    # A captioner is there for the problems of captions.
    found = (one for one in dataset.pairs() if isinstance(one, Pair) or not one.kind.startswith("caption"))
    for one in itertools.islice(found, options.limit):
        account.counts["images"] += 1
        if isinstance(one, Problem):
            account.lose(one)
        elif one.key in file:
            account.counts["captioned_before"] += 1
        else:
            yield item_of(one, captioner.looks)


def _quiet_transformers() -> None:
    """Before it is imported, and for good: warnings off; its bar over the loading of weights stays on a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def _print(options: Caption, account: Account, path: Path, seconds: float) -> None:
    counts = account.counts
    for example in account.examples:
        _say(f"Not captioned: {example}")
    if account.dropped > len(account.examples):
        _say(f"... and {account.dropped - len(account.examples):,} more.")
    parts = {
        "images had captions already": counts["captioned_before"],
        "refusals": counts["refusal"],
        "empty answers": counts["empty"],
        "boilerplate openings stripped": counts["openings"],
        f"cut at --max-new-tokens {options.max_new_tokens}": counts["cut"],
        f"of {counts['images']:,} images not captioned": account.dropped,
    }
    line = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
    _say(f"{counts['captions']:,} captions written{', ' if line else ''}{line}; {seconds:.0f} s.")
    if options.json:
        known = {name: counts[name] for name in COUNTED} | {"dropped": account.dropped}
        print(json.dumps({"path": str(path), **known, "examples": account.examples, "seconds": round(seconds, 1)}))
    else:
        print(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
