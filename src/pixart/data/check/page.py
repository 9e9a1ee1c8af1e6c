"""The report as one HTML page that needs nothing else: images inline, no script, and no request to any host."""

import base64
import io
from importlib.resources import files

from pixart.data.check import words
from pixart.data.check.report import Report, by_reason
from pixart.data.check.tally import Example
from pixart.data.check.tokens import LONGEST, CaptionLengths
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, Location, printable, read_bytes

THUMB_SIDE = 224  # px; shown at up to 140, or sharper
_COLOURS = ("--drop", "--warn", "--accent", "--note", "--soft")


def page(report: Report) -> str:
    """The page. Reads the images of its examples again, to show them small."""
    import jinja2

    here = files("pixart.data.check")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printable)
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    tally = report.tally
    buckets = [(b, use) for b, use in zip(tally.table.buckets, tally.buckets, strict=True) if use.pictures]
    placed = sum(use.pictures for _, use in buckets)
    sides = [(f"{2**n:,} to {2 ** (n + 1) - 1:,} px", count) for n, count in enumerate(tally.sides) if count]
    return template.render(
        report=report,
        tally=tally,
        name=report.path.name or str(report.path),
        style=jinja2.utils.markupsafe.Markup(here.joinpath("page.css").read_text(encoding="utf-8")),
        verdict=words.verdict(report),
        pieces=_pieces(report),
        tiles=_tiles(report),
        sheet=sorted(tally.sheet.items, key=lambda item: item.key),
        buckets=buckets,
        placed=placed,
        cropped=sum(use.lost for _, use in buckets) / max(1, placed),
        fullest=max((use.pictures for _, use in buckets), default=1),
        sources=[_source(name, lengths, tally.max_tokens) for name, lengths in sorted(tally.sources.items())],
        tables=[
            ("Format", tally.formats.most_common()),
            ("Colour mode", tally.modes.most_common()),
            ("Side of a square of the same area", sides),
        ],
        thumbnail=thumbnail,
        cut_off=_cut_off,
        bars_at=lambda bars: [index for index, count in enumerate(bars) if count],
        **{name: getattr(words, name) for name in ("cache_size", "cache_time", "duration", "plural", "share", "size")},
    )


def _printable(value: object) -> object:
    """Names and captions as harmless lines; what is markup already stays."""
    return printable(value) if type(value) is str else value


def thumbnail(place: Location | None) -> str | None:
    """A data URI of the image, at most THUMB_SIDE px, or None where it cannot be opened."""
    if place is None:
        return None
    try:
        image = open_image(read_bytes(place)).image
    except ImageProblem:
        return None
    image.thumbnail((THUMB_SIDE, THUMB_SIDE), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _pieces(report: Report) -> list[tuple[str, str, int]]:
    """Colour, title and number of images of each piece of the bar: what is kept, then why others are dropped."""
    reasons = by_reason(report.tally)
    pieces = [("--keep", "can be trained on", report.kept)]
    pieces += [(colour, title, count) for colour, (title, count) in zip(_COLOURS, reasons[:4], strict=False)]
    rest = sum(count for _, count in reasons[4:])
    return [*pieces, (_COLOURS[4], "Other reasons", rest)] if rest else pieces


def _tiles(report: Report) -> list[tuple[str, str]]:
    tally = report.tally
    captions = sum(source.captions for source in tally.sources.values())
    tiles = [(f"{tally.rows:,}", "images"), (f"{captions:,}", "captions")]
    if tally.looked:
        mean = tally.pixels / max(1, sum(tally.formats.values())) / 1e6
        tiles += [(words.size(tally.bytes), "read"), (f"{mean:.2f} MP", "in an image, on average")]
        tiles += [(words.cache_size(report), f"feature cache at {tally.table.base_size} px")]
    return [*tiles, (f"{len(report.troubles):,}", "kinds of problems")]


def _cut_off(example: Example) -> list[str]:
    """Styles of the two parts of an image that its bucket does not keep, if that is what the example shows."""
    if example.kept is None:
        return []
    left, top, right, bottom = (100 * side for side in example.kept)
    if right - left < 100:
        return [f"left:0;top:0;bottom:0;width:{left:.2f}%", f"right:0;top:0;bottom:0;width:{100 - right:.2f}%"]
    return [f"left:0;right:0;top:0;height:{top:.2f}%", f"left:0;right:0;bottom:0;height:{100 - bottom:.2f}%"]


def _source(name: str, lengths: CaptionLengths, limit: int) -> tuple[str, CaptionLengths, list[int], int, str]:
    """A source's name, its lengths, their histogram in at most 64 bars, tokens in a bar, and the label of the end."""
    last = max(n for n, count in enumerate(lengths.histogram) if count)
    longest = max(last, limit)
    step = max(1, -(-min(LONGEST, longest + 1) // 64))
    bars = [sum(lengths.histogram[n : n + step]) for n in range(0, longest + 1, step)]
    return name, lengths, bars, step, f"{len(bars) * step - 1}{' and more' if last == LONGEST else ''}"
