"""One batch of pairs to its features: the part that runs alike in one process, in many, and on many machines."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.buckets import MIN_KEPT, BucketTable, bucket_table, kept_share, square_table
from pixart.data.buckets import CROPS, Fitted, fit
from pixart.data.images import open_image
from pixart.data.pairs import Caption, ImageProblem, InTar, Location, Pair, Problem, printable, read_bytes
from pixart.errors import PixArtError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixart.data.feature_shards import Origin
    from pixart.data.feature_writer import BatchRecord, FeatureRow
    from pixart.data.storage import Folder

ATTEMPTS = 3  # how often a batch is tried before it is put into quarantine
ENCODED_PIXELS = 1024 * 1024  # of pictures that go through the autoencoder at once
OPENED_AHEAD = 64  # pictures that wait, decoded, for the autoencoder


@dataclass(frozen=True)
class ExtractSettings:
    """What features are made with. Folders in Hugging Face layout; without `text_encoder` captions are not read.

    `base_size` and `step` in pixels (step None: the official buckets where there are some); `square`: one bucket.
    `crop`: centre, random (by `seed` and the picture's key) or clever. `flip`: the mirrored moments too.
    `caption_sources`: which captions, in this order; empty: all. `rows`: pictures in a batch.
    """

    vae: Path
    text_encoder: Path | None
    tokenizer: Path | None
    base_size: int = 512
    step: int | None = None
    square: bool = False
    crop: str = "centre"
    seed: int = 0
    flip: bool = False
    caption_sources: tuple[str, ...] = ()
    precision: str = "bf16"
    rows: int = 1024

    def __post_init__(self):
        if self.crop not in CROPS:
            raise UsageError(f"There is no crop {self.crop!r}; choose from {', '.join(CROPS)}.")
        if self.precision not in ("bf16", "fp32"):
            raise UsageError(f"There is no precision {self.precision!r}; choose bf16 or fp32.")
        if not 1 <= self.rows <= 100_000:
            raise UsageError(f"A batch of {self.rows} pictures cannot be; give --rows from 1 to 100,000.")
        if self.base_size > 4096:
            raise UsageError(f"The base size is {self.base_size} px; give at most 4096.")
        self.table()

    def table(self) -> BucketTable:
        """The buckets. Raises UsageError for a base size that has none."""
        if self.square:
            return square_table(self.base_size, step=self.step or 16)
        return bucket_table(self.base_size, step=self.step)

    def origin(self) -> "Origin":
        """Reads the encoders' files whole, to hash them: seconds for a large text encoder."""
        from pixart.data.feature_shards import Origin, files_hash, weights_hash

        settings = {
            "base_size": self.base_size, "step": self.step, "square": self.square, "crop": self.crop,
            "seed": self.seed if self.crop == "random" else None, "flip": self.flip,
            "caption_sources": list(self.caption_sources), "precision": self.precision, "rows": self.rows,
        }  # fmt: skip
        tokenizer = None
        if self.tokenizer is not None:
            tokenizer = files_hash(sorted(path for path in self.tokenizer.glob("*") if path.is_file()))
        return Origin(
            vae=weights_hash(self.vae),
            text_encoder=weights_hash(self.text_encoder) if self.text_encoder else None,
            tokenizer=tokenizer,
            settings=settings,
        )


@dataclass(frozen=True)
class Batch:
    """Consecutive pairs of a data set. `labels` are class indices, -1 for none; `sources` names caption sources.

    `problems` are those that the reader met among these pairs.
    """

    number: int
    pairs: tuple[Pair, ...]
    labels: tuple[int, ...]
    sources: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    def glance(self) -> str:
        """A digest of what the batch is made of as far as can be told without reading pictures: sizes and times."""
        stats: dict[str, tuple[int, int] | None] = {}
        return _digest(self, [_stat(pair.image, stats) for pair in self.pairs])

    def content(self) -> str:
        """The digest that `Extractor` gives, found by reading every picture's bytes."""
        return _digest(self, [_bytes_hash(pair, read_bytes)[1] for pair in self.pairs])


def batches_of(
    items: Iterable[Pair | Problem], rows: int, caption_sources: tuple[str, ...], *, captions: bool = True
) -> "Iterator[tuple[Batch, dict[str, int]]]":
    """Cut a data set's stream into batches of `rows` pairs; with each, the classes known by then and their indices.

    Classes and caption sources are numbered as they first appear, so that the same data gives the same numbers.
    Without `captions`, or of other sources than those wanted, captions are left off.
    """
    classes: dict[str, int] = {}
    sources: dict[str, int] = dict.fromkeys(caption_sources, 0)
    pairs: list[Pair] = []
    labels: list[int] = []
    problems: list[Problem] = []
    number = 0
    for item in items:
        if isinstance(item, Problem):
            problems.append(item)
            continue
        kept: tuple[Caption, ...] = ()
        if captions:
            kept = tuple(c for c in item.captions if not caption_sources or c.source in sources)
            if caption_sources:
                kept = tuple(sorted(kept, key=lambda caption: caption_sources.index(caption.source)))
            sources |= dict.fromkeys((caption.source for caption in kept), 0)
        pairs.append(replace(item, captions=kept, extra={}))
        labels.append(-1 if item.label is None else classes.setdefault(item.label, len(classes)))
        if len(pairs) == rows:
            yield Batch(number, tuple(pairs), tuple(labels), tuple(sources), tuple(problems)), classes
            pairs, labels, problems, number = [], [], [], number + 1
    if pairs or problems:
        yield Batch(number, tuple(pairs), tuple(labels), tuple(sources), tuple(problems)), classes


class Extractor:
    """Both encoders, loaded, on one device. Calling it on a batch gives its rows; the same batch the same bytes.

    On a CPU it computes with one thread, because the number of threads changes the last bits: more processes, not
    more threads, make it faster.
    """

    def __init__(self, settings: ExtractSettings, *, device: str = "cpu", decoders: int = 1):
        from pixart.data.encode import load_text_encoder, load_vae

        self.settings, self.device, self.table = settings, device, settings.table()
        self.pool = ThreadPoolExecutor(decoders)
        self.read = read_bytes  # those who fetch from the cloud put their own here
        self.vae = load_vae(settings.vae, device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        uneven = [b for b in self.table.buckets if b.height % self.factor or b.width % self.factor]
        if uneven:
            raise UsageError(
                f"The autoencoder in {settings.vae} makes one latent of {self.factor} px, and the bucket "
                f"{uneven[0].width}x{uneven[0].height} does not divide by it; give --step {self.factor}."
            )
        self.text_encoder = None
        if settings.text_encoder is not None:
            self.text_encoder = load_text_encoder(settings.text_encoder, settings.tokenizer, device)

    def null_text(self):
        """States (tokens, T) of the empty prompt, fp16; None without a text encoder."""
        from pixart.data.encode import encode_captions

        if self.text_encoder is None:
            return None
        with _one_thread():
            return encode_captions(self.text_encoder, [""], precision=self.settings.precision)[0][0]

    def __call__(self, batch: Batch) -> "tuple[BatchRecord, dict[str, list[FeatureRow]]]":
        """The rows of a batch by bucket "WxH", and the record of what was skipped and why. Writes nothing."""
        from pixart.data.feature_writer import BatchRecord, FeatureRow

        places: dict[int, Fitted] = {}
        moments: dict[int, tuple] = {}
        skipped: dict[int, str] = {}
        hashes: list[str] = []
        waiting: dict[int, list[tuple[int, Image]]] = {}
        with _one_thread():
            for i, (digest, opened) in enumerate(self._opened(batch)):
                hashes.append(digest)
                if isinstance(opened, str):
                    skipped[i] = opened
                    continue
                places[i] = replace(opened, image=None)  # of the decoded pictures only those that wait stay in memory
                group = waiting.setdefault(opened.bucket, [])
                group.append((i, opened.image))
                if len(group) == self._group_size(opened.bucket):
                    self._encode(waiting.pop(opened.bucket), moments, skipped)
            for group in waiting.values():
                self._encode(group, moments, skipped)
            states, cut = self._states(batch, sorted(moments), skipped)
        rows: dict[str, list[FeatureRow]] = {}
        for i in sorted(moments):
            if i not in skipped:
                bucket = self.table.buckets[places[i].bucket]
                row = FeatureRow(
                    key=batch.pairs[i].key, moments=moments[i], captions=states.get(i, ()), label=batch.labels[i],
                    original_size=places[i].original_size, crop=places[i].crop_corner, repeats=batch.pairs[i].repeats,
                )  # fmt: skip
                rows.setdefault(f"{bucket.width}x{bucket.height}", []).append(row)
        # A caption that could not be used costs no picture: where one has no caption left, the pair says so itself.
        lost = [(p.key, f"{p.kind}: {p.reason}") for p in batch.problems if not p.kind.startswith("caption")]
        remarks = [(p.key, f"{p.kind}: {p.reason}") for p in batch.problems if p.kind.startswith("caption")]
        lost += [(batch.pairs[i].key, skipped[i]) for i in sorted(skipped)]
        pictures = len(batch.pairs) + len(lost) - len(skipped)
        record = BatchRecord(
            number=batch.number, rows=pictures, data=_digest(batch, hashes), glance=batch.glance(), skipped=lost,
            remarks=remarks, cut=cut,
        )  # fmt: skip
        return record, rows

    def _opened(self, batch: Batch) -> "Iterator[tuple[str, Fitted | str]]":
        """Of each pair, in order: the hash of its file, and the picture in its bucket or why it is skipped."""
        for start in range(0, len(batch.pairs), OPENED_AHEAD):
            read = ((pair, *_bytes_hash(pair, self.read)) for pair in batch.pairs[start : start + OPENED_AHEAD])
            yield from self.pool.map(self._open, read)

    def _open(self, read: "tuple[Pair, bytes | ImageProblem, str]") -> "tuple[str, Fitted | str]":
        pair, data, digest = read
        if self.text_encoder is not None and not pair.captions:
            problem = pair.caption_problem
            return digest, f"{problem.kind}: {problem.reason}" if problem else "caption-missing: it has no caption."
        try:
            if isinstance(data, ImageProblem):
                raise data
            image = open_image(data).image
        except ImageProblem as problem:
            return digest, f"{problem.kind}: {problem.reason}"
        settings = self.settings
        fitted = fit(image, self.table, crop=settings.crop, seed=settings.seed, name=pair.key)
        share = kept_share(image.height, image.width, self.table.buckets[fitted.bucket])
        if share < MIN_KEPT and not settings.square:
            return digest, (
                f"narrow: {image.width} x {image.height} pixels; its bucket keeps {share:.0%} of it, and at least "
                f"{MIN_KEPT:.0%} is wanted."
            )
        return digest, fitted

    def _group_size(self, bucket: int) -> int:
        """How many pictures of a bucket go through the autoencoder at once; part of what fixes the last bits."""
        return max(1, ENCODED_PIXELS // (self.table.buckets[bucket].height * self.table.buckets[bucket].width))

    def _encode(self, group: "list[tuple[int, Image]]", moments: dict[int, tuple], skipped: dict[int, str]) -> None:
        from pixart.data.encode import encode_pictures

        flip, precision = self.settings.flip, self.settings.precision
        results = encode_pictures(self.vae, [picture for _, picture in group], flip=flip, precision=precision)
        for (i, _), result in zip(group, results, strict=True):
            if all(tensor.isfinite().all() for tensor in result):
                moments[i] = result
            else:
                skipped[i] = "not-finite: the autoencoder made numbers of it that are not finite."

    def _states(self, batch: Batch, rows: Sequence[int], skipped: dict[int, str]) -> tuple[dict[int, tuple], int]:
        from pixart.data.encode import encode_captions

        if self.text_encoder is None or not rows:
            return {}, 0
        captions = [(i, caption) for i in rows for caption in batch.pairs[i].captions]
        states, cut = encode_captions(
            self.text_encoder, [caption.text for _, caption in captions], precision=self.settings.precision
        )
        out: dict[int, tuple] = {i: () for i in rows}
        for (i, caption), values in zip(captions, states, strict=True):
            if not values.isfinite().all():
                skipped[i] = "not-finite: the text encoder made numbers of its caption that are not finite."
            out[i] += ((batch.sources.index(caption.source), values),)
        return out, cut


def work(extractor: Extractor, batch: Batch, folder: "Folder", origin: "Origin") -> "BatchRecord":
    """Extract a batch and write it; tried again when it fails, and then put into quarantine: no record is written.

    What no other try would mend (a full disk, a damaged encoder) is raised.
    """
    from pixart.data.feature_writer import write_batch

    for attempt in range(1, ATTEMPTS + 1):
        try:
            record, rows = extractor(batch)
            return write_batch(folder, record, rows, origin)
        except PixArtError:
            raise
        except Exception as error:
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
            if attempt < ATTEMPTS:
                time.sleep(attempt)  # storage and GPUs may need a moment
    return quarantined(batch, failure)


def quarantined(batch: Batch, failure: str) -> "BatchRecord":
    """The record, not to be written, of a batch that failed every time."""
    from pixart.data.feature_writer import BatchRecord

    reason = f"quarantined: batch {batch.number} failed {ATTEMPTS} times; {printable(failure)}"
    skipped = [(pair.key, reason) for pair in batch.pairs]
    return BatchRecord(batch.number, len(batch.pairs), data="", glance="", skipped=skipped, failure=failure)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digest(batch: Batch, pictures: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for pair, label, picture in zip(batch.pairs, batch.labels, pictures, strict=True):
        captions = [(caption.source, caption.text) for caption in pair.captions]
        values = [pair.key, captions, pair.label, label, pair.repeats, picture]
        digest.update(json.dumps(values).encode() + b"\n")
    digest.update(json.dumps([(p.key, p.kind) for p in batch.problems]).encode())
    return digest.hexdigest()


def _bytes_hash(pair: Pair, read: Callable[[Location], bytes]) -> tuple[bytes | ImageProblem, str]:
    try:
        data = read(pair.image)
    except ImageProblem as problem:
        return problem, problem.kind
    return data, hashlib.sha256(data).hexdigest()


def _stat(image: Location, known: dict[str, tuple[int, int] | None]) -> tuple[object, ...]:
    path = image.path
    if path not in known:
        try:
            about = os.stat(path)
            known[path] = about.st_size, about.st_mtime_ns
        except (OSError, ValueError):  # in the cloud, too
            known[path] = None
    return known[path], (image.offset, image.length) if isinstance(image, InTar) else None
