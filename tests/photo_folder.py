"""A small folder of photos as people have it: many shapes, captions of several lengths, some broken pictures."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ((64, 64), (96, 64), (64, 100), (50, 80), (120, 60))  # width, height
WORDS = ("a", "red", "green", "apple", "fox", "house", "flat", "black", "and", "white")


def write_photos(folder: Path, count: int, *, broken: tuple[int, ...] = (), seed: int = 0) -> Path:
    """`count` pictures with metadata.jsonl; those of the numbers `broken` end in their middle. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        width, height = SHAPES[i % len(SHAPES)]
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        name = f"{i:04d}.png"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / name)
        if i in broken:
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(data[: len(data) // 2])
        caption = " ".join(rng.choice(WORDS, size=1 + i % 9))
        lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
