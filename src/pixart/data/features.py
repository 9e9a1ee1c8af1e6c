"""The feature store: what training needs of images and captions, computed once and read through a memory map.

    <folder>/features.json                 the manifest; written last, so a folder without it is not finished
    <folder>/unconditional.safetensors     the text encoder's states of the empty prompt
    <folder>/<WxH>/00012.safetensors       the rows of batch 12 of the data set that fell into the bucket WxH

A shard holds, for N rows with V views, latents of (C, h, w) = (C, H/8, W/8) and text states of width T:

    mean, std               (N, V, C, h, w) fp16  moments of the autoencoder's posterior, not scaled
    crop                    (N, V, 2) int64       top, left of each view in the image resized to cover its bucket
    states                  (tokens, T) fp16      all captions of all rows, one after the other, without padding
    starts                  (captions + 1,) int64 caption c has the tokens starts[c] to starts[c + 1]
    first_caption           (N + 1,) int64        row n has the captions first_caption[n] to first_caption[n + 1]
    mask                    (N, V, h, w) uint8    where the loss counts, 0 to 255; only in a folder with masks
    label                   (N, K) int64          class of each of the K kinds, -1 where the data has none
    original_size           (N, 2) int64          height and width of the upright image
    weight                  (N,) fp64             how often a row is chosen, relative to the others
    key_bytes, key_starts   uint8, (N + 1,) int64 each row's key in the data set, UTF-8
    key_hash                (N,) int64            orders rows at random, the same at every base size

Views are crops, each followed by its mirror image where the folder has mirrored ones. Without a text encoder, the three
columns of captions are left out. The manifest says what everything was made from and lists each shard with the hash of
its content, so nothing foreign or damaged is read as features.
"""

import contextlib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixart.config import plain, structure
from pixart.data.storage import Folder
from pixart.errors import PixArtError, UsageError
from pixart.files import file_hash, parse_json, read_json_object

MANIFEST = "features.json"
UNCONDITIONAL = "unconditional.safetensors"
RECORDS = "progress"
FORMAT = "pixart-features-3"
HEADER = "pixart_features"  # the one entry of a shard's metadata: safetensors writes several in a random order
CODE = 2  # raise this when the numbers that extraction computes change: older folders are then refused
OPEN_SHARDS = 4096  # memory maps held at a time; Linux allows a process 65,530
PAD_TO = 16
SAMPLED = 1000  # numbers at each end of a tensor that identify it
IRRELEVANT = ("_name_or_path", "architectures", "dtype", "torch_dtype")  # of an encoder's config


@dataclass(frozen=True)
class Settings:
    """What changes the numbers in a feature folder, apart from data and encoders.

    `base_size` and `step` in pixels (step None: the official buckets where there are some), `square`: one bucket.
    `crop`: centre, random (by `seed` and the image's key) or clever; `crops` random ones make as many views, `flip`
    twice as many. `caption_sources`: which captions, in this order; empty: all. `labels`: metadata columns with
    classes; empty: the data set's own classes. `max_tokens` of a caption. `masks`: of mask files, else of the alpha
    channel. `rows`: images in a batch of the data set.

    The last three depend on the machine, are chosen when a folder is begun and reused when it is continued: the dtype
    in which the encoders compute, the pixels that pass the autoencoder at once, and the processor's threads.
    """

    base_size: int
    max_tokens: int
    step: int | None = None
    square: bool = False
    crop: Literal["centre", "random", "clever"] = "centre"
    crops: int = 1
    seed: int | None = None
    flip: bool = False
    caption_sources: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    masks: bool = False
    rows: int = 1024
    precision: Literal["float32", "bfloat16"] = "float32"
    encoded_pixels: int = 1 << 20
    threads: int = 1


@dataclass(frozen=True)
class Origin:
    """What features were made with. Encoders and tokenizer by `weights_id` and `files_hash`, None where not used."""

    settings: Settings
    vae: str
    text_encoder: str | None = None
    tokenizer: str | None = None
    code: int = CODE

    def differences(self, other: "Origin") -> list[str]:
        """In words, what differs between these features and those that `other` would give."""
        names = {"vae": "another autoencoder", "text_encoder": "another text encoder", "tokenizer": "another tokenizer"}
        found = [text for name, text in names.items() if getattr(self, name) != getattr(other, name)]
        if self.code != other.code:
            found.append(f"version {self.code} of the extraction instead of {other.code}")
        for each in fields(Settings):
            here, there = getattr(self.settings, each.name), getattr(other.settings, each.name)
            if here != there:
                found.append(f"{each.name.replace('_', ' ')} {_shown(here)} instead of {_shown(there)}")
        return found


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one file of a bucket; `content` is its `content_hash`."""

    file: str
    count: int
    bytes: int
    content: str


@dataclass(frozen=True)
class BatchRecord:
    """What became of one batch of the data set. `data` is the hash of its pairs and images, `stat` of sizes and times.

    `images` counts all of them, `skipped` has key and reason of those left out; `remarks` the same of captions that
    could not be used; `cut` counts captions longer than the encoder reads.
    """

    number: int
    images: int
    data: str
    stat: str
    shards: dict[str, Shard] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()
    cut: int = 0


@dataclass(frozen=True)
class Manifest:
    """`features.json`. `encoders` are the folders; `labels` kind -> class names; `unconditional` is a content hash."""

    origin: Origin
    data: str
    encoders: dict[str, str]
    latent_channels: int
    scaling_factor: float
    shift_factor: float
    batches: tuple[BatchRecord, ...]
    text_dim: int | None = None
    unconditional: str | None = None
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def skipped(self) -> dict[str, int]:
        """How many images of the data set were left out, by kind of reason."""
        return dict(Counter(reason.split(":")[0] for batch in self.batches for _, reason in batch.skipped))


@dataclass(frozen=True)
class FeatureRow:
    """One image's features: per view mean and std (C, h, w), crop (top, left) and, with masks, its mask (h, w); per
    caption its states (tokens, T); per kind a class index, -1 for none; original size (height, width).
    """

    key: str
    moments: tuple[tuple[Tensor, Tensor], ...]
    crops: tuple[tuple[int, int], ...] = ((0, 0),)
    masks: tuple[Tensor, ...] = ()
    captions: tuple[Tensor, ...] = ()
    labels: tuple[int, ...] = ()
    original_size: tuple[int, int] = (0, 0)
    weight: float = 1.0


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of one bucket, in the order asked for.

    `mean`, `std` (B, C, h, w) fp16, unscaled; `text` (B, L, T) fp16 and `text_mask` (B, L) bool, None without a text
    encoder; `label` (B, K) int64; `original_size` (B, 2) int64 height, width; `crop` (B, 2) int64; `keys`; `mask`
    (B, h, w) uint8, None in a folder without masks.
    """

    mean: Tensor
    std: Tensor
    text: Tensor | None
    text_mask: Tensor | None
    label: Tensor
    original_size: Tensor
    crop: Tensor
    keys: list[str]
    mask: Tensor | None = None


class Features:
    """A finished feature folder. Rows are numbered over all buckets, the same whoever wrote them.

    `bucket_names` "WxH" in pixels; `bucket` (N,) the bucket of each row. Safe to read after a fork and from several
    threads; a pickle holds only the path.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest, self.settings = folder, manifest, manifest.origin.settings
        shards = [(name, shard) for batch in manifest.batches for name, shard in batch.shards.items()]
        self._shards = shards = sorted(shards, key=lambda each: (each[0], each[1].file))
        self.bucket_names = sorted({name for name, _ in shards})
        counts = np.array([shard.count for _, shard in shards], dtype=np.int64)
        self._ends = np.cumsum(counts)
        numbers = np.array([self.bucket_names.index(name) for name, _ in shards], dtype=np.int64)
        self.bucket = np.repeat(numbers, counts)
        self.has_text = manifest.origin.text_encoder is not None
        self.views = self.settings.crops * (2 if self.settings.flip else 1)
        self.unconditional = _read_unconditional(folder, manifest) if self.has_text else None
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.bucket)

    def __reduce__(self):
        return open_features, (self.folder,)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Of all rows: `captions` (N,) their number, `weight` (N,), `label` (N, K), `key_hash` (N,)."""
        parts = [self._shard(number) for number in range(len(self._shards))]
        captions = [p["first_caption"].diff() if "first_caption" in p else torch.zeros(len(p["label"])) for p in parts]
        whole = {name: torch.cat([p[name] for p in parts]).numpy() for name in ("weight", "label", "key_hash")}
        return {"captions": torch.cat(captions).long().numpy(), **whole}

    def split(self, validation: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on: `validation` of them, a tenth at most, chosen by their keys, so
        that folders of one data set at several base sizes keep the same images apart.
        """
        order = np.argsort(self.columns["key_hash"], kind="stable")
        count = min(validation, len(self) // 10)
        return np.sort(order[count:]), np.sort(order[:count])

    def read(
        self,
        rows: np.ndarray,
        *,
        captions: np.ndarray | None = None,
        views: np.ndarray | None = None,
        pad_to: int | None = None,
    ) -> FeatureBatch:
        """Rows of one bucket. `captions`: which of each row's, -1 for the empty prompt; `views`: which view; 0 without.

        Text is padded to `pad_to` tokens, or to the longest of the batch, rounded up to a multiple of 16.
        """
        captions = np.zeros(len(rows), dtype=np.int64) if captions is None else captions
        views = np.zeros(len(rows), dtype=np.int64) if views is None else views
        numbers = np.searchsorted(self._ends, rows, side="right")
        parts = [self._shard(int(number)) for number in numbers]
        inside = [int(row - self._ends[number] + self._shards[number][1].count) for row, number in zip(rows, numbers)]  # noqa: B905
        places = list(zip(parts, inside, strict=True))
        text = mask = None
        if self.has_text:
            found = zip(places, captions, strict=True)
            text, mask = pad([self._states(part, row, int(caption)) for (part, row), caption in found], pad_to)
        of_view = [(part, row, int(view)) for (part, row), view in zip(places, views, strict=True)]
        return FeatureBatch(
            mean=torch.stack([part["mean"][row, view] for part, row, view in of_view]),
            std=torch.stack([part["std"][row, view] for part, row, view in of_view]),
            text=text,
            text_mask=mask,
            label=torch.stack([part["label"][row] for part, row in places]),
            original_size=torch.stack([part["original_size"][row] for part, row in places]),
            crop=torch.stack([part["crop"][row, view] for part, row, view in of_view]),
            keys=[_key(part, row) for part, row in places],
            mask=torch.stack([part["mask"][row, view] for part, row, view in of_view]) if self.settings.masks else None,
        )

    def dropped(self) -> tuple[int, list[str]]:
        """How many images of the data set are not in here, and up to three of them as "key: reason"."""
        skipped = [f"{key}: {reason}" for batch in self.manifest.batches for key, reason in batch.skipped]
        return len(skipped), skipped[:3]

    def check(self, *, vae: Path | None = None, text_encoder: Path | None = None) -> None:
        """Raises PixArtError where the features were made with other encoders than those in these folders."""
        origin = self.manifest.origin
        for name, folder in (("vae", vae), ("text_encoder", text_encoder)):
            if folder is not None and weights_id(folder) != getattr(origin, name):
                raise PixArtError(
                    f"{self.folder} was made with another {name.replace('_', ' ')} than {folder}. Give the one that it "
                    "was made with, or extract the features again."
                )

    def fingerprint(self) -> str:
        """Hash over the contents of all shards and what they were made with."""
        shards = [(name, shard.content) for name, shard in self._shards]
        return hashlib.sha256(json.dumps([shards, plain(self.manifest.origin)], sort_keys=True).encode()).hexdigest()

    def verify(self) -> None:
        """Read every shard and compare it with its hash. Raises PixArtError naming a damaged one."""
        for number, (bucket, shard) in enumerate(self._shards):
            if content_hash(self._shard(number)) != shard.content:
                path = self.folder / bucket / shard.file
                raise PixArtError(f"{path} is damaged: remove {self.folder} and extract again.")

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number in self._open:
            return self._open[number]
        bucket, shard = self._shards[number]
        tensors, header = map_shard(self.folder / bucket / shard.file)
        if header.get("content") != shard.content or len(tensors.get("label", ())) != shard.count:
            raise PixArtError(f"{self.folder / bucket / shard.file} is not the shard that {MANIFEST} names.")
        if len(self._open) >= OPEN_SHARDS:
            self._open.clear()
        self._open[number] = tensors
        return tensors

    def _states(self, part: dict[str, Tensor], row: int, caption: int) -> Tensor:
        if caption < 0:
            return self.unconditional
        first = int(part["first_caption"][row]) + caption
        start, end = part["starts"][first : first + 2].tolist()
        return part["states"][start:end]


def open_features(path: Path) -> Features:
    """Open a finished feature folder; only the manifest and the sizes of the shards are read.

    Raises:
        PixArtError: the folder is missing, unfinished, damaged, lacks shards or was made by another version.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        if (path / "extraction.json").is_file():
            raise PixArtError(f"{path} is not finished; run the same pixart data extract again.")
        raise PixArtError(
            f"{path} holds no features ({MANIFEST}); make some from a folder of images: pixart data extract IMAGES DEST"
        )
    table = read_json_object(path / MANIFEST)
    if table.get("format") != FORMAT:
        raise PixArtError(f"{path} has the format {table.get('format')!r}, not {FORMAT!r}; extract it again.")
    try:
        manifest = structure(table, Manifest, str(path / MANIFEST))
    except UsageError as error:
        raise PixArtError(f"{error} The manifest is damaged; extract the features again.") from None
    if manifest.origin.code != CODE:
        raise PixArtError(f"{path} was made by another version of the extraction; extract it again.")
    for batch in manifest.batches:
        for bucket, shard in batch.shards.items():
            if not re.fullmatch(r"\d+x\d+", bucket) or not re.fullmatch(r"\d+\.safetensors", shard.file):
                raise PixArtError(f"{path / MANIFEST} names {bucket}/{shard.file}, which is no shard.")
            file = path / bucket / shard.file
            if not file.is_file() or file.stat().st_size != shard.bytes:
                raise PixArtError(f"{file} is missing or truncated; extract the features again.")
    return Features(path, manifest)


def pad(states: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Text states (tokens, T) each -> (B, L, T) and their mask (B, L) bool, zeros behind, L a multiple of 16."""
    length = length or max(len(s) for s in states)
    length += -length % PAD_TO  # few distinct lengths: kernels and compiled graphs are reused
    text = torch.zeros(len(states), length, states[0].shape[1], dtype=states[0].dtype)
    mask = torch.zeros(len(states), length, dtype=torch.bool)
    for row, s in enumerate(states):
        text[row, : len(s)] = s[:length]
        mask[row, : len(s)] = True
    return text, mask


def write_batch(folder: Folder, record: BatchRecord, rows: Mapping[str, Sequence[FeatureRow]]) -> BatchRecord:
    """Write the shards of one batch, by bucket "WxH", and then its record, which makes them count."""
    shards = {}
    for bucket in sorted(rows):
        tensors = _tensors(rows[bucket])
        content, file = content_hash(tensors), f"{record.number:05d}.safetensors"
        header = {"format": FORMAT, "batch": record.number, "bucket": bucket, "content": content}
        metadata = {HEADER: json.dumps(header, sort_keys=True)}
        size = folder.write_with(f"{bucket}/{file}", lambda path, t=tensors, m=metadata: save_file(t, path, metadata=m))
        shards[bucket] = Shard(file, len(rows[bucket]), size, content)
    record = replace(record, shards=shards)
    folder.write(f"{RECORDS}/{record.number:05d}.json", json.dumps(plain(record), ensure_ascii=False).encode())
    return record


def read_records(folder: Folder) -> dict[int, BatchRecord]:
    """The records of the batches that are done, by number; a damaged one counts as not there."""
    records = {}
    for name in folder.names(RECORDS):
        if name.endswith(".json") and not name.startswith("."):
            with contextlib.suppress(PixArtError):
                value = parse_json(folder.read(f"{RECORDS}/{name}") or b"", name)
                record = structure(value, BatchRecord, name)
                records[record.number] = record
    return records


def write_unconditional(folder: Folder, states: Tensor) -> None:
    """Write the states of the empty prompt (tokens, T)."""
    folder.write_with(UNCONDITIONAL, lambda path: save_file({"states": states.half().contiguous()}, path))


def map_shard(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a shard, memory-mapped, and its header. Raises PixArtError for what is no shard."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise PixArtError(f"The feature shard {path} cannot be read: {error}. Extract the features again.") from None
    return tensors, header if isinstance(header, dict) else {}


def content_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, independent of the order in which the tensors were given."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous().numpy()
        digest.update(f"{name} {value.dtype} {value.shape};".encode())
        digest.update(value.data if value.size else b"")
    return digest.hexdigest()


def weights_id(folder: Path) -> str:
    """Identifies the weights of an encoder folder without reading gigabytes, the same in fp32 and in fp16.

    SHA-256 over its config and, of each tensor, name, shape and the first and last thousand numbers in half precision:
    two trainings differ everywhere.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PixArtError(f"{folder} {'holds no safetensors weights' if folder.is_dir() else 'is not there'}.")
    found: dict[str, bytes] = {}
    try:
        config = read_json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a dict
                    found[name] = _sample(file, name)
    except (OSError, SafetensorError) as error:
        raise PixArtError(f"{folder} cannot be read: {error}.") from None
    kept = {key: value for key, value in config.items() if key not in IRRELEVANT and "version" not in key}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(found):
        digest.update(name.encode() + found[name])
    return digest.hexdigest()


def _sample(file, name: str) -> bytes:
    part = file.get_slice(name)
    shape = part.get_shape()
    if not shape or not shape[0]:
        return str(shape).encode()
    rows = min(shape[0], max(1, SAMPLED // max(1, math.prod(shape[1:]))))
    ends = [part[:rows], part[shape[0] - rows :]]
    numbers = [
        end.flatten()[at].half().numpy() for end, at in zip(ends, (slice(SAMPLED), slice(-SAMPLED, None)), strict=True)
    ]
    return str(shape).encode() + b"".join(each.tobytes() for each in numbers)


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()


def _tensors(rows: Sequence[FeatureRow]) -> dict[str, Tensor]:
    keys = [row.key.encode("utf-8", "surrogatepass") for row in rows]
    hashes = [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big", signed=True) for key in keys]
    tensors = {
        "mean": torch.stack([torch.stack([mean for mean, _ in row.moments]) for row in rows]).half(),
        "std": torch.stack([torch.stack([std for _, std in row.moments]) for row in rows]).half(),
        "crop": torch.tensor([row.crops for row in rows]),
        "label": torch.tensor([row.labels for row in rows], dtype=torch.int64).reshape(len(rows), -1),
        "original_size": torch.tensor([row.original_size for row in rows]),
        "weight": torch.tensor([row.weight for row in rows], dtype=torch.float64),
        "key_bytes": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8),
        "key_starts": _starts([len(key) for key in keys]),
        "key_hash": torch.tensor(hashes),
    }
    if rows[0].masks:
        tensors["mask"] = torch.stack([torch.stack(row.masks) for row in rows])
    captions = [caption for row in rows for caption in row.captions]
    if captions:
        tensors["states"] = torch.cat(captions).half()
        tensors["starts"] = _starts([len(states) for states in captions])
        tensors["first_caption"] = _starts([len(row.captions) for row in rows])
    return {name: value.contiguous() for name, value in tensors.items()}


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _read_unconditional(folder: Path, manifest: Manifest) -> Tensor:
    tensors, _ = map_shard(folder / UNCONDITIONAL)
    if content_hash(tensors) != manifest.unconditional:
        raise PixArtError(f"{folder / UNCONDITIONAL} is not the one that {MANIFEST} names; extract the features again.")
    return tensors["states"]


def _key(part: dict[str, Tensor], row: int) -> str:
    start, end = part["key_starts"][row : row + 2].tolist()
    return bytes(part["key_bytes"][start:end].numpy()).decode("utf-8", "surrogatepass")


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "all"
    return "none" if value is None else str(value)
