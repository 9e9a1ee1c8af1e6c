"""A data set of coloured shapes with validation concepts and cells, and a judge that was trained on it in seconds."""

import colorsys
import json
from pathlib import Path

from tiny_data import SHAPES, STYLES, add, draw

from emojis.judge import JudgeConfig
from emojis.train_judge import train_judge
from pixart.training.batches import Phase
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig

SIZES = {"tiny": 1 / 3, "small": 1 / 4, "big": 1 / 16}
HUES = {"red": 0.0, "orange": 0.09, "yellow": 0.16, "green": 0.36, "blue": 0.62, "purple": 0.78}
LIGHTS = {"pale": (0.45, 1.0), "bright": (1.0, 0.95), "dark": (1.0, 0.55)}


def write_shapes(folder: Path) -> Path:
    """3 shapes x 6 hues x 3 lights x 2 styles = 108 pictures, 3 sizes each: train 216, test_cells 54, test_concepts 54.

    A concept is hue, light, shape and size, so that held-out concepts are new combinations of known words.
    """
    rows: dict[str, list[dict]] = {"train": [], "test_cells": [], "test_concepts": []}
    number = 0
    for shape in SHAPES:
        for hue, angle in HUES.items():
            for light, (saturation, value) in LIGHTS.items():
                rgb = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(angle, saturation, value))
                for size, margin in SIZES.items():
                    concept = f"{size} {light} {hue} {shape}"
                    number += 1
                    for style in STYLES:
                        held = number % 6 == 0
                        split = "test_concepts" if held else "test_cells" if _cell(number, style) else "train"
                        image = _within(draw(shape, rgb, style), margin)
                        add(folder / split, rows[split], concept, concept, None, shape, style, image)
                        rows[split][-1]["captions"].append(
                            f"a {style} icon of a {concept}, {hue}, on a white background"
                        )
    for split, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def _cell(number: int, style: str) -> bool:
    return number % 3 == 1 and style == STYLES[number % 2]


def _within(image, margin: float):
    from PIL import Image

    side = image.width
    inner = round(side * (1 - 2 * margin))
    out = Image.new("RGB", image.size, "white")
    out.paste(image.resize((inner, inner)), ((side - inner) // 2,) * 2)
    return out


def train_tiny_judge(home: Path, data: Path, *, steps: int = 120) -> Path:
    """The folder of a judge that the project's own function trained."""
    return train_judge(
        data,
        home / "judge-run",
        phases=(Phase(steps, 64, size=32),),
        config=JudgeConfig(widths=(16, 32), text_width=32, embedding=32, zoom=0.0, shift=0.02),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10, decay_share=0.5, weight_decay=0.01),
        loop=LoopConfig(precision="float32", log_every=20, validate_every=60, save_every=60),
    )
