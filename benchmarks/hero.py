"""The README's picture: two rows that the shipped model drew, with the seeds that are written here.

    python benchmarks/hero.py [--out docs/images/hero.png]

Prompts were chosen to show every style; the seed of each is 1, not chosen.
"""

import argparse
from pathlib import Path

from PIL import Image

import pixart

PROMPTS = [
    "a red apple, 3D",
    "a smiling face with sunglasses, 3D",
    "a robot, glossy",
    "a fox, flat",
    "a house with garden, Noto",
    "a rocket, Twemoji",
    "an umbrella, black and white",
    "a fire, FxEmoji",
    "a cat, 3D",
    "a green heart, glossy",
    "a hot air balloon, flat",
    "a pizza, Noto",
]
COLUMNS, SIDE = 6, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/images/hero.png"))
    arguments = parser.parse_args()
    images = pixart.Pipeline.from_pretrained(arguments.model)(PROMPTS, seed=1).images
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(images) // COLUMNS) * SIDE), "white")
    for index, image in enumerate(images):
        place = (index % COLUMNS * SIDE, index // COLUMNS * SIDE)
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
