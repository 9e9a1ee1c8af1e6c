"""From a data set to a feature folder: images and captions through the two encoders, once.

The data set is cut into batches of a fixed number of pairs. Each batch becomes shards of its own and then a record, so
that a run may be killed at any instant and started again, and so that the folder does not depend on who computed which
batch: this process, the ranks of torchrun, or the machines of a Ray cluster.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pixart.buckets import CROPS, MIN_KEPT, BucketTable, Fitted, bucket_table, fit, kept_share, square_table
from pixart.config import plain, structure
from pixart.data.dataset import Dataset
from pixart.data.dropped import ALLOWED, check_dropped
from pixart.data.encode import encode_captions, encode_pictures, load_text_encoder, load_vae
from pixart.data.features import (
    MANIFEST,
    NULL_TEXT,
    RECORDS,
    BatchRecord,
    FeatureRow,
    Origin,
    Settings,
    content_hash,
    files_hash,
    map_shard,
    open_features,
    read_records,
    shard_is_there,
    weights_id,
    write_batch,
    write_manifest,
    write_null_text,
    write_record,
)
from pixart.data.images import open_image
from pixart.data.pairs import Caption, ImageProblem, InTar, Location, Pair, Problem, printable, read_bytes
from pixart.data.storage import Folder
from pixart.errors import PixArtError, UsageError
from pixart.files import locked, parse_json, read_json_object
from pixart.runtime.device import Device, choose_device, find_devices, threads

if TYPE_CHECKING:
    from PIL.Image import Image

BEGUN = "extraction.json"
LOCK = ".lock"
ATTEMPTS = 3
OPENED_AHEAD = 64  # images that wait, decoded, for the autoencoder
BYTES_PER_PIXEL = 6000  # that the published autoencoder takes on a GPU


@dataclass(frozen=True)
class Encoders:
    """Folders in Hugging Face layout; without `text_encoder` captions are not read."""

    vae: Path
    text_encoder: Path | None = None
    tokenizer: Path | None = None


@dataclass
class Account:
    """What became of the images so far. `found_done` were extracted by an earlier run; `complete`: all of them."""

    images: int = 0
    found_done: int = 0
    complete: bool = False
    skipped: int = 0
    cut: int = 0
    bytes: int = 0
    reasons: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, record: BatchRecord) -> None:
        self.images += record.images
        self.cut += record.cut
        self.bytes += sum(shard.bytes for shard in record.shards.values())
        self.skipped += len(record.skipped)
        for key, reason in record.skipped:
            self.reasons[reason.split(":")[0]] += 1
            if len(self.examples) < 20:
                self.examples.append(f"{printable(key)}: {reason}")


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; picklable."""

    encoders: Encoders
    origin: Origin
    folder: Folder

    @property
    def settings(self) -> Settings:
        return self.origin.settings


@dataclass(frozen=True)
class Batch:
    """Consecutive pairs of a data set with their class indices (-1: none); `sources` names caption sources so far.

    `problems` are those that the reader met among these pairs.
    """

    number: int
    pairs: tuple[Pair, ...]
    labels: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    def stat(self) -> str:
        """A hash of what the batch is made of as far as can be told without reading images: sizes and times."""
        known: dict[str, tuple[int, int] | None] = {}
        return _digest(self, [_stat(pair.image, known) for pair in self.pairs])

    def content(self) -> str:
        """The hash that `Extractor` gives, found by reading every image's bytes."""
        return _digest(self, [_bytes_hash(pair, read_bytes)[1] for pair in self.pairs])


Runner = Callable[[Job, Iterator[Batch]], Iterator[BatchRecord]]


def check_settings(settings: Settings) -> BucketTable:
    """The buckets. Raises UsageError for settings that cannot be."""
    if settings.crop not in CROPS:
        raise UsageError(f"There is no crop {settings.crop!r}; choose from {', '.join(CROPS)}.")
    if settings.precision not in ("float32", "bfloat16"):
        raise UsageError(f"There is no precision {settings.precision!r} here; choose float32 or bfloat16.")
    for name, most in (("rows", 100_000), ("base_size", 4096), ("max_tokens", 4096), ("crops", 64)):
        if not 1 <= getattr(settings, name) <= most:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; give 1 to {most:,}.")
    if settings.crops > 1 and settings.crop != "random":
        raise UsageError("--crops above 1 needs --crop random: other crops are always the same.")
    if settings.square:
        return square_table(settings.base_size, step=settings.step or 16)
    return bucket_table(settings.base_size, step=settings.step)


def choose_for(device: Device) -> dict[str, object]:
    """Those settings that the machine decides: exact and fast for the device that encodes."""
    pixels = 1 << 20 if device.type == "cpu" else max(1 << 18, device.total_bytes // 2 // BYTES_PER_PIXEL)
    return {
        "precision": "bfloat16" if device.bfloat16 else "float32",
        "encoded_pixels": pixels,
        "threads": threads(),
    }


def extract(
    dataset: Dataset,
    dest: Path | str,
    encoders: Encoders,
    settings: Settings,
    *,
    chosen: Sequence[str] = (),
    run: Runner | None = None,
    allow_dropped: float = ALLOWED,
    progress: Callable[[Account], None] = lambda account: None,
) -> tuple[str, Account] | None:
    """Make, or finish making, the features of `dataset` in the folder `dest`.

    Run again after a stop or a kill it goes on; run again when it is finished it checks that data and shards are still
    the same. Under torchrun every rank calls it and takes its part of the batches. `chosen` names the settings that
    the machine decided: where the folder has been begun, its own are taken instead. `run` computes the batches, by
    default this process.

    Returns:
        The folder and the account of all its images; None on ranks other than the first.

    Raises:
        UsageError: `dest` is in use for something else.
        PixArtError: features there were made from other data, encoders or settings (saying which); more than
            `allow_dropped` of the images cannot be used; the disk is full.
    """
    started, folder = time.monotonic(), Folder(str(dest))
    with _ranks() as (rank, ranks, wait), contextlib.ExitStack() as stack:
        if rank:
            wait()  # until the first has looked at the folder and begun it
            job = Job(encoders, _begun(folder)[0], folder)
        else:
            if folder.local is not None:
                if folder.local.exists() and not folder.local.is_dir():
                    raise UsageError(f"{folder} is a file; give a folder for the features.")
                refusal = f"Another pixart data extract is writing {folder}; wait for it, or stop it."
                stack.enter_context(locked(folder.local / LOCK, refusal))
            job = Job(encoders, _begin(folder, encoders, settings, chosen), folder)
            wait()
        check_settings(job.settings)
        account = Account()
        known = {record.number: record for record in _begun(folder)[1] or read_records(folder).values()}
        finished = folder.read(MANIFEST) is not None
        records, labels, sources = {}, {}, []

        unknown: list[str] = []  # losses of which nobody can say how many images they are

        def noting_unknown() -> Iterator[Pair | Problem]:
            for one in dataset.pairs():
                if isinstance(one, Problem) and one.lost is None:
                    unknown.append(f"{one.key}: {one.reason}")
                yield one

        def left() -> Iterator[Batch]:
            """The batches of this rank that are still to be computed; what is done is counted on the way."""
            for batch, kinds in batches_of(noting_unknown(), job.settings, captions=encoders.text_encoder is not None):
                labels.update(kinds)
                sources[:] = batch.sources
                if batch.number == 0:
                    _refuse_missing_sources(job.settings, batch, dataset)
                if batch.number % ranks != rank:
                    records.setdefault(batch.number, None)
                    continue
                record = known.get(batch.number)
                if record is None or not (finished or _is_intact(folder, record)):
                    if finished:
                        raise _changed(folder, "it has more images now")
                    yield batch
                    continue
                records[batch.number] = _same_data(folder, batch, record, rewrite=not finished)
                account.add(records[batch.number])
                account.found_done += record.images
                progress(account)

        for record in (run or here)(job, left()):
            records[record.number] = record
            account.add(record)
            account.seconds = time.monotonic() - started
            progress(account)
            _stop_early(account, allow_dropped, dataset.count_hint())
        if not records:
            raise PixArtError(f"{dataset.path} has no images.")
        if known.keys() - records.keys():
            raise _changed(folder, "it has fewer images now")
        wait()
        if rank:
            return None
        if ranks > 1:
            everything = read_records(folder) if not finished else known
            account = Account(found_done=account.found_done)
            for number in records:
                records[number] = everything[number]
                account.add(records[number])
        account.seconds = time.monotonic() - started
        if finished:
            skipped = parse_json(folder.read(MANIFEST) or b"", f"{folder}/{MANIFEST}").get("skipped", {})
            account.complete, account.skipped = True, sum(skipped.values())
            account.reasons.update(skipped)
            if folder.local is not None:
                open_features(folder.local).verify()
        else:
            check_dropped(
                account.skipped, account.images, allowed=allow_dropped, examples=account.examples, unknown=unknown
            )
            _finish(job, list(records.values()), dataset, labels, sources)
        folder.remove(RECORDS)
        folder.remove(BEGUN)
    return folder.at, account


def here(job: Job, batches: Iterator[Batch]) -> Iterator[BatchRecord]:
    """In this process, on its device. The encoders are loaded when there is a first batch."""
    extractor = None
    for batch in batches:
        extractor = extractor or load(job, device=torch_device())
        yield work(extractor, batch, job.folder)


def torch_device() -> str:
    """The device on which this process encodes; a rank of torchrun has a GPU of its own."""
    device = choose_device(find_devices())
    if device.type != "cuda":
        return device.type
    local = int(os.environ.get("LOCAL_RANK", -1))
    return f"cuda:{local % torch.cuda.device_count() if local >= 0 else device.index}"


def load(job: Job, *, device: str) -> "Extractor":
    """The encoders of a job; the first who loads them also writes the states of the empty prompt, always the same."""
    extractor = Extractor(job, device=device)
    states = extractor.null_text()
    if states is not None and job.folder.read(NULL_TEXT) is None:
        write_null_text(job.folder, states)
    return extractor


def work(extractor: "Extractor", batch: Batch, folder: Folder) -> BatchRecord:
    """Extract a batch and write it; tried again when it fails, for storage and GPUs may need a moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return write_batch(folder, *extractor(batch))
        except PixArtError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if isinstance(error, torch.OutOfMemoryError):
                raise PixArtError(
                    f"Out of memory on {extractor.device}: {reason} Begin again with a smaller --encoded-pixels."
                ) from None
            if attempt < ATTEMPTS:
                time.sleep(attempt)
    first, last = printable(batch.pairs[0].key), printable(batch.pairs[-1].key)
    raise PixArtError(f"Batch {batch.number} ({first} to {last}) failed {ATTEMPTS} times: {reason}")


def batches_of(
    items: Iterable[Pair | Problem], settings: Settings, *, captions: bool = True
) -> Iterator[tuple[Batch, dict[str, dict[str, int]]]]:
    """Cut a data set's stream into batches of `settings.rows` pairs; with each, the classes known by then, by kind.

    Classes and caption sources are numbered as they first appear, so that the same data gives the same numbers.
    Without `captions`, or of other sources than those wanted, captions are left off.
    """
    wanted = settings.caption_sources
    sources: dict[str, int] = dict.fromkeys(wanted, 0)
    classes: dict[str, dict[str, int]] = {kind: {} for kind in settings.labels or ("class",)}
    pairs: list[Pair] = []
    labels: list[tuple[int, ...]] = []
    problems: list[Problem] = []
    number = 0
    for item in items:
        if isinstance(item, Problem):
            problems.append(item)
            continue
        kept: tuple[Caption, ...] = ()
        if captions:
            kept = tuple(c for c in item.captions if not wanted or c.source in sources)
            if wanted:
                kept = tuple(sorted(kept, key=lambda caption: wanted.index(caption.source)))
            sources |= dict.fromkeys((caption.source for caption in kept), 0)
        named = [item.extra.get(kind) for kind in settings.labels] if settings.labels else [item.label]
        known = zip(named, classes.values(), strict=True)
        labels.append(tuple(-1 if name is None else kind.setdefault(str(name), len(kind)) for name, kind in known))
        weight = {"weight": item.extra["weight"]} if "weight" in item.extra else {}
        pairs.append(replace(item, captions=kept, extra=weight))
        if len(pairs) == settings.rows:
            yield Batch(number, tuple(pairs), tuple(labels), tuple(sources), tuple(problems)), classes
            pairs, labels, problems, number = [], [], [], number + 1
    if pairs or problems:
        yield Batch(number, tuple(pairs), tuple(labels), tuple(sources), tuple(problems)), classes


class Extractor:
    """Both encoders, loaded, on one device. Calling it on a batch gives its rows; the same batch the same bytes.

    On a processor the number of threads changes the last bits, so it is part of the settings.
    """

    def __init__(self, job: Job, *, device: str = "cpu"):
        encoders = job.encoders
        self.settings, self.device, self.table = job.settings, device, check_settings(job.settings)
        self.pool = ThreadPoolExecutor(threads())
        self.read = read_bytes  # those who fetch from the cloud put their own here
        self.vae = load_vae(encoders.vae, device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        uneven = [b for b in self.table.buckets if b.height % self.factor or b.width % self.factor]
        if uneven:
            raise UsageError(
                f"The autoencoder in {encoders.vae} makes one latent of {self.factor} px, and the bucket "
                f"{uneven[0].width}x{uneven[0].height} does not divide by it; give --step {self.factor}."
            )
        self.text_encoder = None
        if encoders.text_encoder is not None:
            where = encoders.text_encoder, encoders.tokenizer, device, self.settings.max_tokens
            self.text_encoder = load_text_encoder(*where)

    def null_text(self) -> torch.Tensor | None:
        """States (tokens, T) of the empty prompt, fp16; None without a text encoder."""
        if self.text_encoder is None:
            return None
        with _fixed_threads(self.settings.threads):
            return encode_captions(self.text_encoder, [""], precision=self.settings.precision)[0][0]

    def __call__(self, batch: Batch) -> tuple[BatchRecord, dict[str, list[FeatureRow]]]:
        """The record of a batch, with what was skipped and why, and its rows by bucket "WxH". Writes nothing."""
        places: dict[int, list[Fitted]] = {}
        moments: dict[int, list] = {}
        skipped: dict[int, str] = {}
        hashes: list[str] = []
        waiting: dict[int, list[tuple[int, Image]]] = {}
        with _fixed_threads(self.settings.threads):
            for i, (digest, opened) in enumerate(self._opened(batch)):
                hashes.append(digest)
                if isinstance(opened, str):
                    skipped[i] = opened
                    continue
                places[i] = [replace(fitted, image=None) for fitted in opened]  # only what waits stays in memory
                group = waiting.setdefault(opened[0].bucket, [])
                group += [(i, fitted.image) for fitted in opened]
                if len(group) >= self._group_size(opened[0].bucket):
                    self._encode(waiting.pop(opened[0].bucket), moments, skipped)
            for group in waiting.values():
                self._encode(group, moments, skipped)
            states, cut = self._states(batch, sorted(moments), skipped)
        rows: dict[str, list[FeatureRow]] = {}
        for i in sorted(moments):
            if i not in skipped:
                bucket, pair = self.table.buckets[places[i][0].bucket], batch.pairs[i]
                crops = [fitted.crop_corner for fitted in places[i] for _ in range(2 if self.settings.flip else 1)]
                row = FeatureRow(
                    key=pair.key, moments=tuple(moments[i]), crops=tuple(crops), captions=states.get(i, ()),
                    labels=batch.labels[i], original_size=places[i][0].original_size, weight=weight_of(pair),
                )  # fmt: skip
                rows.setdefault(f"{bucket.width}x{bucket.height}", []).append(row)
        # A caption that could not be used costs no image: where one has no caption left, the pair itself has a reason.
        lost = [(p.key, f"{p.kind}: {p.reason}") for p in batch.problems if not p.kind.startswith("caption")]
        remarks = [(p.key, f"{p.kind}: {p.reason}") for p in batch.problems if p.kind.startswith("caption")]
        images = len(batch.pairs) + len(lost)
        lost += [(batch.pairs[i].key, skipped[i]) for i in sorted(skipped)]
        data = _digest(batch, hashes)
        return BatchRecord(batch.number, images, data, batch.stat(), {}, tuple(lost), tuple(remarks), cut), rows

    def _opened(self, batch: Batch) -> Iterator[tuple[str, list[Fitted] | str]]:
        """Of each pair, in order: the hash of its file, and its crops or why it is skipped."""
        for start in range(0, len(batch.pairs), OPENED_AHEAD):
            read = ((pair, *_bytes_hash(pair, self.read)) for pair in batch.pairs[start : start + OPENED_AHEAD])
            yield from self.pool.map(self._open, read)

    def _open(self, read: tuple[Pair, bytes | ImageProblem, str]) -> tuple[str, list[Fitted] | str]:
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
        seeds = range(settings.seed or 0, (settings.seed or 0) + settings.crops)
        fitted = [fit(image, self.table, crop=settings.crop, seed=seed, name=pair.key) for seed in seeds]
        share = kept_share(image.height, image.width, self.table.buckets[fitted[0].bucket])
        if share < MIN_KEPT and not settings.square:
            return digest, (
                f"narrow: {image.width} x {image.height} pixels; its bucket keeps {share:.0%} of it, and at least "
                f"{MIN_KEPT:.0%} is wanted."
            )
        return digest, fitted

    def _group_size(self, bucket: int) -> int:
        """How many images of a bucket go through the autoencoder at once; part of what fixes the last bits."""
        here = self.table.buckets[bucket]
        return max(1, self.settings.encoded_pixels // (here.height * here.width))

    def _encode(self, group: "list[tuple[int, Image]]", moments: dict[int, list], skipped: dict[int, str]) -> None:
        flip, precision = self.settings.flip, self.settings.precision
        results = encode_pictures(self.vae, [image for _, image in group], flip=flip, precision=precision)
        for (i, _), result in zip(group, results, strict=True):
            if all(tensor.isfinite().all() for tensor in result):
                moments.setdefault(i, []).extend(zip(result[::2], result[1::2], strict=True))
            else:
                skipped[i] = "not-finite: the autoencoder made numbers of it that are not finite."

    def _states(self, batch: Batch, rows: Sequence[int], skipped: dict[int, str]) -> tuple[dict[int, tuple], int]:
        if self.text_encoder is None or not rows:
            return {}, 0
        captions = [(i, caption) for i in rows for caption in batch.pairs[i].captions]
        texts, precision = [caption.text for _, caption in captions], self.settings.precision
        states, cut = encode_captions(self.text_encoder, texts, precision=precision)
        out: dict[int, tuple] = {i: () for i in rows}
        for (i, caption), values in zip(captions, states, strict=True):
            if not values.isfinite().all():
                skipped[i] = "not-finite: the text encoder made numbers of its caption that are not finite."
            out[i] += ((batch.sources.index(caption.source), values),)
        return out, cut


def weight_of(pair: Pair) -> float:
    """How often a pair is drawn: kohya's repeats times the metadata column `weight`. PixArtError where it is none."""
    weight = pair.extra.get("weight", 1)
    try:
        weight = float(weight)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < 1e9:
        raise PixArtError(f"The weight of {printable(pair.key)} is {pair.extra['weight']!r}; give a number from 0 on.")
    return pair.repeats * weight


@contextlib.contextmanager
def _ranks() -> Iterator[tuple[int, int, Callable[[], None]]]:
    """Rank, number of ranks, and a function that waits for all of them: those of torchrun, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield 0, 1, lambda: None
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))  # one rank may have much less to do than another
    try:
        yield dist.get_rank(), size, dist.barrier
    finally:
        dist.destroy_process_group()


def _begun(folder: Folder) -> tuple[Origin, list[BatchRecord]] | None:
    """What a folder was begun with, and where it is finished its batches; None where there is nothing."""
    for name in (MANIFEST, BEGUN):
        content = folder.read(name)
        if content is not None:
            value = parse_json(content, f"{folder}/{name}")
            try:
                origin = structure(value["origin"], Origin, name)
                batches = value.get("batches", [])
                return origin, [BatchRecord(b["number"], b["images"], b["data"], b["stat"]) for b in batches]
            except (KeyError, TypeError, AttributeError, UsageError):
                raise PixArtError(f"{folder}/{name} is damaged or of another version; give a new folder.") from None
    return None


def _begin(folder: Folder, encoders: Encoders, settings: Settings, chosen: Sequence[str]) -> Origin:
    """Refuse what is in the way, and note in the folder what the features are made with."""
    begun = _begun(folder)
    if begun:
        settings = replace(settings, **{name: getattr(begun[0].settings, name) for name in chosen})
    check_settings(settings)
    tokenizer = encoders.tokenizer
    origin = Origin(
        settings=settings,
        vae=weights_id(encoders.vae),
        text_encoder=weights_id(encoders.text_encoder) if encoders.text_encoder else None,
        tokenizer=files_hash(sorted(path for path in tokenizer.glob("*") if path.is_file())) if tokenizer else None,
    )
    if begun:
        if differences := begun[0].differences(origin):
            raise PixArtError(
                f"{folder} does not fit: it was made with {'; '.join(differences)}. Extract into another folder."
            )
        return origin
    strangers = [name for name in folder.names("") if name != LOCK and not name.endswith(".part")]
    if strangers:
        raise UsageError(f"{folder} is not empty and holds no features; give a new folder.")
    folder.write(BEGUN, json.dumps({"origin": plain(origin)}, indent=1).encode())
    return origin


def _is_intact(folder: Folder, record: BatchRecord) -> bool:
    """Whether a batch that is done still has its shards, byte by byte; in the cloud its record is believed."""
    if folder.local is None:
        return True
    for bucket, shard in record.shards.items():
        if not shard_is_there(folder.local / bucket, shard):
            return False
        try:
            tensors, _ = map_shard(folder.local / bucket / shard.file)
        except PixArtError:
            return False
        if content_hash(tensors) != shard.content:
            return False
    return True


def _same_data(folder: Folder, batch: Batch, record: BatchRecord, *, rewrite: bool) -> BatchRecord:
    """The record, if its batch is still what it was made from; touched files are read and compared by content."""
    stat = batch.stat()
    if record.stat == stat:
        return record
    if record.data != batch.content():
        first, last = (printable(pair.key) for pair in (batch.pairs[0], batch.pairs[-1]))
        raise _changed(folder, f"something among {first} to {last} is not what it was")
    record = replace(record, stat=stat)
    if rewrite:
        write_record(folder, record)
    return record


def _changed(folder: Folder, what: str) -> PixArtError:
    return PixArtError(f"The data has changed since {folder} was made: {what}. Extract into another folder.")


def _refuse_missing_sources(settings: Settings, batch: Batch, dataset: Dataset) -> None:
    """Captions of the wanted sources are missing from the first images: refuse now, not after hours."""
    if not settings.caption_sources or any(pair.captions for pair in batch.pairs):
        return
    found: dict[str, None] = {}
    for pair, _ in zip(dataset.pairs(), range(len(batch.pairs)), strict=False):
        found |= dict.fromkeys(caption.source for caption in getattr(pair, "captions", ()))
    there, wanted = ", ".join(found) or "none", " and ".join(settings.caption_sources)
    raise UsageError(f"None of the first {len(batch.pairs):,} images has a caption of {wanted}; they have: {there}.")


def _stop_early(account: Account, allowed: float, hint: int | None) -> None:
    """Stop once it is sure that too many are dropped, whatever is still to come."""
    total = max(account.images, hint or 0)
    if account.skipped > allowed * total and hint:
        check_dropped(account.skipped, total, allowed=allowed, examples=account.examples)


def _finish(job: Job, records: list[BatchRecord], dataset: Dataset, labels: dict, sources: list[str]) -> None:
    """Write the manifest; from then on the folder is finished."""
    import diffusers
    import transformers

    import pixart

    folder, encoders = job.folder, job.encoders
    vae = read_json_object(encoders.vae / "config.json")
    null_text = text_dim = None
    if encoders.text_encoder is not None:
        null_text, text_dim = _null_text(folder)
    versions = {module.__name__: module.__version__ for module in (pixart, torch, diffusers, transformers)}
    about = {
        "origin": job.origin,
        "data": str(dataset.path),
        "encoders": {name: str(Path(path).absolute()) for name, path in vars(encoders).items() if path is not None},
        "latent_channels": vae.get("latent_channels", 4),
        "scaling_factor": vae.get("scaling_factor") or 1.0,
        "shift_factor": vae.get("shift_factor") or 0.0,
        "text_dim": text_dim,
        "null_text": null_text,
        "caption_sources": tuple(sources),
        "labels": {kind: tuple(names) for kind, names in labels.items() if names},
        "versions": versions,
    }
    write_manifest(folder, records, about)


def _null_text(folder: Folder) -> tuple[str, int]:
    """Content hash and width of the states of the empty prompt that a worker has written."""
    if folder.local is not None:
        tensors, _ = map_shard(folder.local / NULL_TEXT)
    else:
        from safetensors.torch import load as parse

        tensors = parse(folder.read(NULL_TEXT) or b"")
    return content_hash(tensors), tensors["states"].shape[1]


@contextlib.contextmanager
def _fixed_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(batch: Batch, images: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for pair, label, image in zip(batch.pairs, batch.labels, images, strict=True):
        captions = [(caption.source, caption.text) for caption in pair.captions]
        values = [pair.key, captions, pair.label, label, pair.repeats, pair.extra.get("weight"), image]
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
