"""A check as one JSON object, as lines for a terminal, and as one HTML page that needs nothing else."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pixart.buckets import Bucket
from pixart.data.check.tally import ATTENTION, DROPPED, NOTE, BucketUse, Captions, Finding, Tally
from pixart.data.pairs import ImageProblem, Location, printable, read_bytes
from pixart.images import open_image

STYLES = {DROPPED: ("✗", "red"), ATTENTION: ("!", "yellow"), NOTE: ("·", "blue")}
SHOWN = 2  # examples on a terminal


@dataclass(frozen=True)
class Report:
    """`latent_channels` and `text_dim` are those of the encoders that extraction would use."""

    path: Path
    layout: str
    notes: list[str]
    tally: Tally
    latent_channels: int
    text_dim: int

    @property
    def findings(self) -> list[Finding]:
        """The worst first, then the most frequent."""
        return sorted(self.tally.findings.values(), key=lambda one: (list(STYLES).index(one.level), -one.count))

    @property
    def buckets(self) -> list[tuple[Bucket, BucketUse]]:
        """Those that are used."""
        both = zip(self.tally.table.buckets, self.tally.buckets, strict=True)
        return [(bucket, use) for bucket, use in both if use.images]

    @property
    def sides(self) -> list[tuple[str, int]]:
        """How many images have which side, as a square of the same area."""
        return [(f"{2**n} to {2 ** (n + 1) - 1} px", count) for n, count in sorted(self.tally.sides.items())]

    @property
    def feature_bytes(self) -> int:
        """What extraction would write: mean and deviation of latents and the text states, in 16 bits, one view each."""
        tally = self.tally
        pixels = sum(use.images * bucket.height * bucket.width for bucket, use in self.buckets)
        of_all = tally.kept / max(1, tally.placed)  # where only a sample was opened
        tokens = sum(n * count for source in tally.captions.values() for n, count in source.lengths.items())
        return round(of_all * pixels / 64 * self.latent_channels * 4) + tokens * self.text_dim * 2

    @property
    def verdict(self) -> str:
        """How many images can be trained on."""
        tally = self.tally
        captions = sum(source.count for source in tally.captions.values())
        unknown = sum(tally.unknown.values())
        lost = f"An unknown number of images is lost in {unknown:,} places, which extraction refuses. Besides: "
        looked = "" if tally.opened == tally.pairs else f" {tally.opened:,} images were opened."
        about = "An estimated " if 0 < tally.opened < tally.pairs else ""
        return (
            f"{lost if unknown else ''}{tally.rows:,} images with {captions:,} captions.{looked} {about}{tally.kept:,} "
            f"({share(tally.kept, tally.rows)}) can be trained on."
        )


def share(part: float, total: float) -> str:
    """A percentage that never says 0% or 100% of what is not quite."""
    percent = 100 * part / total if total else 0
    if 0 < percent < 0.1:
        return "under 0.1%"
    return "over 99.9%" if 99.9 < percent < 100 else f"{percent:.1f}%".replace(".0%", "%")


def median(captions: Captions) -> int:
    """Half of the captions have at most so many tokens."""
    below = 0
    for tokens, count in sorted(captions.lengths.items()):
        below += count
        if 2 * below >= captions.count:
            return tokens
    return 0


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain values; counts are of what was opened, but `kept` of all."""
    tally = report.tally
    return {
        "path": str(report.path),
        "layout": report.layout,
        "notes": report.notes,
        "rows": tally.rows,
        "pairs": tally.pairs,
        "opened": tally.opened,
        "kept": tally.kept,
        "dropped": {kind: count for kind, count in tally.dropped.items() if count},
        "lost_unknown": tally.unknown,
        "findings": [
            {
                "kind": finding.kind,
                "level": finding.level,
                "count": finding.count,
                "why": finding.why,
                "fix": finding.fix(report.path),
                "examples": [
                    {"key": one.key, "text": one.text} | ({"same_as": one.same_as.key} if one.same_as else {})
                    for one in finding.examples
                ],
            }
            for finding in report.findings
        ],
        "captions": {
            name: {"captions": one.count, "cut": one.cut, "median_tokens": median(one)}
            for name, one in tally.captions.items()
        },
        "max_tokens": tally.tokenizer.max_tokens,
        "base_size": tally.table.base_size,
        "buckets": [
            {"width": bucket.width, "height": bucket.height, "images": use.images, "cropped": use.cropped / use.images}
            for bucket, use in report.buckets
        ],
        "sides": dict(report.sides),
        "formats": tally.formats,
        "feature_bytes": report.feature_bytes,
    }


def lines(report: Report) -> Iterator[tuple[str, str]]:
    """The report line by line, each with its style."""
    tally = report.tally
    yield f"{report.path} ({report.layout})", "bold"
    yield report.verdict, ""
    for finding in report.findings:
        mark, colour = STYLES[finding.level]
        yield f"{mark} {finding.count:,} {finding.kind}{': ' if finding.why else ''}{finding.why}", colour
        for one in finding.examples[: 0 if finding.level == NOTE else SHOWN]:
            yield f"    {one.key}: {one.text}", "dim"
        if fix := finding.fix(report.path):
            yield f"    $ {fix}", "cyan"
    if not report.findings:
        yield "No problems were found.", "green"
    for name, one in sorted(tally.captions.items()):
        cut = f"{share(one.cut, one.count)} longer than {tally.tokenizer.max_tokens}"
        yield f"Captions ({name}): {one.count:,}, half of them up to {median(one)} tokens; {cut}.", ""
    if report.sides:
        yield "Sizes: " + ", ".join(f"{count:,} of {side}" for side, count in report.sides) + ".", ""
    for bucket, use in report.buckets:
        size, cropped = f"{bucket.width}x{bucket.height}", share(use.cropped, use.images)
        yield f"Bucket {size:>9}: {use.images:>9,} images, {cropped} cropped", ""
    if tally.placed:
        yield f"Features at {tally.table.base_size} px will take about {report.feature_bytes / 1e6:,.1f} MB.", ""
        yield f"    $ pixart data extract {report.path} FEATURES --base-size {tally.table.base_size}", "cyan"
    for note in report.notes:
        yield note, "dim"


def show(report: Report) -> None:
    """Print the report."""
    from rich.console import Console
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    for line, style in lines(report):
        console.print(Text(printable(line), style), soft_wrap=True)


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
