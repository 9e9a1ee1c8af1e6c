"""How a report says numbers: counts, shares, bytes and times."""

from pixart.data.check.report import Report


def share(part: float, whole: float) -> str:
    """A percentage that never says 0% or 100% of what is not quite."""
    if not whole:
        return "0%"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "under 0.1%"
    if 99.9 < percent < 100:
        return "over 99.9%"
    return f"{percent:.1f}%".replace(".0%", "%")


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def verdict(report: Report) -> str:
    """The one sentence that matters."""
    tally = report.tally
    if tally.unknown:
        places = plural(sum(tally.unknown.values()), "place")
        return f"An unknown number of images is lost in {places}, which extraction refuses. Besides: {_holds(report)}"
    return _holds(report) if tally.rows else "There is nothing in it."


def _holds(report: Report) -> str:
    tally = report.tally
    captions = sum(source.captions for source in tally.sources.values())
    holds = f"{plural(tally.rows, 'picture')} with {plural(captions, 'caption')}"
    if not tally.looked and tally.pairs:
        return f"{holds}; the pictures themselves were not opened. {_outlook(report)}"
    if tally.looked < tally.pairs:
        return f"{holds}, of which {tally.looked:,} pictures were opened. {_outlook(report)}"
    return f"{holds}. {_outlook(report)}"


def _outlook(report: Report) -> str:
    tally = report.tally
    dropped = tally.rows - report.kept
    about = "About " if 0 < tally.looked < tally.pairs else ""
    if report.kept_share == 1:
        if not tally.looked:
            return "By names and captions, all of them can be trained on."
        return "All of those opened can be trained on." if about else "All of them can be trained on."
    if not report.kept:
        return "None of them can be trained on."
    start = f"{about}{share(report.kept, tally.rows)} can be trained on; "
    return f"{start}{about.lower()}{plural(max(dropped, 1), 'picture')} will be dropped."


def cache_size(report: Report) -> str:
    cache = report.cache
    return "unknown" if cache is None else size(cache.latent_bytes + cache.text_bytes)


def cache_time(report: Report) -> str:
    """What the feature cache would take here; honest about where the figure comes from."""
    cache = report.cache
    if cache is None or cache.read_seconds is None:
        return "unknown"
    reading = f"reading {duration(cache.read_seconds)} (measured)"
    if cache.encode_seconds is None:
        return f"{reading}; encoding unknown, --measure measures it"
    how = "measured" if cache.measured else "at the rate of docs/log.md; --measure measures it here"
    return f"{reading}, encoding {duration(cache.encode_seconds)} ({how})"
