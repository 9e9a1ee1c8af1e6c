"""Looks at pictures one by one: whether they open, what they are, and what they look like, in several processes."""

import hashlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, Location, Pair, read_bytes

CHUNK = 32  # pictures that a process takes at a time
AHEAD = 4  # chunks that wait for each process
THUMB = 8  # side of the little copy by which near duplicates are confirmed


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture. `kind` and `reason` are those of an ImageProblem, empty for a picture that can be used.

    `width` and `height` are upright; `bytes` the size of its file. `pixels` is a hash of all its RGB pixels; `look` a
    perceptual hash of 64 bits, signed; `thumb` its 8 x 8 x 3 copy. `seconds` is what reading and decoding took.
    """

    kind: str = ""
    reason: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    alpha: bool = False
    orientation: int = 1
    animated: bool = False
    icc: bool = False
    bytes: int = 0
    pixels: bytes = b""
    look: int = 0
    thumb: bytes = b""
    seconds: float = 0.0


def look_at(place: Location) -> Seen:
    """Read and decode one picture; whatever is wrong with it is in the answer."""
    from PIL import Image

    begun = time.perf_counter()
    data = b""
    try:
        data = read_bytes(place)
        opened = open_image(data)
    except ImageProblem as problem:
        return Seen(problem.kind, problem.reason, bytes=len(data), seconds=time.perf_counter() - begun)
    image = opened.image
    seconds = time.perf_counter() - begun
    small = image.resize((32, 32), Image.Resampling.BOX)
    return Seen(
        width=image.width,
        height=image.height,
        format=opened.format,
        mode=opened.mode,
        alpha=opened.alpha,
        orientation=opened.orientation,
        animated=opened.animated,
        icc=opened.icc,
        bytes=len(data),
        pixels=_pixel_hash(image),
        look=perceptual_hash(np.asarray(small.convert("L"))),
        thumb=small.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
        seconds=seconds,
    )


def perceptual_hash(grey: np.ndarray) -> int:
    """(32, 32) grey levels -> 64 bits as a signed integer: which of the lowest cosines are above their median.

    Of the 8 x 8 lowest frequencies all but the mean, so that brightness does not matter. A plain picture has 0.
    """
    n = np.arange(32)
    cosines = np.cos(np.pi * (2 * n[None] + 1) * n[:8, None] / 64)
    # Rounded, so that what is nothing but the rounding of floats counts as nothing.
    waves = (cosines @ grey.astype(np.float64) @ cosines.T).round(3).flatten()[1:]
    return int.from_bytes(np.packbits(np.append(waves > np.median(waves), False)).tobytes(), "big", signed=True)


def _pixel_hash(image) -> bytes:
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def look_at_all(
    pairs: Iterable[Pair], workers: int, *, look: Callable[[Location], Seen] = look_at
) -> Iterator[tuple[Pair, Seen]]:
    """Every pair with what its picture is, in order; of the pairs only some chunks for each worker are in memory.

    One worker means this process. A process that a picture kills (a fault in a decoder, no memory) does not end the
    run: its chunk is looked at again picture by picture, and the one that does it is named.
    """
    if workers <= 1:
        for pair in pairs:
            yield pair, look(pair.image)
        return
    stream = iter(pairs)
    waiting: deque[tuple[list[Pair], Future | None]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < workers * AHEAD and (chunk := list(islice(stream, CHUNK))):
                waiting.append((chunk, _submit(pool, look, chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                seen = future.result() if future else None
            except BrokenProcessPool:
                seen = None
            if seen is None:
                pool.shutdown(wait=False, cancel_futures=True)
                seen = _one_by_one(look, [pair.image for pair in chunk])
                pool = _pool(workers)
                waiting = deque((later, _submit(pool, look, later)) for later, _ in waiting)
            yield from zip(chunk, seen, strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: this process has threads (the progress bar, the tokenizer), whose locks a fork would copy.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quietly)


def _quietly() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.environ["OMP_NUM_THREADS"] = "1"


def _submit(pool: ProcessPoolExecutor, look: Callable[[Location], Seen], chunk: list[Pair]) -> Future | None:
    try:
        return pool.submit(_chunk, look, [pair.image for pair in chunk])
    except BrokenProcessPool:
        return None


def _chunk(look: Callable[[Location], Seen], places: list[Location]) -> list[Seen]:
    return [look(place) for place in places]


def _one_by_one(look: Callable[[Location], Seen], places: list[Location]) -> list[Seen]:
    """With another process after each that was killed, so that every picture is judged by itself."""
    seen: list[Seen] = []
    while len(seen) < len(places):
        with _pool(1) as pool:
            try:
                while len(seen) < len(places):
                    seen.append(pool.submit(look, places[len(seen)]).result())
            except BrokenProcessPool:
                seen.append(Seen("crash", "Decoding it killed the process: it is damaged, or needs all memory."))
    return seen
