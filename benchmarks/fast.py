"""Four steps beside twenty: the shipped model with --fast and without, in one run.

    python benchmarks/fast.py [--rounds 7] [--sizes 128 256]

Warm is a loaded pipeline that has drawn before; cold is `pixart generate` from its start to the saved file. The arms
take turns in each round; the table has medians, lowest to highest, and how many times as fast --fast is.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pixart

PROMPT = "a red apple, 3D"


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cold(size: int, fast: bool, folder: Path) -> float:
    words = ["generate", PROMPT, "--width", str(size), "--height", str(size), "--output", f"{folder}/"]
    command = [sys.executable, "-m", "pixart", *words, *(["--fast"] if fast else [])]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def row(name: str, plain: list[float], fast: list[float]) -> str:
    def told(seconds: list[float]) -> str:
        return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"

    ratio = statistics.median(plain) / statistics.median(fast)
    return f"| {name} | {told(plain)} | {told(fast)} | {ratio:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    given = parser.parse_args()
    print("| What | 20 steps | `--fast`, 4 steps | times as fast |\n| --- | --- | --- | --- |")
    for dtype in ("float32", "int8"):
        pipes = [pixart.Pipeline.from_pretrained(dtype=dtype, fast=fast) for fast in (False, True)]
        for size in given.sizes:
            seconds: list[list[float]] = [[], []]
            for number in range(given.rounds + 1):
                for times, pipe in zip(seconds, pipes, strict=True):
                    times.append(timed(lambda: pipe(PROMPT, seed=number, width=size, height=size)))  # noqa: B023
            print(row(f"warm, {size} px, {dtype}", *(times[1:] for times in seconds)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in given.sizes:
            rounds = [(cold(size, False, Path(folder)), cold(size, True, Path(folder))) for _ in range(given.rounds)]
            print(row(f"cold, {size} px, float32", *map(list, zip(*rounds, strict=True))), flush=True)


if __name__ == "__main__":
    main()
