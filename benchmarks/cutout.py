"""How well `pixart generate --transparent` cuts out, on real icons whose transparency is known.

    python benchmarks/cutout.py [--packages FOLDER] [--count 30]

Each icon is rendered at 256 px, put on white, cut out again, and laid on dark blue, beside the true one laid on the
same. Beside ours stands the plain way: white that reaches the border is transparent, all else opaque. Medians over
`count` icons a style. --packages has the npm archives of `pixart data emoji`; without it they are fetched.
"""

import argparse
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pixart.data import icon_sets
from pixart.data.emoji import _drawings
from pixart.data.npm import fetch
from pixart.data.render import _picture
from pixart.pipeline.cutout import NEAR_WHITE, _reached, cut_out
from pixart.pipeline.image_files import on_white

GROUND = (20, 40, 90)


def plainly(flat: Image.Image) -> Image.Image:
    pixels = np.asarray(flat)
    ground = _reached(pixels.min(axis=2) >= 255 - NEAR_WHITE)
    return Image.fromarray(np.dstack([pixels, np.where(ground, 0, 255).astype(np.uint8)]), "RGBA")


def laid(picture: Image.Image) -> np.ndarray:
    below = Image.new("RGB", picture.size, GROUND)
    below.paste(picture, mask=picture.getchannel("A"))
    return np.asarray(below).astype(np.float32)


def psnr(one: Image.Image, true: Image.Image) -> float:
    mse = float(np.square(laid(one) - laid(true)).mean())
    return -10 * np.log10(max(mse, 1e-3) / 255**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--count", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = (icon_sets.NAMES_PACKAGE, *icon_sets.STYLES.values())
        drawings, _ = _drawings({n: fetch(n, Path(folder), given.packages, lambda line: None) for n in names})
        print("| Style | cut out, dB | white at the border, dB | pictures better than it |\n| --- | --- | --- | --- |")
        for style in icon_sets.STYLES:
            chosen = random.Random(1).sample([d for d in drawings if d.style == style], given.count)
            ours, plain = [], []
            for drawing in chosen:
                true = _picture(drawing, 256)
                flat = on_white(true)
                ours.append(psnr(cut_out(flat), true))
                plain.append(psnr(plainly(flat), true))
            better = sum(a > b for a, b in zip(ours, plain, strict=True))
            row = f"{statistics.median(ours):.1f} | {statistics.median(plain):.1f} | {better} of {given.count}"
            print(f"| {style} | {row} |", flush=True)


if __name__ == "__main__":
    main()
