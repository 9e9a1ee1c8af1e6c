"""One prompt in all styles on one picture: a column per style with its name above, a row per seed."""

from typing import Any

GAP = 12  # pixels around every picture
BACKGROUND, INK = (246, 245, 241), (31, 35, 40)
LARGEST = 16_384  # pixels a side; larger sheets are made smaller


def style_sheet(pictures: dict[str, list[Any]], *, columns: int = 5) -> Any:
    """An RGB PIL image of `pictures`: for each style its pictures, one per seed, all of one size.

    At most `columns` styles stand side by side; the next ones begin below. Names that the font cannot draw are left
    out.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = next(iter(pictures.values()))[0].size
    count = max(len(images) for images in pictures.values())
    columns = min(columns, len(pictures))
    bands = -(-len(pictures) // columns)
    text = max(13, width // 14)
    band = text + 2 * GAP + count * (height + GAP)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, bands * band + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    for number, (style, images) in enumerate(pictures.items()):
        left, top = GAP + number % columns * (width + GAP), GAP + number // columns * band
        if style.isascii():
            pen.text((left + width / 2, top), _fitting(style, font, width), INK, font, anchor="ma")
        for row, image in enumerate(images):
            sheet.paste(image, (left, top + text + GAP + row * (height + GAP)))
    if max(sheet.size) > LARGEST:
        sheet.thumbnail((LARGEST, LARGEST))
    return sheet


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, or as much of its beginning as fits."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + "...") > width:
        kept = kept[:-1]
    return kept + "..."
