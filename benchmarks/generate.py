"""Generation speed beside stock Diffusers: the same model folder, prompt, steps, guidance and machine, in one run.

    python benchmarks/generate.py [--model FOLDER] [--rounds 5] [--steps 20] [--sizes 128 256]

Cold is the time from the start of a process to the saved file. Warm is a loaded pipeline that has generated before, for
one image a call and for eight. Every arm generates once before it is timed, arms take turns in each round, and the
table gives the median, the range (lowest to highest) and how many times as fast it is as stock Diffusers. The arms
"few steps" are the few-step model with its own four steps. `--avx2` stands for a processor without AVX512 and AMX.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

PROMPT = "a red apple, 3D"
STOCK = """
import sys, torch
from diffusers import PixArtAlphaPipeline
folder, prompt, size, steps, path, dtype = sys.argv[1:7]
pipe = PixArtAlphaPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
pipe.set_progress_bar_config(disable=True)
image = pipe(prompt, width=int(size), height=int(size), num_inference_steps=int(steps), clean_caption=False,
             use_resolution_binning=False, generator=torch.Generator().manual_seed(0)).images[0]
image.save(path)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="model folder with graphs (default: the shipped one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8], help="images a call, warm")
    parser.add_argument("--only", choices=["cold", "warm"], default=None)
    parser.add_argument("--avx2", action="store_true", help="other instructions are switched off in all arms")
    parser.add_argument("--arm", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        return work(*options.arm)
    if options.avx2:
        os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    from pixart.checkpoints.model_folder import DEFAULT_MODEL

    folder = options.model or DEFAULT_MODEL
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "onnxruntime", "transformers")))
    for size in options.sizes:
        if options.only != "warm":
            table(
                f"cold, {size} px, {options.steps} steps: seconds",
                cold_arms(folder, size, options.steps),
                options.rounds,
            )
        if options.only != "cold":
            for count in options.counts:
                arms = warm_arms(folder, size, options.steps, count)
                table(
                    f"warm, {size} px, {options.steps} steps, {count} at a time: seconds an image",
                    arms,
                    options.rounds,
                    count,
                )


Arms = dict[str, tuple[str, Callable[[], object]]]  # name -> the stock arm to compare with, and what to time


def cold_arms(folder: Path, size: int, steps: int) -> Arms:
    path = Path(tempfile.mkdtemp()) / "image.png"
    own = [sys.executable, "-m", "pixart", "generate", PROMPT, "--model", str(folder), "--output", str(path)]
    own += ["--width", str(size), "--height", str(size), "--seed", "0"]
    few = [*own, "--fast"]
    own += ["--steps", str(steps)]

    def run(command: list[str]) -> Callable[[], object]:
        def once() -> None:
            path.unlink(missing_ok=True)
            subprocess.run(command, check=True, capture_output=True)
            assert path.is_file()

        return once

    def stock(dtype: str) -> list[str]:
        return [sys.executable, "-c", STOCK, str(folder), PROMPT, str(size), str(steps), str(path), dtype]

    return {
        "stock Diffusers, fp32": ("", run(stock("float32"))),
        "stock Diffusers, bf16": ("", run(stock("bfloat16"))),
        "pixart, torch, fp32": ("stock Diffusers, fp32", run([*own, "--engine", "torch"])),
        "pixart, torch, bf16": ("stock Diffusers, bf16", run([*own, "--engine", "torch", "--dtype", "bfloat16"])),
        "pixart, onnx, fp32": ("stock Diffusers, fp32", run([*own, "--engine", "onnx"])),
        "pixart, onnx, int8": ("stock Diffusers, bf16", run([*own, "--engine", "onnx", "--dtype", "int8"])),
        "pixart, onnx, fp32, few steps": ("", run([*few, "--engine", "onnx"])),
    }


def warm_arms(folder: Path, size: int, steps: int, count: int) -> Arms:
    """Each arm lives in a process of its own, which loads once, generates on request, and is idle meanwhile."""

    def worker(engine: str, dtype: str) -> Callable[[], object]:
        command = [sys.executable, __file__, "--arm", engine, dtype, str(folder), str(size), str(steps), str(count)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def once() -> None:
            process.stdin.write(b"generate\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"

        return once

    return {
        "stock Diffusers, fp32": ("", worker("stock", "float32")),
        "stock Diffusers, bf16": ("", worker("stock", "bfloat16")),
        "pixart, torch, fp32": ("stock Diffusers, fp32", worker("torch", "float32")),
        "pixart, torch, bf16": ("stock Diffusers, bf16", worker("torch", "bfloat16")),
        "pixart, onnx, fp32": ("stock Diffusers, fp32", worker("onnx", "float32")),
        "pixart, onnx, int8": ("stock Diffusers, bf16", worker("onnx", "int8")),
        "pixart, onnx, fp32, few steps": ("", worker("onnx-fast", "float32")),
    }


def work(engine: str, dtype: str, folder: str, size: str, steps: str, count: str) -> None:
    """One arm's process: generate `count` images for every line on stdin."""
    sizes = {"width": int(size), "height": int(size)}
    if engine == "stock":
        import torch
        from diffusers import PixArtAlphaPipeline

        pipe = PixArtAlphaPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)

        def generate() -> None:
            generator = torch.Generator().manual_seed(0)
            cleaning = {"clean_caption": False, "use_resolution_binning": False}
            how_many = {"num_inference_steps": int(steps), "num_images_per_prompt": int(count)}
            pipe(PROMPT, generator=generator, **sizes, **how_many, **cleaning)
    else:
        import pixart

        name, few, _ = engine.partition("-fast")
        own = pixart.Pipeline.from_pretrained(folder, engine=name, dtype=dtype, fast=bool(few))

        def generate() -> None:
            own(PROMPT, seed=0, steps=None if few else int(steps), num_images=int(count), **sizes)

    for _ in sys.stdin:
        generate()
        print("done", flush=True)


def table(title: str, arms: Arms, rounds: int, images: int = 1) -> None:
    """Time every arm `rounds` times, taking turns, and print a Markdown table and a JSON line."""
    for _, run in arms.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (_, run) in arms.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / images)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{title}\n\n| Arm | Median | Range | Against stock | Against stock in fp32 |")
    print("| --- | --- | --- | --- | --- |")
    for name, (against, _) in arms.items():
        between = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        same = f"{medians[against] / medians[name]:.1f}" if against else ""
        fp32 = f"{medians['stock Diffusers, fp32'] / medians[name]:.1f}"
        print(f"| {name} | {medians[name]:.2f} | {between} | {same} | {fp32} |")
    print(json.dumps({"title": title, "seconds": times}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
