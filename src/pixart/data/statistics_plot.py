"""The table of `pixart data statistics` as a drawing: SVG written by hand or PNG drawn with Pillow, of equal shapes."""

import io
from dataclasses import dataclass
from html import escape

from pixart.data.statistics import PAPER, Row

WIDTH = 1000
LEFT = 190  # where the bars begin
BAR, GAP, SIZE = 22, 12, 15
BACKGROUND, INK, SOFT = "#ffffff", "#222222", "#6b7280"
OURS, THEIRS = "#1d6fb8", "#9ca3af"


@dataclass(frozen=True)
class Rectangle:
    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Text:
    """`anchor` is "start" or "end"; `y` is the middle of the letters."""

    x: float
    y: float
    text: str
    size: int = SIZE
    anchor: str = "start"
    colour: str = INK


def shapes(rows: list[Row], title: str) -> tuple[list[Rectangle | Text], int]:
    """The drawing and its height: nouns per image on the left, the share of valid among distinct nouns on the right."""
    every = [*rows, *PAPER]
    panels = (
        ("Nouns per image", [row.nouns_per_image for row in every], "{:.1f}", LEFT, 270),
        ("Valid nouns among distinct ones", [100 * row.ratio for row in every], "{:.1f}%", LEFT + 390, 215),
    )
    found: list[Rectangle | Text] = [Text(20, 28, title, 19)]
    top = 92
    for heading, values, form, x, width in panels:
        found.append(Text(x, top - 24, heading, SIZE, colour=SOFT))
        largest = max(*values, 1e-9)
        for number, (row, value) in enumerate(zip(every, values, strict=True)):
            y = _top_of(number, len(rows), top)
            ours = number < len(rows)
            length = width * value / largest
            found.append(Rectangle(x, y, max(length, 1), BAR, OURS if ours else THEIRS))
            found.append(Text(x + max(length, 1) + 8, y + BAR / 2, form.format(value)))
            if x == LEFT:
                name = row.name if len(row.name) <= 20 else row.name[:19] + "…"
                found.append(Text(LEFT - 12, y + BAR / 2, name, anchor="end"))
    for number, row in enumerate(every):
        words = f"{_short(row.valid)} of {_short(row.distinct)}"
        found.append(Text(WIDTH - 20, _top_of(number, len(rows), top) + BAR / 2, words, 13, "end", SOFT))
    height = round(_top_of(len(every), len(rows), top)) + 40
    note = "Blue: this data set, by source of the captions. Grey: the paper's table 1. Valid: more than ten times."
    found.append(Text(20, height - 22, note, 13, colour=SOFT))
    return found, height


def _top_of(number: int, ours: int, top: float) -> float:
    return top + number * (BAR + GAP) + (14 if number >= ours else 0)


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}K"


def svg(rows: list[Row], title: str) -> str:
    drawn, height = shapes(rows, title)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="Helvetica, Arial, sans-serif"><rect width="100%" height="100%" fill="{BACKGROUND}"/>'
    ]
    for one in drawn:
        if isinstance(one, Rectangle):
            lines.append(
                f'<rect x="{one.x:.1f}" y="{one.y:.1f}" width="{one.width:.1f}" height="{one.height:.1f}" '
                f'fill="{one.colour}"/>'
            )
        else:
            lines.append(
                f'<text x="{one.x:.1f}" y="{one.y:.1f}" font-size="{one.size}" text-anchor="{one.anchor}" '
                f'dominant-baseline="central" fill="{one.colour}">{escape(one.text)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def png(rows: list[Row], title: str, scale: int = 2) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    drawn, height = shapes(rows, title)
    image = Image.new("RGB", (WIDTH * scale, height * scale), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for one in drawn:
        x, y = one.x * scale, one.y * scale
        if isinstance(one, Rectangle):
            draw.rectangle((x, y, x + one.width * scale - 1, y + one.height * scale - 1), fill=one.colour)
        else:
            font = ImageFont.load_default(one.size * scale)
            draw.text((x, y), one.text, fill=one.colour, font=font, anchor="rm" if one.anchor == "end" else "lm")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
