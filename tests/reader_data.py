"""What the readers' tests read: small images, each of a colour of its own, so that a swap of captions shows."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from pixart.data.dataset import Dataset, open_dataset
from pixart.data.pairs import Pair, Problem, read_bytes
from pixart.images import open_image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "white": (255, 255, 255)}


def image(colour: str = "red", size: tuple[int, int] = (4, 4), format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, format)
    return file.getvalue()


def colour_of(pair: Pair) -> str:
    """Open the pair's image and say which colour it has."""
    pixel = open_image(read_bytes(pair.image)).image.getpixel((0, 0))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Write files, by their paths in `folder`; texts as UTF-8."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return folder


def jsonl(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def tar(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(source: Dataset | Path) -> tuple[dict[str, Pair], list[Problem]]:
    """Pairs by key, and problems. Reads twice, since every pass must give the same; keys must not repeat."""
    dataset = source if isinstance(source, Dataset) else open_dataset(source)
    everything = list(dataset.pairs())
    assert everything == list(dataset.pairs())
    pairs = [one for one in everything if isinstance(one, Pair)]
    assert len({pair.key for pair in pairs}) == len(pairs)
    return {pair.key: pair for pair in pairs}, [one for one in everything if isinstance(one, Problem)]


def texts(pair: Pair) -> list[str]:
    return [caption.text for caption in pair.captions]


def kinds(problems: list[Problem]) -> dict[str, str]:
    """Kind of problem by key."""
    return {problem.key: problem.kind for problem in problems}
