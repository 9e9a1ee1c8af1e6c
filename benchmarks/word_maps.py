"""Where the shipped model reads its words: the picture of docs/how-it-works.md, and whether the maps mean anything.

    python benchmarks/word_maps.py [--out docs/images/words.png] [--seeds 2]

The picture has three prompts, seed 1, not chosen. The table asks of every word how much more attention it gets where
something is drawn than on the white ground: 1 is a word that does not care. It needs no labels, since the shipped
model draws one thing on white; a place counts as ground where its 16 x 16 pixels are white to 3%.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import pixart
from pixart.pipeline.attention_maps import AttentionMaps, attention_maps, torch_networks
from pixart.pipeline.request import make_request
from pixart.pipeline.trace import Trace, trace

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
STOPS = np.array([[40, 0, 90, 0], [110, 20, 150, 90], [220, 60, 80, 170], [255, 150, 20, 210], [255, 240, 90, 235]])


def overlay(image: Image.Image, share: np.ndarray) -> Image.Image:
    """The map over the picture in grey, in the page's colours; each map from its lowest to its highest share."""
    value = (share - share.min()) / (share.max() - share.min()) * (len(STOPS) - 1)
    colours = np.stack([np.interp(value, range(len(STOPS)), STOPS[:, i]) for i in range(4)], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8), "RGBA").resize(image.size, Image.Resampling.BICUBIC)
    grey = Image.blend(image, image.convert("L").convert("RGB"), 0.85).convert("RGBA")
    return Image.alpha_composite(grey, heat).convert("RGB")


def sheet(looked: list[tuple[Trace, AttentionMaps]]) -> Image.Image:
    width = 1 + max(len(maps.words) for _, maps in looked)
    out = Image.new("RGB", (width * SIDE, len(looked) * (SIDE + MARGIN)), "white")
    pen = ImageDraw.Draw(out)
    for row, (drawn, maps) in enumerate(looked):
        top, picture = row * (SIDE + MARGIN), drawn.picture.image
        cells = [overlay(picture, share) for share in maps.shares.mean(axis=0)]
        for column, (image, label) in enumerate(zip([picture, *cells], ["", *maps.words], strict=True)):
            pen.text((column * SIDE + SIDE // 2, top + 3), label, fill="black", anchor="ma")
            out.paste(image.resize((SIDE - 2, SIDE - 2), Image.Resampling.LANCZOS), (column * SIDE, top + MARGIN))
    return out


def contrasts(drawn: Trace, maps: AttentionMaps) -> dict[str, float]:
    """For each word, its mean share where something is drawn over that on the white ground."""
    pixels = np.asarray(drawn.picture.image, np.float32) / 255
    rows, columns = maps.rest.shape[1:]
    inside = pixels.reshape(rows, PATCH, columns, PATCH, 3).mean(axis=(1, 3, 4)) < WHITE
    mean = maps.shares.mean(axis=0)
    return {word: float(mean[i][inside].mean() / mean[i][~inside].mean()) for i, word in enumerate(maps.words)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/words.png"))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    pipeline = pixart.Pipeline.from_pretrained()
    eye = torch_networks(pipeline)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    shown = []
    for prompt in PROMPTS:
        for seed in range(1, arguments.seeds + 1):
            drawn = trace(pipeline, make_request(pipeline.folder, prompt, seed=seed))
            maps = attention_maps(eye, drawn)
            if seed == 1 and prompt in SHOWN:
                shown.append((drawn, maps))
            for word, contrast in contrasts(drawn, maps).items():
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
