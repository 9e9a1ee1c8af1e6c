"""A tiny data set as projects/emoji lays it out: shapes in three colours, filled ("flat") or outlined ("Noto")."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

RECIPES = Path(__file__).parent.parent / "projects" / "emoji" / "recipes"
SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
STYLES = ("flat", "Noto")
HELD_OUT = {("red circle", "Noto"), ("green square", "flat"), ("blue triangle", "Noto")}


def draw(shape: str, colour: tuple[int, int, int], style: str, side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    fill, outline = (colour, None) if style == "flat" else (None, colour)
    box = (side // 8, side // 8, side - side // 8, side - side // 8)
    match shape:
        case "circle":
            pen.ellipse(box, fill, outline, width=6)
        case "square":
            pen.rectangle(box, fill, outline, width=6)
        case "triangle":
            pen.polygon(((box[0], box[3]), (box[2], box[3]), (side // 2, box[1])), fill, outline, width=6)
    return image


def emoji_recipe(name: str) -> str:
    """The path of a recipe of projects/emoji, as `pixart train` takes it."""
    return str(RECIPES / f"{name}.toml")


def write_tiny_data(folder: Path) -> Path:
    """train with 16 pictures (one of them has a skin tone), test_cells with 3. Returns the folder."""
    rows: dict[str, list[dict]] = {"train": [], "test_cells": []}
    for shape in SHAPES:
        for colour, rgb in COLOURS.items():
            for style in STYLES:
                concept = f"{colour} {shape}"
                split = "test_cells" if (concept, style) in HELD_OUT else "train"
                add(folder / split, rows[split], concept, concept, None, shape, style, draw(shape, rgb, style))
    toned = draw("circle", (120, 80, 40), "flat")
    add(folder / "train", rows["train"], "red circle", "red circle dark skin tone", "dark", "circle", "flat", toned)
    for split, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def add(folder, rows, base_concept, concept, tone, subgroup, style, image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{concept} {style}.png".replace(" ", "-").lower()
    image.save(folder / name)
    text = f"{concept}, {style}"
    rows.append(
        {
            "file_name": name,
            "text": text,
            "captions": [text, f"a {concept} in {style} style", f"{style} picture of a {concept} on white"],
            "concept": concept,
            "base_concept": base_concept,
            "group": "shapes",
            "subgroup": subgroup,
            "style": style,
            "skin_tone": tone,
            "source": "drawn here",
            "licence": "Apache-2.0",
        }
    )
