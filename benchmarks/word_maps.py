"""Where the shipped model reads its words: the image of docs/how-it-works.md, and whether the maps mean anything.

    python benchmarks/word_maps.py [--out docs/images/words.png] [--seeds 2]

The image has three prompts, seed 1, not chosen. The table asks of every word how much more attention it gets where
there is something than on the white ground: 1 is a word that does not care. It needs no labels, since the shipped
model puts one thing on white; a place counts as ground where its 16 x 16 pixels are white to 3%.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import pixart
from pixart.pipeline.attention_maps import AttentionMaps, generate_with_maps, overlay, torch_pipeline
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import make_request

SHOWN = ("a red apple, flat", "a green heart, glossy", "a smiling face with sunglasses, 3D")
# Every word of these by what kind it is of; words of two kinds are left out.
PROMPTS = (
    "a red apple, flat",
    "a green heart, glossy",
    "a smiling face with sunglasses, 3D",
    "a yellow banana, 3D",
    "a blue car, glossy",
    "a brown dog, Noto",
    "a purple flower, Twemoji",
    "an orange cat, flat",
    "a pink ribbon, FxEmoji",
    "a green frog, 3D",
)
KINDS = {
    "colour": {"red", "green", "yellow", "blue", "brown", "purple", "orange", "pink"},
    "thing": {"apple", "heart", "face", "sunglasses", "banana", "car", "dog", "flower", "cat", "ribbon", "frog"},
    "style": {"flat", "glossy", "3d", "noto", "twemoji", "fxemoji"},
    "article": {"a", "an"},
}
SIDE, MARGIN, PATCH, WHITE = 112, 18, 16, 0.97


def sheet(shown: list[tuple[Generated, AttentionMaps]]) -> Image.Image:
    width = 1 + max(len(maps.words) for _, maps in shown)
    out = Image.new("RGB", (width * SIDE, len(shown) * (SIDE + MARGIN)), "white")
    pen = ImageDraw.Draw(out)
    for row, (generated, maps) in enumerate(shown):
        top = row * (SIDE + MARGIN)
        cells = [overlay(generated.image, share) for share in maps.shares]
        for column, (image, label) in enumerate(zip([generated.image, *cells], ["", *maps.words], strict=True)):
            pen.text((column * SIDE + SIDE // 2, top + 3), label, fill="black", anchor="ma")
            out.paste(image.resize((SIDE - 2, SIDE - 2), Image.Resampling.LANCZOS), (column * SIDE, top + MARGIN))
    return out


def contrasts(generated: Generated, maps: AttentionMaps) -> dict[str, float]:
    """For each word, its mean share where there is something over that on the white ground."""
    pixels = np.asarray(generated.image, np.float32) / 255
    rows, columns = maps.rest.shape
    inside = pixels.reshape(rows, PATCH, columns, PATCH, 3).mean(axis=(1, 3, 4)) < WHITE
    pairs = zip(maps.words, maps.shares, strict=True)
    return {word: float(share[inside].mean() / share[~inside].mean()) for word, share in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/words.png"))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    pipeline = torch_pipeline(pixart.Pipeline.from_pretrained())
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    shown = []
    for prompt in PROMPTS:
        for seed in range(1, arguments.seeds + 1):
            generated, maps = generate_with_maps(pipeline, make_request(pipeline.folder, prompt, seed=seed))
            if seed == 1 and prompt in SHOWN:
                shown.append((generated, maps))
            for word, contrast in contrasts(generated, maps).items():
                for kind, words in KINDS.items():
                    if word in words:
                        found[kind].append(contrast)
                        print(f"  {prompt}, seed {seed}: {word} {contrast:.2f}", flush=True)
    sheet(shown).quantize(128).save(arguments.out, optimize=True)
    print(arguments.out)
    for kind, values in found.items():
        low, high = np.percentile(values, [25, 75])
        more = sum(value > 1 for value in values)
        print(f"| {kind} | {statistics.median(values):.2f} | {low:.2f} to {high:.2f} | {more} of {len(values)} |")


if __name__ == "__main__":
    main()
