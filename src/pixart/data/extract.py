"""Extraction from a data set to a finished feature folder: what is done already, what is left, and the account of it.

The data is cut into batches of a fixed number of pairs (`extract_batch`). Each batch becomes shards of its own, and
each its record when they are on the disk, so that a run may be killed at any instant and started again, and so that
the folder does not depend on who computed which batch: this process, several, or many machines.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pixart.data.dataset import Dataset
from pixart.data.dropped import ALLOWED, check_dropped
from pixart.data.extract_batch import Batch, ExtractSettings, batches_of
from pixart.data.feature_shards import (
    FORMAT,
    MANIFEST,
    NULL_TEXT,
    Origin,
    content_hash,
    map_shard,
    open_features,
    refuse_other_origin,
)
from pixart.data.feature_writer import RECORDS, About, BatchRecord, read_records, write_manifest, write_record
from pixart.data.pairs import Pair, Problem, printable
from pixart.data.storage import PARTIAL, Folder
from pixart.errors import PixArtError, UsageError

BEGUN = "extraction.json"
LOCK = ".lock"
LEFT_OUT = ""  # the glance of a batch that failed and that the folder does without


@dataclass
class Account:
    """What became of the pictures so far. `found_done` were extracted by an earlier run; `complete`: all of them."""

    pictures: int = 0
    found_done: int = 0
    complete: bool = False
    skipped: int = 0
    cut: int = 0
    bytes: int = 0
    reasons: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    quarantined: list[BatchRecord] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, record: BatchRecord) -> None:
        self.pictures += record.rows
        self.cut += record.cut
        self.bytes += sum(shard.bytes for shard in record.shards.values())
        self.skipped += len(record.skipped)
        if record.failure:
            self.quarantined.append(record)
        for key, reason in record.skipped:
            self.reasons[reason.split(":")[0]] += 1
            if len(self.examples) < 20:
                self.examples.append(f"{printable(key)}: {reason}")


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; picklable."""

    settings: ExtractSettings
    origin: Origin
    folder: Folder


Runner = Callable[[Job, Iterator[Batch]], Iterator[BatchRecord]]


def extract(
    dataset: Dataset,
    dest: Path | str,
    settings: ExtractSettings,
    *,
    run: Runner,
    allow_dropped: float = ALLOWED,
    leave_out_failed: bool = False,
    progress: Callable[[Account], None] = lambda account: None,
) -> tuple[str, Account]:
    """Make, or finish making, the features of `dataset` in the folder `dest`; `run` computes the batches.

    Returns the folder and the account of all its pictures. Run again after a stop or a kill it goes on where it was;
    run again when it is finished it checks that data and shards are still the same.

    Raises UsageError where `dest` is in use for something else; PixArtError where features there were made from other
    data, encoders or settings (saying which), where more than `allow_dropped` of the pictures cannot be used, where
    batches failed and `leave_out_failed` is not set, and where the disk is full.
    """
    started = time.monotonic()
    folder = Folder(str(dest))
    origin = settings.origin()
    job = Job(settings, origin, folder)
    account = Account()
    with _locked(folder):
        finished = _prepare(folder, origin)
        known = {record.number: record for record in finished or read_records(folder).values()}
        classes: dict[str, int] = {}
        sources: list[str] = []
        records: dict[int, BatchRecord] = {}

        unknown: list[str] = []  # losses of which nobody can say how many images they are

        def noting_unknown() -> Iterator[Pair | Problem]:
            for one in dataset.pairs():
                if isinstance(one, Problem) and one.lost is None:
                    unknown.append(f"{one.key}: {one.reason}")
                yield one

        def left() -> Iterator[Batch]:
            pairs = batches_of(noting_unknown(), settings.rows, settings.caption_sources, captions=_reads(settings))
            for batch, known_classes in pairs:
                classes.update(known_classes)
                sources[:] = batch.sources
                if batch.number == 0:
                    _refuse_missing_sources(settings, batch, dataset)
                record = known.get(batch.number)
                if record is None or not (finished or _shards_there(folder, record)):
                    if finished:
                        raise _changed(folder, "it has more pictures now")
                    yield batch
                    continue
                records[batch.number] = _same_data(folder, batch, record, rewrite=not finished)
                account.take(records[batch.number])
                account.found_done += record.rows
                progress(account)

        for record in run(job, left()):
            records[record.number] = record
            account.take(record)
            account.seconds = time.monotonic() - started
            progress(account)
            _stop_early(account, allow_dropped, dataset.count_hint())
        if not records:
            raise PixArtError(f"{dataset.path} has no pictures.")
        if known.keys() - records.keys():
            raise _changed(folder, "it has fewer pictures now")
        account.seconds = time.monotonic() - started
        if finished:
            manifest = json.loads(folder.read(MANIFEST) or b"{}")
            account.complete, account.skipped = True, account.pictures - manifest["rows"]
            account.reasons.update(manifest["skipped"])
            if folder.local is not None:
                open_features(folder.local).verify()
            _clean(folder)
            return folder.at, account
        _refuse_failed(account, leave_out_failed)
        check_dropped(
            account.skipped, account.pictures, allowed=allow_dropped, examples=account.examples, unknown=unknown
        )
        _finish(job, list(records.values()), dataset, classes, sources)
    return folder.at, account


def _reads(settings: ExtractSettings) -> bool:
    return settings.text_encoder is not None


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """One process at a time in a local folder; the lock falls with the process, however it ends."""
    if folder.local is None:
        yield
        return
    import fcntl

    try:
        if folder.local.exists() and not folder.local.is_dir():
            raise UsageError(f"{folder} is a file; give a folder for the features.")
        folder.local.mkdir(parents=True, exist_ok=True)
        lock = open(folder.local / LOCK, "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise PixArtError(f"{folder} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PixArtError(f"Another pixart data extract is writing {folder}; wait for it, or stop it.") from None
        yield


def _prepare(folder: Folder, origin: Origin) -> list[BatchRecord]:
    """Refuse what is in the way; the records of a finished folder, or none, with a note that extraction has begun."""
    begun, manifest = folder.read(BEGUN), folder.read(MANIFEST)
    if manifest is None and begun is None:
        strangers = [name for name in folder.names("") if name != LOCK and not name.endswith(PARTIAL)]
        if strangers:
            raise UsageError(f"{folder} is not empty and holds no features; give a new folder.")
        about = {"format": FORMAT, "pixart": _version(), "origin": asdict(origin)}
        folder.write(BEGUN, json.dumps(about, indent=1).encode())
        return []
    try:
        values = json.loads(manifest or begun or b"")
        before = Origin(**values["origin"])
        batches = values["batches"] if manifest else []
    except (ValueError, KeyError, TypeError):
        raise PixArtError(f"{folder}/{MANIFEST if manifest else BEGUN} is damaged; give a new folder.") from None
    refuse_other_origin(Path(folder.at), before, origin)
    return [BatchRecord(*entry) for entry in batches]


def _shards_there(folder: Folder, record: BatchRecord) -> bool:
    """Whether a batch that is done still has its files; in the cloud its record is believed."""
    if folder.local is None:
        return True
    for bucket, shard in record.shards.items():
        path = folder.local / bucket / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return False
    return True


def _same_data(folder: Folder, batch: Batch, record: BatchRecord, *, rewrite: bool) -> BatchRecord:
    """The record, if its batch is still what it was made from; touched files are read and compared by content."""
    glance = batch.glance()
    if record.glance in (glance, LEFT_OUT):
        return record
    if record.data != batch.content():
        first, last = (printable(pair.key) for pair in (batch.pairs[0], batch.pairs[-1]))
        raise _changed(folder, f"something among {first} to {last} is not what it was")
    record = BatchRecord(**{**vars(record), "glance": glance})
    if rewrite:
        write_record(folder, record)
    return record


def _changed(folder: Folder, what: str) -> PixArtError:
    return PixArtError(f"The data has changed since {folder} was made: {what}. Extract into another folder.")


def _refuse_missing_sources(settings: ExtractSettings, batch: Batch, dataset: Dataset) -> None:
    """Captions of the wanted sources are missing from the first pictures: say so now, not after hours."""
    if not settings.caption_sources or any(pair.captions for pair in batch.pairs):
        return
    found: dict[str, None] = {}
    for pair, _ in zip(dataset.pairs(), range(len(batch.pairs)), strict=False):
        found |= dict.fromkeys(caption.source for caption in getattr(pair, "captions", ()))
    there = ", ".join(found) or "none"
    wanted = " and ".join(settings.caption_sources)
    raise UsageError(f"None of the first {len(batch.pairs):,} pictures has a caption of {wanted}; they have: {there}.")


def _stop_early(account: Account, allowed: float, hint: int | None) -> None:
    """Stop once it is sure that too many are dropped, whatever is still to come. Batches that failed may yet do."""
    skipped = account.skipped - sum(record.rows for record in account.quarantined)
    if hint and account.pictures < hint and skipped > 1.1 * allowed * hint:  # the hint is not exact
        check_dropped(skipped, account.pictures, allowed=allowed, examples=account.examples)


def _refuse_failed(account: Account, leave_out: bool) -> None:
    if not account.quarantined or leave_out:
        return
    rows = sum(record.rows for record in account.quarantined)
    numbers = ", ".join(str(record.number) for record in account.quarantined[:5])
    raise PixArtError(
        f"{len(account.quarantined)} batches ({numbers}) with {rows:,} pictures failed every time, and are in "
        f"quarantine: {account.quarantined[0].failure} Run the same command again to try them again, or add "
        "--leave-out-failed."
    )


def _finish(
    job: Job, records: Iterable[BatchRecord], dataset: Dataset, classes: dict[str, int], sources: list[str]
) -> None:
    """Write the manifest; from then on the folder is whole, and what only a run needed goes."""
    import diffusers
    import torch
    import transformers

    settings, folder = job.settings, job.folder
    vae = json.loads((settings.vae / "config.json").read_text(encoding="utf-8"))
    text_dim = null_text = None
    if _reads(settings):
        null_text, text_dim = _null_text(folder)
    about = About(
        origin=job.origin,
        data=str(dataset.path),
        class_names=tuple(classes),
        caption_sources=tuple(sources),
        latent_channels=vae.get("latent_channels", 4),
        text_dim=text_dim,
        scaling_factor=vae.get("scaling_factor") or 1.0,
        shift_factor=vae.get("shift_factor") or 0.0,
        versions={
            "pixart": _version(), "torch": torch.__version__, "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    )  # fmt: skip
    write_manifest(folder, list(records), about, null_text)
    _clean(folder)


def _clean(folder: Folder) -> None:
    """Remove what only an unfinished folder needs, and what kills have left behind."""
    folder.remove(RECORDS)
    folder.remove(BEGUN)
    if folder.local is not None:
        for left_by_a_kill in folder.local.rglob(f".*{PARTIAL}"):
            left_by_a_kill.unlink(missing_ok=True)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pixart")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _null_text(folder: Folder) -> tuple[str, int]:
    """Content hash and width of the null text that a worker has written."""
    if folder.local is not None:
        tensors, _ = map_shard(folder.local / NULL_TEXT)
    else:
        from safetensors.torch import load

        tensors = load(folder.read(NULL_TEXT) or b"")
    return content_hash(tensors), tensors["states"].shape[1]
