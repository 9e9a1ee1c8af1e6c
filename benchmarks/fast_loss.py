"""How far pictures of the fast settings are from the exact ones: the shipped model, 16 prompts, 20 steps, torch.

    python benchmarks/fast_loss.py [--sheet sheet.png] [--only "cache 3" ...]

For each setting the median and the lowest PSNR against the exact picture of the same seed, and the mean absolute
difference of the pixels. What fewer steps would cost instead is in the table too: whoever wants speed could take those.
The sheet shows six of the prompts (columns) with each setting (rows).
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

import pixart

PROMPTS = [
    "a red apple, 3D",
    "an owl, flat",
    "a guitar, 3D",
    "a house, Noto",
    "a smiling face, 3D",
    "a red fox, Noto",
    "a sailing boat, flat",
    "a birthday cake, 3D",
    "a black cat, Twemoji",
    "a yellow car, flat",
    "a tree, FxEmoji",
    "an astronaut, 3D",
    "a rocket, glossy",
    "a fish, black and white",
    "a bicycle, Twemoji",
    "a blue umbrella, Noto",
]
# Name -> dtype and what is asked for.
SETTINGS: dict[str, tuple[str, dict]] = {
    "exact": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "int8": ("int8", {}),
    "interval 400 to 1000": ("float32", {"guidance_interval": (400, 1000)}),
    "cache 2": ("float32", {"block_cache": 2}),
    "cache 3": ("float32", {"block_cache": 3}),
    "10 steps": ("float32", {"steps": 10}),
    "cache 4": ("float32", {"block_cache": 4}),
    "cache 4, interval, bfloat16": ("bfloat16", {"block_cache": 4, "guidance_interval": (400, 1000)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS))
    options = parser.parse_args()
    engines, exact, rows = {}, None, []
    for name in ["exact", *(name for name in options.only if name != "exact")]:
        dtype, asked = SETTINGS[name]
        if dtype not in engines:
            engines[dtype] = pixart.Pipeline.from_pretrained(engine="torch", dtype=dtype)
        images = engines[dtype](PROMPTS, seed=100, **asked).images
        drawn = np.stack([np.asarray(image, np.float64) for image in images])
        exact = drawn if exact is None else exact
        square = ((drawn - exact) ** 2).mean((1, 2, 3))
        psnr = 10 * np.log10(255**2 / np.maximum(square, 1e-9))
        away = np.abs(drawn - exact).mean()
        print(
            f"{name}: PSNR median {statistics.median(psnr):.1f}, lowest {psnr.min():.1f} dB; mean absolute difference "
            f"{away:.2f} of 255",
            flush=True,
        )
        rows.append(np.concatenate(drawn[:6].astype(np.uint8), axis=1))
    if options.sheet:
        from PIL import Image

        Image.fromarray(np.concatenate(rows)).save(options.sheet)


if __name__ == "__main__":
    main()
