"""The report as one HTML page that needs nothing else: images inline, no script, and no request to any host."""

import base64
import io
from importlib.resources import files

from pixart.data.check.report import Report, median, share
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, Location, printable, read_bytes

THUMBNAIL = 224  # px; shown at up to 140, or sharper


def page(report: Report) -> str:
    """The page. Reads the images of its examples again, to show them small."""
    import jinja2

    here = files("pixart.data.check")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printable)
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    style = jinja2.utils.markupsafe.Markup(here.joinpath("page.css").read_text(encoding="utf-8"))
    sheet = sorted((example for _, _, example in report.tally.sheet), key=lambda example: example.key)
    return template.render(
        report=report, tally=report.tally, style=style, sheet=sheet, thumbnail=thumbnail, share=share, median=median
    )


def _printable(value: object) -> object:
    """Names and captions as harmless lines; what is markup already stays."""
    return printable(value) if type(value) is str else value


def thumbnail(place: Location | None) -> str | None:
    """A data URI of the image, at most THUMBNAIL px, or None where it cannot be opened."""
    if place is None:
        return None
    try:
        image = open_image(read_bytes(place)).image
    except ImageProblem:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
