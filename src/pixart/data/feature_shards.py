"""The feature folder: what training needs of pictures and captions, computed once, read through a memory map.

    <folder>/features.json                 the manifest; written last, so a folder without it is not finished
    <folder>/null_text.safetensors         the encoded empty prompt
    <folder>/<WxH>/00012.safetensors       the rows of batch 12 of the data that fell into the bucket WxH

A shard holds, for N rows with latents of (C, h, w) = (C, H/8, W/8) and text states of width T:

    mean, std                   (N, C, h, w) fp16     moments of the autoencoder's posterior, not yet scaled
    mean_flipped, std_flipped   (N, C, h, w) fp16     those of the mirrored picture, where they were asked for
    states                      (tokens, T) fp16      all captions of all rows, one after the other, without padding
    starts                      (captions + 1,) int64 caption c has the tokens starts[c] to starts[c + 1]
    first_caption               (N + 1,) int64        row n has the captions first_caption[n] to first_caption[n + 1]
    caption_source              (captions,) int64     index into the manifest's caption_sources
    label                       (N,) int64            class index, -1 where the data has no classes
    original_size, crop         (N, 2) int64          height and width in the file, upright; top and left of the crop
    repeats                     (N,) int64            how often a row is to be drawn, where kohya's folder names say so
    key_bytes, key_starts       uint8, (N + 1,) int64 each row's key in the data, UTF-8

Without a text encoder, the four tensors of captions are left out. The header of a shard says what it was made from;
the manifest says the same of the folder, and lists every shard with its content hash, so nothing foreign is read.
"""

import hashlib
import itertools
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixart.errors import PixArtError, UsageError

MANIFEST = "features.json"
NULL_TEXT = "null_text.safetensors"
FORMAT = "pixart-features-1"
HEADER = "pixart_features"  # the one entry of a shard's metadata: JSON
CODE = 1  # raise this when the numbers that extraction computes change: older folders are then refused
OPEN_SHARDS = 4096  # memory maps held at a time; Linux allows a process 65,530
PAD_TO = 16


@dataclass(frozen=True)
class Origin:
    """What features were made with, apart from the data. Files by SHA-256; None where a part was not used.

    `settings` is what else changes the numbers: base size, step, crop, flips, caption sources, rows in a batch.
    """

    vae: str | None
    text_encoder: str | None
    tokenizer: str | None
    settings: dict
    code: int = CODE

    def differences(self, other: "Origin") -> list[str]:
        """In words, what differs between these features and those that `other` would give."""
        names = {"vae": "another VAE", "text_encoder": "another text encoder", "tokenizer": "another tokenizer"}
        said = [text for name, text in names.items() if getattr(self, name) != getattr(other, name)]
        if self.code != other.code:
            said.append(f"version {self.code} of the extraction, and this is version {other.code}")
        for name in sorted(self.settings.keys() | other.settings.keys()):
            here, there = self.settings.get(name), other.settings.get(name)
            if here != there:
                said.append(f"{name.replace('_', ' ')} {_shown(here)} instead of {_shown(there)}")
        return said


@dataclass(frozen=True)
class Table:
    """The small columns of one bucket, of all its N rows in order.

    `caption_counts` (N,) int64 (all 0 without a text encoder); `label` (N,) int64; `original_size` and `crop` (N, 2);
    `repeats` (N,) int64: how often a row is to be drawn compared with others, 1 unless the data says otherwise.
    """

    caption_counts: Tensor
    label: Tensor
    repeats: Tensor
    original_size: Tensor
    crop: Tensor


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of one bucket, in the order asked for.

    `mean`, `std` (B, C, h, w) fp16, unscaled; `text` (B, L, T) fp16 and `text_mask` (B, L) bool, L a multiple of 16,
    None without a text encoder; `label` (B,) int64, -1 for none; `original_size` (B, 2) int64 height, width; `crop`
    (B, 2) int64 top, left in the resized picture; `keys`.
    """

    mean: Tensor
    std: Tensor
    text: Tensor | None
    text_mask: Tensor | None
    label: Tensor
    original_size: Tensor
    crop: Tensor
    keys: list[str]


class Features:
    """A finished feature folder. Rows of a bucket have a fixed order, however many processes wrote them.

    `buckets`: "WxH" in pixels -> number of rows, most rows first. `null_text` (tokens, T) fp16: the encoded empty
    prompt, or None. `class_names`: what labels index. `caption_sources`: what caption sources index.
    `scaling_factor`, `shift_factor`: the autoencoder's; a latent is (sample of mean, std - shift) * scaling.
    Reading is safe from several threads and after a fork; pickling sends the path.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest = folder, manifest
        self.origin = Origin(**manifest["origin"])
        self.buckets: dict[str, int] = {
            name: sum(shard["count"] for shard in shards)
            for name, shards in sorted(
                manifest["buckets"].items(), key=lambda item: (-sum(s["count"] for s in item[1]), item[0])
            )
        }
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.caption_sources: tuple[str, ...] = tuple(manifest["caption_sources"])
        self.latent_channels: int = manifest["latent_channels"]
        self.scaling_factor: float = manifest["scaling_factor"]
        self.shift_factor: float = manifest["shift_factor"]
        self.has_flips: bool = bool(self.origin.settings.get("flip"))
        self.has_text = self.origin.text_encoder is not None
        self.text_dim: int | None = manifest["text_dim"]
        self.null_text = _null_text(folder, manifest) if self.has_text else None
        self._ends = {name: np.cumsum([s["count"] for s in shards]) for name, shards in manifest["buckets"].items()}
        self._open: OrderedDict[tuple[str, int], dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.buckets.values())

    def dropped(self) -> tuple[int, list[str]]:
        """How many pictures of the data are not in here, and up to three of them as "name: reason"."""
        count, path = sum(self.manifest.get("skipped", {}).values()), self.folder / "skipped.jsonl"
        if not count or not path.is_file():
            return count, []
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in itertools.islice(file, 3)]
        return count, [f"{row['key']}: {row['reason']}" for row in rows]

    def __reduce__(self):
        return open_features, (self.folder,)

    def read(
        self, bucket: str, rows: Sequence[int] | np.ndarray, *, captions: Sequence[int] | np.ndarray | None = None,
        flipped: Sequence[bool] | np.ndarray | None = None,
    ) -> FeatureBatch:  # fmt: skip
        """Rows of a bucket, by number. `captions`: which caption of each row (0 without it), -1 for the null text.

        `flipped`: which rows to take mirrored (none without it). The crop corner is that of the picture as it was.
        Raises UsageError for an unknown bucket, row, caption, or flips that the folder does not have.
        """
        ends = self._bucket_ends(bucket)
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= ends[-1]:
            raise UsageError(f"Rows {rows.tolist()[:3]} are not all in the {ends[-1]} rows of bucket {bucket}.")
        flipped = np.zeros(len(rows), dtype=bool) if flipped is None else np.asarray(flipped, dtype=bool)
        if flipped.any() and not self.has_flips:
            raise UsageError(f"{self.folder} holds no mirrored latents; extract it with --flip.")
        captions = np.zeros(len(rows), dtype=np.int64) if captions is None else np.asarray(captions, dtype=np.int64)

        numbers = np.searchsorted(ends, rows, side="right")
        parts = [self._shard(bucket, int(number)) for number in numbers]
        starts = np.concatenate([[0], ends])[numbers]
        inside = [int(row - start) for row, start in zip(rows, starts, strict=True)]
        names = ["_flipped" if flip else "" for flip in flipped]
        text = text_mask = None
        if self.has_text:
            states = [
                self._states(part, row, int(caption))
                for part, row, caption in zip(parts, inside, captions, strict=True)
            ]
            text, text_mask = pad(states)

        def column(name: str) -> Tensor:
            return torch.stack([part[name][row] for part, row in zip(parts, inside, strict=True)])

        return FeatureBatch(
            mean=torch.stack([part["mean" + name][row] for part, row, name in zip(parts, inside, names, strict=True)]),
            std=torch.stack([part["std" + name][row] for part, row, name in zip(parts, inside, names, strict=True)]),
            text=text,
            text_mask=text_mask,
            label=column("label"),
            original_size=column("original_size"),
            crop=column("crop"),
            keys=[_key(part, row) for part, row in zip(parts, inside, strict=True)],
        )

    def table(self, bucket: str) -> Table:
        """The small columns of all rows of a bucket, for those who choose rows by them."""
        parts = [self._shard(bucket, number) for number in range(len(self._bucket_ends(bucket)))]
        counts = [
            part["first_caption"].diff() if "first_caption" in part else torch.zeros(len(part["label"])).long()
            for part in parts
        ]
        columns = {
            name: torch.cat([part[name] for part in parts]) for name in ("label", "repeats", "original_size", "crop")
        }
        return Table(caption_counts=torch.cat(counts), **columns)

    def sources_of(self, bucket: str, row: int) -> list[str]:
        """The source of each caption of a row, in their order."""
        number = int(np.searchsorted(self._bucket_ends(bucket), row, side="right"))
        part = self._shard(bucket, number)
        row -= int(self._ends[bucket][number]) - len(part["label"])
        first, last = part["first_caption"][row : row + 2].tolist()
        return [self.caption_sources[i] for i in part["caption_source"][first:last].tolist()]

    def check(
        self, *, vae: str | None = None, text_encoder: str | None = None, tokenizer: str | None = None,
        base_size: int | None = None,
    ) -> None:  # fmt: skip
        """Raises PixArtError, with what differs, where the features were made with other encoders or another size.

        Encoders are given by hash (`weights_hash`, `files_hash`); what is None is not compared.
        """
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        wanted = asdict(self.origin) | {name: value for name, value in given.items() if value is not None}
        if base_size is not None:
            wanted["settings"] = self.origin.settings | {"base_size": base_size}
        refuse_other_origin(self.folder, self.origin, Origin(**wanted))

    def verify(self) -> None:
        """Read every shard whole and compare it with its content hash. Raises PixArtError naming a damaged one."""
        for bucket, shards in self.manifest["buckets"].items():
            for number, entry in enumerate(shards):
                tensors = self._shard(bucket, number)
                if content_hash(tensors) != entry["content"]:
                    path = self.folder / bucket / entry["file"]
                    raise PixArtError(f"{path} is damaged: its content hash is another; remove it and extract again.")

    def _bucket_ends(self, bucket: str) -> np.ndarray:
        if bucket not in self._ends:
            raise UsageError(f"{self.folder} has no bucket {bucket}; it has {', '.join(self.buckets)}.")
        return self._ends[bucket]

    def _shard(self, bucket: str, number: int) -> dict[str, Tensor]:
        known = self._open.get((bucket, number))
        if known is not None:
            return known
        entry = self.manifest["buckets"][bucket][number]
        tensors, header = map_shard(self.folder / bucket / entry["file"])
        if header.get("content") != entry["content"] or header.get("bucket") != bucket:
            path = self.folder / bucket / entry["file"]
            raise PixArtError(f"{path} is not the shard that {MANIFEST} names; it was made by another run.")
        self._open[bucket, number] = tensors
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return tensors

    def _states(self, part: dict[str, Tensor], row: int, caption: int) -> Tensor:
        if caption == -1:
            return self.null_text
        first, last = part["first_caption"][row : row + 2].tolist()
        if not 0 <= caption < last - first:
            raise UsageError(f"{_key(part, row)} has {last - first} captions; there is no caption {caption}.")
        start, end = part["starts"][first + caption : first + caption + 2].tolist()
        return part["states"][start:end]


def open_features(path: Path) -> Features:
    """Open a finished feature folder; nothing but the manifest and the list of files is read.

    Raises PixArtError where the folder is missing, unfinished, damaged, lacks shards or was made by other code.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (FileNotFoundError, NotADirectoryError):
        what = "is not finished; run the same pixart data extract again" if is_unfinished(path) else "has no features"
        raise PixArtError(f"{path} {what}: it holds no {MANIFEST}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PixArtError(f"{path / MANIFEST} cannot be read: {error}.") from None
    if version != FORMAT:
        raise PixArtError(f"{path} has the format {version!r}, and this pixart reads {FORMAT!r}; extract it again.")
    try:
        features = Features(path, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise PixArtError(f"{path / MANIFEST} is damaged: {error!r}; extract the features again.") from None
    if features.origin.code != CODE:
        raise PixArtError(
            f"{path} was made with version {features.origin.code} of the extraction, and this is version {CODE}; "
            "extract it again."
        )
    _refuse_missing(path, manifest)
    return features


def is_unfinished(path: Path) -> bool:
    """Whether an extraction began here and has not ended."""
    return (Path(path) / "extraction.json").is_file()


def refuse_other_origin(folder: Path, here: Origin, wanted: Origin) -> None:
    """Raises PixArtError with what differs, where `folder`'s features are not those that are wanted."""
    differences = here.differences(wanted)
    if differences:
        raise PixArtError(
            f"{folder} does not fit: it was made with {'; '.join(differences)}. Extract into another folder."
        )


def pad(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Text states (tokens, T) each -> (B, L, T) and their mask (B, L) bool, zeros behind, L a multiple of 16."""
    length = max(len(s) for s in states)
    length += -length % PAD_TO  # few distinct lengths: the kernels and a compiled graph are reused
    text = torch.zeros(len(states), length, states[0].shape[1], dtype=states[0].dtype)
    mask = torch.zeros(len(states), length, dtype=torch.bool)
    for row, s in enumerate(states):
        text[row, : len(s)] = s
        mask[row, : len(s)] = True
    return text, mask


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


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of an encoder and its config, which says how to read them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PixArtError(f"{folder} {'holds no safetensors weights' if folder.is_dir() else 'is not there'}.")
    return files_hash([*files, *folder.glob("config.json")])


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise PixArtError(f"{path} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def _null_text(folder: Path, manifest: dict) -> Tensor:
    tensors, _ = map_shard(folder / NULL_TEXT)
    if content_hash(tensors) != manifest["null_text"]:
        raise PixArtError(f"{folder / NULL_TEXT} is not the null text that {MANIFEST} names; extract again.")
    return tensors["states"]


def _refuse_missing(path: Path, manifest: dict) -> None:
    for bucket, shards in manifest["buckets"].items():
        try:
            with os.scandir(path / bucket) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
        except OSError:
            sizes = {}
        for shard in shards:
            if sizes.get(shard["file"]) != shard["bytes"]:
                what = "is missing" if shard["file"] not in sizes else "has another length than when it was written"
                raise PixArtError(f"{path / bucket / shard['file']} {what}; extract the features again.")


def _key(part: dict[str, Tensor], row: int) -> str:
    start, end = part["key_starts"][row : row + 2].tolist()
    return bytes(part["key_bytes"][start:end].numpy()).decode()


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "all"
    return "none" if value is None else str(value)
