"""One prompt in all styles on one sheet: a column per style with its name above, a row per seed."""

from typing import Any

GAP = 12  # pixels around every image
BACKGROUND, INK = (246, 245, 241), (31, 35, 40)
LARGEST = 16_384  # pixels a side; larger sheets are made smaller


def style_sheet(images: dict[str, list[Any]], *, columns: int = 5) -> Any:
    """An RGB PIL image of `images`: for each style its images, one per seed, all of one size.

    At most `columns` styles stand side by side; the next ones begin below. Names that the font cannot draw are left
    out.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = next(iter(images.values()))[0].size
    count = max(map(len, images.values()))
    columns = min(columns, len(images))
    text = max(13, width // 14)
    band = text + 2 * GAP + count * (height + GAP)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, -(-len(images) // columns) * band + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    for number, (style, rows) in enumerate(images.items()):
        left, top = GAP + number % columns * (width + GAP), GAP + number // columns * band
        if style.isascii():
            while font.getlength(style) > width:
                style = style[:-1]
            pen.text((left + width / 2, top), style, INK, font, anchor="ma")
        for row, image in enumerate(rows):
            sheet.paste(image, (left, top + text + GAP + row * (height + GAP)))
    if max(sheet.size) > LARGEST:
        sheet.thumbnail((LARGEST, LARGEST))
    return sheet
