"""From a data set to a feature folder: images and captions through the two encoders, once.

The data set is cut into batches of a fixed number of pairs. Each batch becomes shards of its own and then a record, so
that a run may be killed at any instant and started again, and so that the folder does not depend on who computed which
batch: this process, or the workers of a Ray cluster.
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
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pixart.buckets import MIN_KEPT, BucketTable, Fitted, bucket_table, cover, fit, kept_share, square_table
from pixart.config import plain, structure
from pixart.data.dataset import ALLOWED, Dataset, check_dropped
from pixart.data.encode import encode_captions, encode_images, load_text_encoder, load_vae
from pixart.data.features import (
    MANIFEST,
    RECORDS,
    UNCONDITIONAL,
    BatchRecord,
    FeatureRow,
    Manifest,
    Origin,
    Settings,
    content_hash,
    files_hash,
    map_shard,
    open_features,
    read_records,
    weights_id,
    write_batch,
    write_unconditional,
)
from pixart.data.pairs import Caption, ImageProblem, InTar, Location, Pair, Problem, printable, read_bytes
from pixart.data.storage import Folder
from pixart.errors import PixArtError, UsageError
from pixart.files import locked, parse_json, read_json_object
from pixart.images import Opened, open_image
from pixart.runtime.device import Device, choose_device, find_devices, threads

BEGUN = "extraction.json"
LOCK = ".lock"
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
    """What became of the images so far. `found_done` were extracted by an earlier run; `complete`: all of them.

    `reasons` counts the images that were skipped, by the kind of reason.
    """

    images: int = 0
    found_done: int = 0
    complete: bool = False
    cut: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def skipped(self) -> int:
        return self.reasons.total()

    def add(self, record: BatchRecord) -> None:
        self.images += record.images
        self.cut += record.cut
        self.bytes += sum(shard.bytes for shard in record.shards.values())
        self.reasons.update(reason.split(":")[0] for _, reason in record.skipped)
        self.examples += [f"{printable(key)}: {reason}" for key, reason in record.skipped[: 20 - len(self.examples)]]


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
    """Consecutive pairs of a data set with their class indices (-1: none), and the problems met among them."""

    number: int
    pairs: tuple[Pair, ...]
    labels: tuple[tuple[int, ...], ...]
    problems: tuple[Problem, ...] = ()

    def stat(self) -> str:
        """A hash of what the batch is made of as far as can be told without reading images: sizes and times."""
        known: dict[str, tuple[int, int] | None] = {}
        files = [(pair.image, *([pair.mask] if pair.mask else [])) for pair in self.pairs]
        return _digest(self, [[_stat(file, known) for file in of_pair] for of_pair in files])

    def content(self) -> str:
        """The hash that `Extractor` gives, found by reading every image's bytes."""
        return _digest(self, [_bytes_hash(pair)[1] for pair in self.pairs])


Runner = Callable[[Job, Iterator[Batch]], Iterator[BatchRecord]]


def check_settings(settings: Settings) -> BucketTable:
    """The buckets. Raises UsageError for settings that cannot be."""
    limits = {"rows": 100_000, "base_size": 4096, "max_tokens": 4096, "crops": 64, "encoded_pixels": 1 << 40}
    for name, most in limits.items():
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
) -> tuple[str, Account]:
    """Make, or finish making, the features of `dataset` in the folder `dest`; returns it and the account of all images.

    Run again after a stop or a kill it goes on; run again when it is finished it checks that data and shards are still
    the same. `chosen` names the settings that the machine decided: where the folder has been begun, its own are taken
    instead. `run` computes the batches, by default this process.

    Raises:
        UsageError: `dest` is in use for something else.
        PixArtError: features there were made from other data, encoders or settings (saying which); more than
            `allow_dropped` of the images cannot be used; the disk is full.
    """
    check_settings(settings)
    started, folder, account = time.monotonic(), Folder(str(dest)), Account()
    with contextlib.ExitStack() as stack:
        if folder.local is not None:
            if folder.local.exists() and not folder.local.is_dir():
                raise UsageError(f"{folder} is a file; give a folder for the features.")
            refusal = f"Another pixart data extract is writing {folder}; wait for it, or stop it."
            stack.enter_context(locked(folder.local / LOCK, refusal))
        origin, finished = _begin(folder, encoders, settings, chosen)
        batches = Batches(dataset.pairs(), origin.settings, captions=encoders.text_encoder is not None)
        known = {one.number: one for one in finished.batches} if finished else read_records(folder)
        records: list[BatchRecord] = []

        def take(record: BatchRecord) -> None:
            records.append(record)
            account.add(record)
            account.seconds = time.monotonic() - started
            progress(account)

        def left() -> Iterator[Batch]:
            """The batches that are still to be computed; what is done is counted on the way."""
            for batch in batches:
                record = known.pop(batch.number, None)
                if finished and record is None:
                    raise _changed(folder, "it has more images now")
                if record is None or not (finished or _is_intact(folder, record)):
                    yield batch
                    continue
                account.found_done += record.images
                take(_same_data(folder, batch, record))

        for record in (run or here)(Job(encoders, origin, folder), left()):
            take(record)
            _stop_early(account, allow_dropped, dataset.count_hint())
        if not records:
            raise PixArtError(f"{dataset.path} has no images.")
        if known:
            raise _changed(folder, "it has fewer images now")
        if finished:
            account.complete = True
            if folder.local is not None:
                open_features(folder.local).verify()
        else:
            dropped, images = account.skipped, account.images
            check_dropped(dropped, images, allowed=allow_dropped, examples=account.examples, unknown=batches.unknown)
            _finish(folder, origin, encoders, records, dataset, batches)
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
    """The device on which this process encodes."""
    device = choose_device(find_devices())
    return f"cuda:{device.index}" if device.type == "cuda" else device.type


def load(job: Job, *, device: str) -> "Extractor":
    """The encoders of a job; the first who loads them also writes the states of the empty prompt, always the same."""
    extractor = Extractor(job, device=device)
    if extractor.text_encoder is not None and job.folder.read(UNCONDITIONAL) is None:
        states, _ = encode_captions(extractor.text_encoder, [""], precision=job.settings.precision)
        write_unconditional(job.folder, states[0])
    return extractor


def work(extractor: "Extractor", batch: Batch, folder: Folder) -> BatchRecord:
    """Extract a batch and write it. Raises PixArtError, naming the batch, for whatever fails."""
    try:
        return write_batch(folder, *extractor(batch))
    except PixArtError:
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise PixArtError(
            f"Out of memory on {extractor.device}: {reason} Begin again with a smaller --encoded-pixels."
        ) from None
    except Exception as error:  # of drivers, of storage in the cloud
        first, last = printable(batch.pairs[0].key), printable(batch.pairs[-1].key)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PixArtError(
            f"Batch {batch.number} ({first} to {last}) failed: {reason} The same command goes on."
        ) from error


class Batches:
    """A data set's stream cut into batches of `settings.rows` pairs.

    Classes are numbered as they first appear, so that the same data gives the same numbers. Without `captions`, or of
    other sources than those wanted, captions are left off. After the pass `classes` has the class names by kind, and
    `unknown` the losses of which nobody can say how many images they are.
    """

    def __init__(self, items: Iterable[Pair | Problem], settings: Settings, *, captions: bool = True):
        self.items, self.settings, self.captions = items, settings, captions
        self.classes: dict[str, dict[str, int]] = {kind: {} for kind in settings.labels or ("class",)}
        self.unknown: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        pairs: list[Pair] = []
        problems: list[Problem] = []
        number = 0
        for item in self.items:
            if isinstance(item, Problem):
                problems.append(item)
                if item.lost is None:
                    self.unknown.append(f"{item.key}: {item.reason}")
                continue
            pairs.append(replace(item, captions=self._wanted(item), mask=item.mask if self.settings.masks else None))
            if len(pairs) == self.settings.rows:
                yield self._batch(number, pairs, problems)
                pairs, problems, number = [], [], number + 1
        if pairs or problems:
            yield self._batch(number, pairs, problems)

    def _batch(self, number: int, pairs: list[Pair], problems: list[Problem]) -> Batch:
        labels = tuple(self._labels(pair) for pair in pairs)
        lean = (replace(pair, extra={k: v for k, v in pair.extra.items() if k == "weight"}) for pair in pairs)
        return Batch(number, tuple(lean), labels, tuple(problems))

    def _wanted(self, pair: Pair) -> tuple[Caption, ...]:
        wanted = self.settings.caption_sources
        if not self.captions or not wanted:
            return pair.captions if self.captions else ()
        kept = (caption for caption in pair.captions if caption.source in wanted)
        return tuple(sorted(kept, key=lambda caption: wanted.index(caption.source)))

    def _labels(self, pair: Pair) -> tuple[int, ...]:
        kinds = self.settings.labels
        named = [pair.extra.get(kind) for kind in kinds] if kinds else [pair.label]
        known = zip(named, self.classes.values(), strict=True)
        return tuple(-1 if name is None else kind.setdefault(str(name), len(kind)) for name, kind in known)


@dataclass(frozen=True)
class Views:
    """An image in its bucket, once for each crop, and the same of its mask, (h, w) uint8 each, where masks are kept."""

    images: list[Fitted]
    masks: list[torch.Tensor]


class Extractor:
    """Both encoders, loaded, on one device. Calling it on a batch gives its rows; the same batch the same bytes.

    On a processor the number of threads changes the last bits, so it is part of the settings.
    """

    def __init__(self, job: Job, *, device: str = "cpu"):
        encoders = job.encoders
        self.settings, self.device, self.table = job.settings, device, check_settings(job.settings)
        torch.set_num_threads(self.settings.threads)
        self.pool = ThreadPoolExecutor(threads())
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

    def __call__(self, batch: Batch) -> tuple[BatchRecord, dict[str, list[FeatureRow]]]:
        """The record of a batch, with what was skipped and why, and its rows by bucket "WxH". Writes nothing."""
        states, cut = self._states(batch)
        made: dict[int, FeatureRow | str] = {}  # by place in the batch; a text says why there is no row
        hashes: list[str] = []
        waiting: dict[int, list[tuple[int, Views]]] = {}
        buckets: dict[int, str] = {}
        for i, (digest, opened) in enumerate(self._opened(batch)):
            hashes.append(digest)
            if isinstance(opened, str):
                made[i] = opened
                continue
            index = opened.images[0].bucket
            bucket = self.table.buckets[index]
            buckets[i] = f"{bucket.width}x{bucket.height}"
            group = waiting.setdefault(index, [])
            group.append((i, opened))
            # How many go through the autoencoder at once is part of what fixes the last bits.
            if len(group) * self.settings.crops * bucket.height * bucket.width >= self.settings.encoded_pixels:
                made |= self._rows(batch, waiting.pop(index), states)
        for group in waiting.values():
            made |= self._rows(batch, group, states)
        rows: dict[str, list[FeatureRow]] = {}
        skipped = []
        for i, row in sorted(made.items()):
            if isinstance(row, str):
                skipped.append((batch.pairs[i].key, row))
            else:
                rows.setdefault(buckets[i], []).append(row)
        # A caption that could not be used costs no image: where one has no caption left, the pair itself has a reason.
        lost = tuple((p.key, f"{p.kind}: {p.reason}") for p in batch.problems if not p.kind.startswith("caption"))
        remarks = tuple((p.key, f"{p.kind}: {p.reason}") for p in batch.problems if p.kind.startswith("caption"))
        images, data = len(batch.pairs) + len(lost), _digest(batch, hashes)
        return BatchRecord(batch.number, images, data, batch.stat(), {}, (*lost, *skipped), remarks, cut), rows

    def _opened(self, batch: Batch) -> Iterator[tuple[str, "Views | str"]]:
        """Of each pair, in order: the hash of its file, and its crops or why it is skipped."""
        for start in range(0, len(batch.pairs), OPENED_AHEAD):
            read = ((pair, *_bytes_hash(pair)) for pair in batch.pairs[start : start + OPENED_AHEAD])
            yield from self.pool.map(lambda found: (found[2], self._open(*found[:2])), read)

    def _open(self, pair: Pair, data: bytes | ImageProblem) -> "Views | str":
        settings = self.settings
        if self.text_encoder is not None and not pair.captions:
            wanted = " of " + " or ".join(settings.caption_sources) if settings.caption_sources else ""
            problem = pair.caption_problem or Problem(pair.key, "caption-missing", f"it has no caption{wanted}.")
            return f"{problem.kind}: {problem.reason}"
        try:
            if isinstance(data, ImageProblem):
                raise data
            opened = open_image(data)
            image = opened.image
            mask = _mask(pair, opened) if settings.masks else None
        except ImageProblem as problem:
            return f"{problem.kind}: {problem.reason}"
        seeds = range(settings.seed or 0, (settings.seed or 0) + settings.crops)
        fitted = [fit(image, self.table, crop=settings.crop, seed=seed, name=pair.key) for seed in seeds]
        share = kept_share(image.height, image.width, self.table.buckets[fitted[0].bucket])
        if share < MIN_KEPT and not settings.square:
            return f"narrow: {image.width} x {image.height} pixels, of which its bucket keeps {share:.0%}."
        return Views(fitted, [] if mask is None else [self._fitted_mask(mask, each) for each in fitted])

    def _fitted_mask(self, mask: Image.Image, view: Fitted) -> torch.Tensor:
        """The mask of a view of its image, (h, w) uint8: the mean over each latent's pixels."""
        bucket = self.table.buckets[view.bucket]
        height, width = bucket.height // self.factor, bucket.width // self.factor
        covering, (top, left) = cover(mask.height, mask.width, bucket), view.crop_corner
        down, across = mask.height / covering[0], mask.width / covering[1]
        right, below = (left + bucket.width) * across, (top + bucket.height) * down
        box = left * across, top * down, min(right, mask.width), min(below, mask.height)
        return torch.from_numpy(np.array(mask.resize((width, height), Image.Resampling.BOX, box=box)))

    def _rows(
        self, batch: Batch, group: list[tuple[int, "Views"]], states: list[tuple[torch.Tensor, ...]]
    ) -> dict[int, FeatureRow | str]:
        """The rows of images of one bucket, by their place in the batch."""
        flip, images = self.settings.flip, [fitted.image for _, views in group for fitted in views.images]
        encoded = iter(encode_images(self.vae, images, flip=flip, precision=self.settings.precision))
        rows: dict[int, FeatureRow | str] = {}
        for i, views in group:
            tensors = [tensor for _ in views.images for tensor in next(encoded)]
            if not all(tensor.isfinite().all() for tensor in (*tensors, *states[i])):
                rows[i] = "not-finite: an encoder made numbers of it that are not finite."
                continue
            rows[i] = FeatureRow(
                key=batch.pairs[i].key,
                moments=tuple(zip(tensors[::2], tensors[1::2], strict=True)),
                crops=tuple(fitted.crop_corner for fitted in views.images for _ in range(1 + flip)),
                masks=tuple(turned for mask in views.masks for turned in ((mask, mask.flip(-1)) if flip else (mask,))),
                captions=states[i],
                labels=batch.labels[i],
                original_size=views.images[0].original_size,
                weight=weight_of(batch.pairs[i]),
            )
        return rows

    def _states(self, batch: Batch) -> tuple[list[tuple[torch.Tensor, ...]], int]:
        """The states of each pair's captions, and how many captions were cut."""
        texts = [caption.text for pair in batch.pairs for caption in pair.captions]
        if self.text_encoder is None or not texts:
            return [() for _ in batch.pairs], 0
        states, cut = encode_captions(self.text_encoder, texts, precision=self.settings.precision)
        of_all = iter(states)
        return [tuple(next(of_all) for _ in pair.captions) for pair in batch.pairs], cut


def weight_of(pair: Pair) -> float:
    """How often to choose a pair: kohya's repeats times the metadata column `weight`. PixArtError where it is none."""
    weight = pair.extra.get("weight", 1)
    try:
        weight = float(weight)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < 1e9:
        raise PixArtError(f"The weight of {printable(pair.key)} is {pair.extra['weight']!r}; give a number from 0 on.")
    return pair.repeats * weight


def _begin(
    folder: Folder, encoders: Encoders, settings: Settings, chosen: Sequence[str]
) -> tuple[Origin, Manifest | None]:
    """Note in the folder what the features are made with; the manifest, where they are finished.

    Raises UsageError or PixArtError where the folder holds something else.
    """
    manifest = begun = None
    name = next((name for name in (MANIFEST, BEGUN) if folder.read(name) is not None), None)
    if name is not None:
        value = parse_json(folder.read(name) or b"", f"{folder}/{name}")
        try:
            manifest = structure(value, Manifest, name) if name == MANIFEST else None
            begun = manifest.origin if manifest else structure(value, Origin, name)
        except UsageError:
            raise PixArtError(f"{folder}/{name} is damaged or of another version; give a new folder.") from None
        settings = replace(settings, **{name: getattr(begun.settings, name) for name in chosen})
    tokenizer = encoders.tokenizer
    origin = Origin(
        settings=settings,
        vae=weights_id(encoders.vae),
        text_encoder=weights_id(encoders.text_encoder) if encoders.text_encoder else None,
        tokenizer=files_hash(sorted(path for path in tokenizer.glob("*") if path.is_file())) if tokenizer else None,
    )
    if begun:
        if differences := begun.differences(origin):
            raise PixArtError(
                f"{folder} does not fit: it was made with {'; '.join(differences)}. Extract into another folder."
            )
        return origin, manifest
    strangers = [name for name in folder.names("") if name != LOCK and not name.endswith(".part")]
    if strangers:
        raise UsageError(f"{folder} is not empty and holds no features; give a new folder.")
    folder.write(BEGUN, json.dumps(plain(origin), indent=1).encode())
    return origin, None


def _is_intact(folder: Folder, record: BatchRecord) -> bool:
    """Whether a batch that is done still has its shards, byte by byte; in the cloud its record is believed."""
    if folder.local is None:
        return True
    try:
        return all(
            content_hash(map_shard(folder.local / bucket / shard.file)[0]) == shard.content
            for bucket, shard in record.shards.items()
        )
    except PixArtError:
        return False


def _same_data(folder: Folder, batch: Batch, record: BatchRecord) -> BatchRecord:
    """The record, if its batch is still what it was made from; touched files are read and compared by content."""
    stat = batch.stat()
    if record.stat == stat:
        return record
    if record.data != batch.content():
        first, last = (printable(pair.key) for pair in (batch.pairs[0], batch.pairs[-1]))
        raise _changed(folder, f"something among {first} to {last} is not what it was")
    return replace(record, stat=stat)


def _changed(folder: Folder, what: str) -> PixArtError:
    return PixArtError(f"The data has changed since {folder} was made: {what}. Extract into another folder.")


def _stop_early(account: Account, allowed: float, hint: int | None) -> None:
    """Stop once it is sure that too many are dropped, or when none of the first images can be used."""
    total = max(account.images, hint or 0)
    if account.skipped > allowed * total and (hint or account.skipped == account.images):
        check_dropped(account.skipped, total, allowed=allowed, examples=account.examples)


def _finish(
    folder: Folder, origin: Origin, encoders: Encoders, records: list[BatchRecord], dataset: Dataset, batches: Batches
) -> None:
    """Write the manifest, which makes the folder whole."""
    import diffusers
    import transformers
    from safetensors.torch import load as parse

    import pixart

    vae = read_json_object(encoders.vae / "config.json")
    unconditional = parse(folder.read(UNCONDITIONAL) or b"") if encoders.text_encoder is not None else None
    manifest = Manifest(
        origin=origin,
        data=str(dataset.path),
        encoders={name: str(Path(path).absolute()) for name, path in vars(encoders).items() if path is not None},
        latent_channels=vae.get("latent_channels", 4),
        scaling_factor=vae.get("scaling_factor") or 1.0,
        shift_factor=vae.get("shift_factor") or 0.0,
        batches=tuple(sorted(records, key=lambda record: record.number)),
        text_dim=unconditional["states"].shape[1] if unconditional else None,
        unconditional=content_hash(unconditional) if unconditional else None,
        labels={kind: tuple(names) for kind, names in batches.classes.items() if names},
        versions={module.__name__: module.__version__ for module in (pixart, torch, diffusers, transformers)},
    )
    folder.write(MANIFEST, (json.dumps(plain(manifest), ensure_ascii=False, indent=1) + "\n").encode())


def _digest(batch: Batch, images: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for pair, label, image in zip(batch.pairs, batch.labels, images, strict=True):
        captions = [(caption.source, caption.text) for caption in pair.captions]
        values = [pair.key, captions, pair.label, label, pair.repeats, pair.extra.get("weight"), image]
        digest.update(json.dumps(values).encode() + b"\n")
    digest.update(json.dumps([(p.key, p.kind) for p in batch.problems]).encode())
    return digest.hexdigest()


def _mask(pair: Pair, opened: Opened) -> Image.Image:
    """Where the loss of an image counts, mode L, in its size: by its mask file, its alpha channel, or everywhere.

    Raises ImageProblem for a mask that cannot be read or has another shape.
    """
    if pair.mask is None:
        return opened.opacity or Image.new("L", opened.image.size, 255)
    try:
        mask = open_image(read_bytes(pair.mask)).image.convert("L")
    except ImageProblem as problem:
        raise ImageProblem("mask", f"its mask cannot be used: {problem.reason}") from None
    (width, height), (wide, high) = opened.image.size, mask.size
    if abs(width * high - wide * height) > max(width, height, wide, high):
        raise ImageProblem("mask", f"its mask has {wide} x {high} pixels, another shape than {width} x {height}.")
    return mask.resize(opened.image.size)


def _bytes_hash(pair: Pair) -> tuple[bytes | ImageProblem, str]:
    """The bytes of a pair's image, and a hash of these and of its mask's."""
    try:
        data = read_bytes(pair.image)
    except ImageProblem as problem:
        return problem, problem.kind
    digest = hashlib.sha256(data)
    if pair.mask is not None:
        try:
            digest.update(hashlib.sha256(read_bytes(pair.mask)).digest())
        except ImageProblem as problem:
            digest.update(problem.kind.encode())
    return data, digest.hexdigest()


def _stat(image: Location, known: dict[str, tuple[int, int] | None]) -> tuple[object, ...]:
    path = image.path
    if path not in known:
        try:
            about = os.stat(path)
            known[path] = about.st_size, about.st_mtime_ns
        except (OSError, ValueError):  # in the cloud, too
            known[path] = None
    return known[path], (image.offset, image.length) if isinstance(image, InTar) else None
