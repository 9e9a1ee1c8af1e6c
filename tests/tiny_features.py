"""A tiny feature folder, written as `pixart data extract` does, for the encoders of the tiny model folder."""

from pathlib import Path

import torch
from pixart.data.feature_shards import Features, Origin, files_hash, open_features, weights_hash
from pixart.data.feature_writer import About, BatchRecord, FeatureRow, write_batch, write_manifest, write_null_text

from pixart.data.storage import Folder

SOURCES = ("text", "llava")


def write_features(
    folder: Path, model: Path, size: int, buckets: dict[str, int], *, classes: bool = False, **about
) -> Features:
    """`buckets`: "WxH" -> number of pictures, of base size `size`. With `classes`, three classes and no captions.

    Every picture's latent mean is its number over 100, its deviation 0.1, so that a batch tells who is in it.
    """
    torch.manual_seed(size)
    tokenizer = files_hash(sorted(path for path in (model / "tokenizer").glob("*") if path.is_file()))
    origin = Origin(
        vae=weights_hash(model / "vae"),
        text_encoder=None if classes else weights_hash(model / "text_encoder"),
        tokenizer=None if classes else tokenizer,
        settings={"base_size": size, "flip": False},
    )
    rows, number = {}, 0
    for bucket, count in buckets.items():
        width, height = (int(side) for side in bucket.split("x"))
        for _ in range(count):
            shape = (8, height // 8, width // 8)
            captions = tuple((c, torch.randn(4 + number % 5 + c, 32)) for c in range(1 + number % 2))
            row = FeatureRow(
                key=f"{number}.png", moments=(torch.full(shape, number / 100), torch.full(shape, 0.1)),
                captions=() if classes else captions, label=number % 3 if classes else -1,
                original_size=(2 * height + number, 2 * width),
            )  # fmt: skip
            rows.setdefault(bucket, []).append(row)
            number += 1
    place = Folder(str(folder))
    record = write_batch(place, BatchRecord(0, number, data="d", glance="g"), rows, origin)
    text = {} if classes else {"caption_sources": SOURCES, "text_dim": 32}
    names = ("cat", "dog", "owl") if classes else ()
    settings = {"latent_channels": 8, "class_names": names, **text, **about}
    null = None if classes else write_null_text(place, torch.zeros(2, 32))
    write_manifest(place, [record], About(origin, "data", **settings), null)
    return open_features(folder)
