"""The pictures of docs/how-it-works.md: how one is denoised, guidance, styles, and what each stage taught.

    python benchmarks/explain_pictures.py [--out docs/images] [--runs runs]

Denoising, guidance and styles are drawn with the shipped model; the stages with runs/emoji-stage1, -stage2, -stage3 and
-stage3-256 where these runs are. Prompts were chosen to be plain; every seed is 1, not chosen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import pixart
from pixart.checkpoints.model_folder import DEFAULT_MODEL
from pixart.encoders.vae import Decoder
from pixart.training.strip import draw_checkpoint

SIDE, MARGIN = 128, 18
APPLE = "a red apple, 3D"
STYLES = ("3D", "glossy", "flat", "black and white", "Noto", "Twemoji", "FxEmoji")
SUBJECTS = (
    ("a red apple", "fruit"),
    ("an owl", "birds"),
    ("a guitar", "musical instruments"),
    ("a house", "buildings"),
)
SCALES = (1.0, 2.0, 3.0, 4.5, 7.0, 12.0)
SHOWN = (0, 2, 5, 9, 14, 19)  # steps of 20


def sheet(rows: list[list[Image.Image]], labels: list[str], names: list[str] | None = None) -> Image.Image:
    """Pictures in rows under one line of labels; `names` stand before the rows."""
    left = 74 if names else 0
    out = Image.new("RGB", (left + len(rows[0]) * SIDE, MARGIN + len(rows) * SIDE), "white")
    pen = ImageDraw.Draw(out)
    for column, label in enumerate(labels):
        pen.text((left + column * SIDE + SIDE // 2, 3), label, fill="black", anchor="ma")
    for y, row in enumerate(rows):
        if names:
            pen.multiline_text((2, MARGIN + y * SIDE + SIDE // 2), names[y], fill="black", anchor="lm")
        for x, image in enumerate(row):
            how = Image.Resampling.LANCZOS if image.width >= SIDE else Image.Resampling.BICUBIC
            out.paste(image.resize((SIDE, SIDE), how), (left + x * SIDE, MARGIN + y * SIDE))
    return out


def denoising(pipeline: pixart.Pipeline) -> Image.Image:
    """What the solver has, and what picture it believes in, after some of 20 steps."""
    decoder, has, believes = Decoder(DEFAULT_MODEL / "vae"), [], []

    def look(_: int, step) -> None:
        if step.index in SHOWN:
            for row, latent in ((has, step.x_t), (believes, step.x_0)):
                row.append(Image.fromarray(decoder.decode(torch.from_numpy(np.array(latent)).float())))

    pipeline(APPLE, seed=1, on_step=look)
    return sheet([has, believes], [f"step {index + 1}" for index in SHOWN], ["what it has", "what it\nbelieves in"])


def guidance(pipeline: pixart.Pipeline) -> Image.Image:
    images = [pipeline(APPLE, seed=1, guidance_scale=scale).images[0] for scale in SCALES]
    return sheet([images], [f"guidance {scale:g}" for scale in SCALES])


def styles(pipeline: pixart.Pipeline) -> Image.Image:
    prompts = ("an owl", "a heart")
    rows = [[pipeline(f"{prompt}, {style}", seed=1).images[0] for style in STYLES] for prompt in prompts]
    return sheet(rows, list(STYLES), list(prompts))


def stages(runs: Path) -> Image.Image:
    """Row by row what the runs of three stages draw of the same four subjects, from the same seed."""
    rows = [list(draw_checkpoint(runs / "emoji-stage1", tuple((group, "glossy") for _, group in SUBJECTS)).images)]
    for run, side in (("emoji-stage2", 64), ("emoji-stage3", 128), ("emoji-stage3-256", 256)):
        pipeline = pixart.Pipeline.from_pretrained(runs / run / "model")
        rows.append([pipeline(f"{name}, glossy", seed=1, width=side, height=side).images[0] for name, _ in SUBJECTS])
    names = ["stage 1\nclasses\n64 px", "stage 2\ntext\n64 px", "stage 3\n128 px", "stage 3\n256 px"]
    labels = [f"{name} ({subgroup})" if len(name + subgroup) < 20 else name for name, subgroup in SUBJECTS]
    return sheet(rows, labels, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    pipeline = pixart.Pipeline.from_pretrained()
    made = {"denoising": denoising(pipeline), "guidance": guidance(pipeline), "styles": styles(pipeline)}
    if (arguments.runs / "emoji-stage1").is_dir():
        made["stages"] = stages(arguments.runs)
    for name, image in made.items():
        path = arguments.out / f"{name}.png"
        image.quantize(128).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
