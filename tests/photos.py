"""Forty images as people have them: photo-like, of many shapes, with captions and classes and nothing else."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ((80, 64), (96, 64), (64, 100), (64, 64), (90, 70))  # width, height
WORDS = ("a", "red", "green", "apple", "fox", "house", "flat", "black", "and", "white")
CLASSES = ("animal", "building", "fruit")


def write_photos(folder: Path, count: int = 40, *, broken: tuple[int, ...] = (), **extra) -> Path:
    """`count` images with metadata.jsonl; `extra` gives further columns as functions of an image's number.

    Of the numbers in `broken` only the first half of the file is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        image = coarse.resize(SHAPES[i % len(SHAPES)], Image.Resampling.BICUBIC)
        name = f"{i:04d}.jpg"
        image.save(folder / name, quality=90)
        if i in broken:
            os.truncate(folder / name, (folder / name).stat().st_size // 2)
        row = {"file_name": name, "text": " ".join(rng.choice(WORDS, size=1 + i % 9)), "label": CLASSES[i % 3]}
        lines.append(json.dumps(row | {key: value(i) for key, value in extra.items()}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
