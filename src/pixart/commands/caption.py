"""`pixart data caption PATH`: captions from a vision-language model, or from what the data set says already."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from pixart.commands.dataset_options import DatasetOptions, RayOptions
from pixart.config import shown
from pixart.data.captioner import Captioner, Item, TemplateCaptioner, caption_batch, item_of
from pixart.data.dataset import ALLOWED, Dataset, captions_folder, check_dropped
from pixart.data.pairs import Pair, Problem, printable
from pixart.data.vision_language import QUESTION, VisionLanguageCaptioner
from pixart.data.written_captions import CaptionFile, check_source
from pixart.errors import PixArtError, UsageError
from pixart.progress import Progress

if TYPE_CHECKING:
    from pixart.data.on_ray import CloudDataset

# Images, those that an earlier run captioned, captions of this run, among them those whose boilerplate opening was
# taken off and those that reached their limit; answers that are no captions; images without an answer.
COUNTED = ["images", "captioned_before", "captions", "openings", "cut", "refusal", "empty", "unreadable", "failed"]
EXAMPLES = 20  # images named on the terminal


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
    allow_dropped: Annotated[float, arg(metavar="SHARE")] = ALLOWED
    """Share of the images that may be unreadable before the command counts as failed."""
    json: bool = False
    """Print what was done as one JSON object instead of the path of the captions."""
    cluster: Annotated[RayOptions, arg(name="")] = field(default_factory=RayOptions)
    dataset: Annotated[DatasetOptions, arg(name="")] = field(default_factory=DatasetOptions)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.template is None):
            raise UsageError(
                "Give either --model with an image-text-to-text model (a folder or a hub id such as "
                "llava-hf/llava-1.5-7b-hf), or --template with a text such as 'a photo of {label}'."
            )
        check_source(self.source)
        for name, value in (("--batch-size", self.batch_size), ("--limit", self.limit)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more.")
        if not 0 <= self.allow_dropped <= 1:
            raise UsageError(f"--allow-dropped is {self.allow_dropped:g}; it is a share, so give 0 to 1.")


def caption(options: Caption) -> int:
    """Run `pixart data caption`; prints the path of the captions."""
    captioner = _captioner(options)
    cluster = options.cluster.start()
    dataset = options.dataset.open(options.path, cluster)
    # Looked for before the model is loaded, which takes minutes.
    if not any(isinstance(found, Pair) for found in dataset.pairs()):
        raise PixArtError(f"{options.path} ({dataset.layout}) has no image that can be read; see pixart data check.")
    folder = captions_folder(dataset.path) if isinstance(dataset, Dataset) else dataset.captions
    about, counts, examples = captioner.about(), Counter(), []
    with (
        CaptionFile(folder, str(about["source"]), about) as file,
        Progress() as progress,
    ):
        items = _items(dataset, captioner, file, options.limit, counts, examples)
        batches = iter(lambda: list(itertools.islice(items, captioner.batch_size)), [])
        progress.say(f"{options.path} ({dataset.layout}), by {about['model']}.")
        if cluster is not None:
            from pixart.data.on_ray import caption_on

            written = caption_on(cluster, captioner, batches)
        else:
            captioner.load()
            written = (caption_batch(captioner, batch) for batch in batches)
        hint = dataset.count_hint()
        progress.start("captioning", min(hint, options.limit or hint) if hint else options.limit, unit="images")
        for rows in written:
            file.add(rows)
            _count(rows, counts, examples)
            progress.update(counts["images"])
    _print(options, file.path, counts, examples)
    dropped = counts["unreadable"] + counts["failed"]
    if dropped:
        check_dropped(dropped, counts["images"], allowed=options.allow_dropped, examples=examples)
    return 0


def _captioner(options: Caption) -> VisionLanguageCaptioner | TemplateCaptioner:
    if options.template is not None:
        return TemplateCaptioner(options.template, options.source or "template")
    return VisionLanguageCaptioner(
        str(options.model),
        question=options.question,
        hint=options.hint,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
        source=options.source,
    )


def _items(
    dataset: "Dataset | CloudDataset",
    captioner: Captioner,
    file: CaptionFile,
    limit: int | None,
    counts: Counter,
    examples: list[str],
) -> Iterator[Item]:
    """The images that have no caption in `file` yet; the others are counted."""
    # A captioner is there for the problems of captions.
    found = (one for one in dataset.pairs() if isinstance(one, Pair) or not one.kind.startswith("caption"))
    for one in itertools.islice(found, limit):
        counts["images"] += 1
        if isinstance(one, Problem):
            _count([{"key": one.key, "rejected": "unreadable", "error": one.reason}], counts, examples)
        elif one.key in file:
            counts["captioned_before"] += 1
        else:
            yield item_of(one, captioner.looks)


def _count(rows: list[dict], counts: Counter, examples: list[str]) -> None:
    """Raises PixArtError where each of the first eight images failed: a million are not tried with such a captioner."""
    for row in rows:
        counts[row.get("rejected", "captions")] += 1
        counts["openings"] += "opening" in row
        counts["cut"] += "cut" in row
        if "error" in row and len(examples) < EXAMPLES:
            examples.append(printable(f"{row['key']}: {row['error'].rstrip('.')}"))
    if counts["failed"] >= 8 and not counts["captions"] + counts["refusal"] + counts["empty"]:
        raise PixArtError(f"None of the first {counts['failed']} images was captioned ({examples[-1]}).")


def _print(options: Caption, path: Path, counts: Counter, examples: list[str]) -> None:
    for example in examples:
        print(f"Not captioned: {example}", file=sys.stderr)
    counted = ", ".join(f"{name.replace('_', ' ')} {counts[name]:,}" for name in COUNTED if counts[name])
    print(f"{counted}.", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"path": str(path)} | {name: counts[name] for name in COUNTED} | {"examples": examples}))
    else:
        print(path)
