"""Writes feature shards and the manifest; `feature_shards` has the layout and reads them.

A batch of the data is written as one shard in each bucket that it touches, and then its record. Only the record makes
the shards count: what a killed process left behind is written again, over itself.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from safetensors.torch import save_file
from torch import Tensor

from pixart.data.feature_shards import FORMAT, HEADER, MANIFEST, NULL_TEXT, Origin, content_hash
from pixart.data.storage import Folder

RECORDS = "progress"
SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class FeatureRow:
    """One picture's features. `moments`: mean, std and, with flips, those of the mirrored picture: (C, h, w) each.

    `captions`: of each caption, the index of its source and its states (tokens, T). `label` is -1 for none. Sizes are
    (height, width), `crop` is (top, left).
    """

    key: str
    moments: tuple[Tensor, ...]
    captions: tuple[tuple[int, Tensor], ...] = ()
    label: int = -1
    original_size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    repeats: int = 1


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one file of a bucket."""

    file: str
    count: int
    bytes: int
    content: str


@dataclass(frozen=True)
class BatchRecord:
    """What became of one batch of the data. `data` is the digest of its rows, `glance` of their sizes and times.

    `rows` counts the pictures, also those that no pair could be made of. `skipped`: of each one left out, its key and
    why; `remarks`: the same of captions that could not be used, which cost no picture. `cut` counts captions that were
    too long. `failure` is why the whole batch is in quarantine.
    """

    number: int
    rows: int
    data: str
    glance: str
    shards: dict[str, Shard] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class About:
    """What the manifest says besides the shards."""

    origin: Origin
    data: str
    class_names: Sequence[str] = ()
    caption_sources: Sequence[str] = ()
    latent_channels: int = 4
    text_dim: int | None = None
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)


def write_batch(
    folder: Folder, record: BatchRecord, rows: Mapping[str, Sequence[FeatureRow]], origin: Origin
) -> BatchRecord:
    """Write the shards of one batch, by bucket "WxH", and its record, which comes back with them."""
    shards = {}
    for bucket in sorted(rows):
        tensors = _tensors(rows[bucket])
        content = content_hash(tensors)
        header = {
            "format": FORMAT, "origin": asdict(origin), "data": record.data, "batch": record.number, "bucket": bucket,
            "count": len(rows[bucket]), "content": content,
        }  # fmt: skip
        # One entry only: safetensors writes several in an order that is another one each time.
        metadata = {HEADER: json.dumps(header, sort_keys=True)}
        file = f"{record.number:05d}.safetensors"
        size = folder.write_with(f"{bucket}/{file}", lambda path, t=tensors, m=metadata: save_file(t, path, metadata=m))
        shards[bucket] = Shard(file, len(rows[bucket]), size, content)
    record = BatchRecord(**{**vars(record), "shards": shards})
    write_record(folder, record)
    return record


def write_record(folder: Folder, record: BatchRecord) -> None:
    folder.write(f"{RECORDS}/{record.number:05d}.json", json.dumps(asdict(record), ensure_ascii=False).encode())


def read_records(folder: Folder) -> dict[int, BatchRecord]:
    """The records of the batches that are done, by number; a damaged one counts as not there."""
    records = {}
    for name in folder.names(RECORDS):
        if not name.endswith(".json"):
            continue
        try:
            values = json.loads(folder.read(f"{RECORDS}/{name}") or b"")
            values["shards"] = {bucket: Shard(**shard) for bucket, shard in values["shards"].items()}
            for name in ("skipped", "remarks"):
                values[name] = [(key, reason) for key, reason in values[name]]
            records[values["number"]] = BatchRecord(**values)
        except (ValueError, KeyError, TypeError):
            continue
    return records


def write_null_text(folder: Folder, states: Tensor) -> str:
    """Write the encoded empty prompt (tokens, T); returns its content hash, which the manifest holds."""
    tensors = {"states": states.half().contiguous()}
    folder.write_with(NULL_TEXT, lambda path: save_file(tensors, path))
    return content_hash(tensors)


def write_manifest(folder: Folder, records: Sequence[BatchRecord], about: About, null_text: str | None) -> dict:
    """Write the list of skipped rows and then the manifest, which makes the folder whole; returns the manifest."""
    records = sorted(records, key=lambda record: record.number)
    buckets: dict[str, list[dict]] = {}
    for record in records:
        for bucket, shard in record.shards.items():
            buckets.setdefault(bucket, []).append(asdict(shard))
    skipped = [{"key": key, "reason": reason} for record in records for key, reason in record.skipped]
    remarks = [{"key": key, "caption": reason} for record in records for key, reason in record.remarks]
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in skipped + remarks]
    folder.write(SKIPPED, "".join(lines).encode())
    digest = json.dumps([sorted(buckets.items()), null_text, asdict(about.origin)], sort_keys=True)
    manifest = {
        "format": FORMAT,
        **asdict(about),
        "rows": sum(shard["count"] for shards in buckets.values() for shard in shards),
        "skipped": dict(Counter(line["reason"].split(":")[0] for line in skipped).most_common()),
        "cut_captions": sum(record.cut for record in records),
        "null_text": null_text,
        "content": content_hash({"manifest": torch.frombuffer(bytearray(digest.encode()), dtype=torch.uint8)}),
        "batches": [[record.number, record.rows, record.data, record.glance] for record in records],
        "buckets": dict(sorted(buckets.items())),
    }
    folder.write(MANIFEST, (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
    return manifest


def _tensors(rows: Sequence[FeatureRow]) -> dict[str, Tensor]:
    names = ("mean", "std", "mean_flipped", "std_flipped")[: len(rows[0].moments)]
    tensors = {name: torch.stack([row.moments[i] for row in rows]).half() for i, name in enumerate(names)}
    tensors["label"] = torch.tensor([row.label for row in rows])
    tensors["original_size"] = torch.tensor([row.original_size for row in rows])
    tensors["crop"] = torch.tensor([row.crop for row in rows])
    tensors["repeats"] = torch.tensor([row.repeats for row in rows])
    keys = [row.key.encode() for row in rows]
    tensors["key_bytes"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)
    tensors["key_starts"] = _starts([len(key) for key in keys])
    captions = [caption for row in rows for caption in row.captions]
    if captions:
        tensors["states"] = torch.cat([states for _, states in captions]).half()
        tensors["starts"] = _starts([len(states) for _, states in captions])
        tensors["first_caption"] = _starts([len(row.captions) for row in rows])
        tensors["caption_source"] = torch.tensor([source for source, _ in captions])
    return {name: value.contiguous() for name, value in tensors.items()}


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
