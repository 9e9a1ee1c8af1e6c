"""The report on a terminal."""

from typing import TYPE_CHECKING

from pixart.data.check.report import Finding, Report, by_reason
from pixart.data.check.words import cache_size, cache_time, duration, plural, share, size, verdict
from pixart.data.pairs import printable

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = 2
_MARKS = {"dropped": ("✗", "red"), "attention": ("!", "yellow"), "note": ("·", "blue")}


def show(report: Report, console: "Console") -> None:
    """Print the report; `console` must have markup and highlighting off, since names may hold brackets."""
    from rich.text import Text

    tally = report.tally
    console.print(Text(printable(str(report.path)), style="bold"), soft_wrap=True)
    console.print(Text(report.layout, style="dim"))
    console.print()
    console.print(Text(verdict(report)))
    reasons = by_reason(tally)
    if reasons:
        console.print(Text("Dropped: " + ", ".join(f"{title.lower()} {count:,}" for title, count in reasons), "red"))
    for finding in report.findings:
        console.print()
        _finding(finding, console)
    if not report.findings:
        console.print(Text("Nothing to complain about.", style="green"))
    _captions(report, console)
    _buckets(report, console)
    if report.cache is not None:
        cache = report.cache
        console.print()
        console.print(
            Text.assemble(
                ("Feature cache", "bold"),
                f" at {tally.table.base_size} px: {cache_size(report)} for {plural(cache.pictures, 'picture')} "
                f"({size(cache.latent_bytes)} latents, {size(cache.text_bytes)} text); {cache_time(report)}.",
            )
        )
    for note in report.notes:
        console.print(Text(printable(note), style="dim"))
    console.print(Text(f"Checked in {duration(report.seconds)}.", style="dim"))


def _finding(finding: Finding, console: "Console") -> None:
    from rich.padding import Padding
    from rich.text import Text

    mark, colour = _MARKS[finding.level]
    console.print(Text.assemble((f"{mark} {finding.count:,} ", f"bold {colour}"), (finding.title, "bold")))
    console.print(Padding(Text(finding.why), (0, 0, 0, 2)))
    for group in finding.groups[:EXAMPLES]:
        names = ", ".join(printable(example.key) for example in group[:3])
        console.print(Text(f"  {group[0].text}: {names}", style="dim"), soft_wrap=True)
    for example in finding.examples[:EXAMPLES] if finding.level != "note" else ():
        says = f"{example.key}: {example.text}" if example.key else f"{example.text}: {example.caption[:80]}"
        cut = f"; cut: ... {example.cut[:100]}" if example.cut else ""
        console.print(Text(printable(f"  {says}{cut}"), style="dim"), soft_wrap=True)
    if finding.fix:
        console.print(Text(f"  $ {finding.fix}", style="cyan"), soft_wrap=True)


def _captions(report: Report, console: "Console") -> None:
    from rich.text import Text

    for name, lengths in sorted(report.tally.sources.items()):
        counts = lengths.histogram
        total, median = 0, 0
        while 2 * total < lengths.captions:
            total += counts[median]
            median += 1
        console.print()
        console.print(
            Text.assemble(
                (f"Captions ({printable(name)})", "bold"),
                f": {lengths.captions:,}, half of them up to {median - 1} tokens; "
                f"{share(lengths.cut, lengths.captions)} longer than {report.tally.max_tokens}.",
            )
        )


def _buckets(report: Report, console: "Console") -> None:
    from rich.text import Text

    tally = report.tally
    used = [(b, use) for b, use in zip(tally.table.buckets, tally.buckets, strict=True) if use.pictures]
    if not used:
        return
    console.print()
    console.print(Text.assemble(("Buckets", "bold"), f" at {tally.table.base_size} px"))
    most = max(use.pictures for _, use in used)
    for bucket, use in used:
        bar = "█" * max(1, round(30 * use.pictures / most))
        name = f"{bucket.width}x{bucket.height}"
        cropped = f"{share(use.lost, use.pictures)} cropped"
        console.print(Text.assemble(f"  {name:>9} ", (f"{bar:<30}", "magenta"), f" {use.pictures:>9,}  {cropped}"))
