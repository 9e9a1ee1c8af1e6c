"""From a cold process to the first image with a model of the published size, ours beside stock Diffusers.

    python benchmarks/published_size.py FOLDER          # a model folder, such as PixArt-XL-2-1024-MS
    python benchmarks/published_size.py FOLDER --only cat ours --avx2

Rows: `cat` of the weights, to which times are compared; `ours`, `pixart generate` with no option about device, dtype or
memory; `stock`, `PixArtAlphaPipeline` in bf16; `stock cast`, with weights in bf16 and arithmetic in fp32
(`apply_layerwise_casting`). Before each row the weights are read once, so that all begin with the same files in the
system's cache. Own memory is the largest RssAnon, looked at every 50 ms: mapped files do not count in it, since the
system takes their pages back where room is short. `--avx2` stands for a processor without AVX512 and AMX.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import sys
if {avx2}:
    import pixart.runtime.device
    pixart.runtime.device._processor_flags = lambda: {{"avx2"}}
from pixart.cli import main
sys.exit(main(["generate", "a red fox in the snow", "--model", {folder!r}, "--steps", "{steps}", "--width", "{size}",
               "--height", "{size}", "--no-binning", "--output", {image!r}]))
"""
STOCK = """
import time
import torch
from diffusers import PixArtAlphaPipeline
from diffusers.hooks import apply_layerwise_casting
began = time.monotonic()
pipe = PixArtAlphaPipeline.from_pretrained({folder!r}, torch_dtype=torch.bfloat16, local_files_only=True)
if {cast}:
    for part in (pipe.text_encoder, pipe.transformer):
        for layer in part.modules():
            if not isinstance(layer, torch.nn.Linear):
                for parameter in layer.parameters(recurse=False):
                    parameter.data = parameter.data.float()
            else:  # T5 casts what goes into `wo` to the dtype that it is stored in
                layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].float(),))
        apply_layerwise_casting(
            part, torch.bfloat16, torch.float32, skip_modules_pattern=None,
            skip_modules_classes=(torch.nn.Embedding, torch.nn.Conv2d),
        )
    pipe.vae.float()
pipe.set_progress_bar_config(disable=True)
print(f"  loaded after {{time.monotonic() - began:.0f}} s", flush=True)
pipe("a red fox in the snow", num_inference_steps={steps}, width={size}, height={size}, clean_caption=False,
     use_resolution_binning=False).images[0].save({image!r})
"""
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=["cat", "ours", "stock", "stock cast"], default=None)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--avx2", action="store_true")
    options = parser.parse_args()
    weights = sorted(str(path) for path in options.folder.rglob("*.safetensors"))
    with tempfile.TemporaryDirectory() as work:
        values = {
            "folder": str(options.folder), "size": options.size, "steps": options.steps, "avx2": options.avx2,
            "image": f"{work}/image.png",
        }  # fmt: skip
        rows = {
            "cat": ["cat", *weights],
            "ours": [sys.executable, "-c", OURS.format(**values)],
            "stock": [sys.executable, "-c", STOCK.format(cast=False, **values)],
            "stock cast": [sys.executable, "-c", STOCK.format(cast=True, **values)],
        }
        environment = os.environ | (AVX2 if options.avx2 else {})
        for name in options.only or rows:
            subprocess.run(rows["cat"], stdout=subprocess.DEVNULL, check=True)
            measure(name, rows[name], environment)


def measure(name: str, command: list[str], environment: dict[str, str]) -> None:
    before, began, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL if command[0] == "cat" else None, text=True
    )
    while process.poll() is None:
        own = max(own, own_memory(process.pid))
        time.sleep(0.05)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ended = "" if process.returncode == 0 else f", failed with code {process.returncode}"
    seconds = time.monotonic() - began
    print(f"{name:10}  {seconds:6.1f} s  {cpu:6.1f} s of processor  {own / 1e9:5.2f} GB of its own{ended}", flush=True)


def own_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
