"""Feature shards: what training needs of pictures and captions, computed once and kept as safetensors.

Three kinds, a file each in the cache folder: pixels (for the autoencoder), VAE moments, and unpadded text states. The
header of a shard says what it was made from (metadata, picture files, encoder, tokenizer, size; files by SHA-256); a
shard made from anything else is made again, so a stale cache is never used.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixart.data.encode import encode_captions
from pixart.data.imagefolder import Record, read_split
from pixart.encoders import autoencoder
from pixart.encoders.text import TextEncoder
from pixart.errors import PixArtError

Report = Callable[[str], None]


@dataclass(frozen=True)
class TextStates:
    """Token states of every caption of a split, one after the other.

    Caption c has tokens `starts[c]` to `starts[c + 1]` of `states` (tokens, T) fp16; picture n has captions
    `first_caption[n]` to `first_caption[n + 1]`; `null` (tokens, T) is the encoded empty prompt.
    """

    states: Tensor
    starts: Tensor
    first_caption: Tensor
    null: Tensor


def pixels(data: Path, split: str, size: int, cache: Path, report: Report = print) -> Tensor:
    """Pictures of a split as uint8 (N, 3, size, size), in the order of its metadata."""
    records = read_split(data / split)
    origin = {"kind": "pixels", "data": _pictures_hash(data, split, records), "size": size}

    def make() -> dict[str, Tensor]:
        report(f"reading {len(records):,} pictures of {split} at {size} px")
        out = torch.empty(len(records), 3, size, size, dtype=torch.uint8)

        def read(i: int) -> None:
            out[i] = _read_picture(records[i], size)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(len(records))))
        return {"pixels": out}

    return _shard(cache / f"{split}-pixels-{size}.safetensors", origin, make)["pixels"]


def latents(
    data: Path, split: str, size: int, vae_folder: Path, cache: Path, report: Report = print
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of a split: fp16 (N, C, size/8, size/8) each."""
    made_from = _pictures_hash(data, split, read_split(data / split))
    origin = {"kind": "latents", "data": made_from, "size": size, "vae": _weights_hash(vae_folder)}

    def make() -> dict[str, Tensor]:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(vae_folder, local_files_only=True, low_cpu_mem_usage=False).eval()
        vae.to(memory_format=torch.channels_last)  # 2.6 times as fast on a CPU at 256 px
        pictures = pixels(data, split, size, cache, report)
        report(f"encoding {len(pictures):,} pictures of {split} at {size} px")
        means, stds = [], []
        batch_size = max(1, 64 * 64 * 64 // size**2)
        with torch.autocast("cpu", torch.bfloat16):
            for part in pictures.split(batch_size):
                mean, std = autoencoder.moments(vae, to_unit(part).contiguous(memory_format=torch.channels_last))
                means.append(mean.half().contiguous())
                stds.append(std.half().contiguous())
        return {"mean": torch.cat(means), "std": torch.cat(stds)}

    shard = _shard(cache / f"{split}-latents-{size}.safetensors", origin, make)
    return shard["mean"], shard["std"]


def text_states(
    data: Path, split: str, text_encoder: Path, tokenizer: Path, cache: Path, report: Report = print
) -> TextStates:
    """Token states of all captions of a split, and of the empty prompt."""
    records = read_split(data / split)
    origin = {
        "kind": "text",
        "data": _data_hash(data, split),
        "encoder": _weights_hash(text_encoder),
        "tokenizer": _files_hash(sorted(path for path in tokenizer.glob("*") if path.is_file())),
    }

    def make() -> dict[str, Tensor]:
        captions = [caption for record in records for caption in record.captions]
        report(f"encoding {len(captions):,} captions of {split}")
        encoder = TextEncoder(text_encoder, tokenizer, "BertModel")
        encoded, _ = encode_captions(encoder, [*captions, ""])
        starts = torch.tensor([0, *np.cumsum([len(states) for states in encoded[:-1]])])
        first_caption = torch.tensor([0, *np.cumsum([len(record.captions) for record in records])])
        states = torch.cat(encoded[:-1])
        return {"states": states, "starts": starts, "first_caption": first_caption, "null": encoded[-1]}

    return TextStates(**_shard(cache / f"{split}-text.safetensors", origin, make))


def joined(texts: list[TextStates]) -> TextStates:
    """The captions of several splits, one split after the other."""
    if len(texts) == 1:
        return texts[0]
    tokens = np.cumsum([0, *(len(text.states) for text in texts)])
    captions = np.cumsum([0, *(len(text.starts) - 1 for text in texts)])
    zero = texts[0].starts[:1]
    return TextStates(
        torch.cat([text.states for text in texts]),
        torch.cat([zero, *(text.starts[1:] + int(n) for text, n in zip(texts, tokens, strict=False))]),
        torch.cat([zero, *(text.first_caption[1:] + int(n) for text, n in zip(texts, captions, strict=False))]),
        texts[0].null,
    )


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 pixels -> fp32 in [-1, 1], the range of the VAE."""
    return pictures.float() / 127.5 - 1.0


def _read_picture(record: Record, size: int) -> Tensor:
    try:
        with Image.open(record.path) as image:
            image = image.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except OSError as error:
        raise PixArtError(f"The picture {record.path} cannot be read: {error}") from None


def _data_hash(data: Path, split: str) -> str:
    file = data / split / "metadata.jsonl"
    if not file.is_file():
        raise PixArtError(f"{data} has no {split}/metadata.jsonl. Make the data first: pixart data emoji {data}")
    return _files_hash([file])


def _pictures_hash(data: Path, split: str, records: list[Record]) -> str:
    """Of the metadata and of every picture: a data set built again may have the same words and other pictures."""
    return _files_hash([data / split / "metadata.jsonl", *(record.path for record in records)])


def _weights_hash(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PixArtError(f"{folder} {'holds no safetensors weights' if folder.is_dir() else 'is not there'}.")
    return _files_hash(files)


def _files_hash(files: list[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise PixArtError(f"{file} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def _shard(path: Path, origin: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Open the shard at `path` if it was made from `origin`; otherwise make it and write it whole."""
    wanted = json.dumps(origin, sort_keys=True)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("origin") == wanted:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError):
        pass  # absent or damaged: made again below
    tensors = make()
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"origin": wanted})
        partial.rename(path)
    except (OSError, SafetensorError) as error:  # the second is what safetensors makes of a full disk
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise PixArtError(f"Could not write the feature shard {path}: {error}.") from None
    return tensors
