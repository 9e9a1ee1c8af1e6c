"""PSNR of a model folder's VAE on held-out pictures, as stored (half precision on disk, fp32 in memory).

python benchmarks/autoencoder_psnr.py --data runs/emoji [--model FOLDER] [--cache runs/emoji-features]
"""

import argparse
from pathlib import Path

from diffusers import AutoencoderKL

from pixart.checkpoints.model_folder import DEFAULT_MODEL
from pixart.data import features
from pixart.encoders import autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--cache", type=Path, default=Path("runs/emoji-features"))
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    arguments = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(arguments.model / "vae", local_files_only=True, low_cpu_mem_usage=False).eval()
    for size in arguments.sizes:
        pictures = features.pixels(arguments.data, arguments.split, size, arguments.cache)
        decibels = autoencoder.psnr(vae, features.to_unit(pictures))
        print(f"{arguments.split}, {len(pictures)} pictures at {size} px: {decibels:.2f} dB")


if __name__ == "__main__":
    main()
