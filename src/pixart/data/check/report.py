"""From what was counted to a report: the verdict, the findings with their fixes, the size of the feature cache."""

import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.check.duplicates import Group, Near, PictureTable
from pixart.data.check.kinds import ATTENTION, DROPPED, NOTE, kind_of
from pixart.data.check.tally import EXAMPLES, Example, Tally
from pixart.data.pairs import InFile

GROUPS = 6  # of duplicates that a report shows
COMMON_SHARE = 0.01  # of all captions that one text may be
CROP_SHARE = 0.1
_ORDER = (DROPPED, ATTENTION, NOTE)


@dataclass(frozen=True)
class Finding:
    """One kind of thing found `count` times. `groups` are pictures that belong together, for duplicates."""

    kind: str
    level: str
    title: str
    count: int
    why: str
    fix: str | None
    examples: list[Example] = field(default_factory=list)
    groups: list[list[Example]] = field(default_factory=list)


@dataclass(frozen=True)
class Encoders:
    """What the size of features depends on: latent channels, width of the text states; rates are of this machine.

    `pixels_per_second` through the autoencoder and `tokens_per_second` through the text encoder; None where unknown.
    `measured` says whether the rates were measured in this run.
    """

    latent_channels: int
    text_dim: int
    pixels_per_second: float | None = None
    tokens_per_second: float | None = None
    measured: bool = False


@dataclass(frozen=True)
class Cache:
    """The feature folder that `pixart data extract` would make: bytes, and seconds where the rates are known."""

    pictures: int
    latent_bytes: int
    text_bytes: int
    read_seconds: float | None
    encode_seconds: float | None
    measured: bool


@dataclass(frozen=True)
class Report:
    """Everything that the terminal, the page and the JSON show."""

    path: Path
    layout: str
    notes: list[str]
    tally: Tally
    findings: list[Finding]
    cache: Cache | None
    seconds: float

    @property
    def kept(self) -> int:
        """Pictures that training would see, as far as was looked; with a sample, estimated from it."""
        return round(self.tally.rows * self.kept_share)

    @property
    def kept_share(self) -> float:
        tally = self.tally
        if not tally.rows:
            return 0.0
        before = tally.pairs - tally.without_caption
        candidates = sum(use.pictures for use in tally.buckets) + tally.dropped_looking
        lost = tally.dropped_looking / candidates if candidates else 0.0
        return before * (1 - lost) / tally.rows

    @property
    def troubles(self) -> list[Finding]:
        """What `--strict` fails for: all but the notes."""
        return [finding for finding in self.findings if finding.level != NOTE]


def make_report(
    path: Path, layout: str, notes: list[str], tally: Tally, pictures: PictureTable, encoders: Encoders, *,
    near: Near, batch_size: int, workers: int, seconds: float,
) -> Report:  # fmt: skip
    """Put all that was counted into words."""
    copies, exact = pictures.exact(GROUPS)
    findings = [_finding(path, tally, kind) for kind in tally.counts]
    findings += _duplicates(path, pictures, copies, exact, near)
    findings += _of_the_whole(path, tally, batch_size)
    findings.sort(key=lambda found: (_ORDER.index(found.level), -found.count))
    cache = _cache(tally, encoders, workers) if tally.looked else None
    return Report(path, layout, notes, tally, findings, cache, seconds)


def best_base_size(tally: Tally) -> int | None:
    """The largest of 256, 512, 1024 and 2048 px for which at most 5% of the pictures would be enlarged."""
    total = sum(tally.sides)
    fitting = [size for size in (256, 512, 1024, 2048) if sum(tally.sides[: size.bit_length() - 1]) <= 0.05 * total]
    return fitting[-1] if total and fitting else None


def _finding(path: Path, tally: Tally, kind: str) -> Finding:
    about = kind_of(kind)
    examples = sorted(tally.examples[kind].items, key=lambda example: example.key)
    level = DROPPED if tally.dropped[kind] or tally.unknown[kind] else about.level
    fix, why = about.fix, about.why
    if kind == "small":
        best = best_base_size(tally)
        if best and best < tally.table.base_size:
            fix = f"pixart data extract PATH PATH-features --base-size {best}"
            why += f" Nearly all of these pictures are large enough for {best} px."
    return Finding(kind, level, about.title, tally.counts[kind], why, _command(fix, path, examples), examples)


def _duplicates(path: Path, pictures: PictureTable, copies: int, exact: list[Group], near: Near) -> list[Finding]:
    def shown(groups: list[Group]) -> list[list[Example]]:
        out = []
        for group in groups:
            found = [pictures.find(row) for row in group.rows]
            out.append([Example(key, f"{group.count:,} of these", place) for key, place in found])
        return out

    findings = []
    if copies:
        about, groups = kind_of("duplicate"), shown(exact)
        fix = _command(about.fix, path, groups[0])
        findings.append(Finding("duplicate", about.level, about.title, copies, about.why, fix, groups=groups))
    if near.count:
        about, groups = kind_of("near-duplicate"), shown(near.groups)
        why = about.why + (" There are too many to compare them all." if near.partly else "")
        fix = _command(about.fix, path, groups[0])
        findings.append(Finding("near-duplicate", about.level, about.title, near.count, why, fix, groups=groups))
    return findings


def _of_the_whole(path: Path, tally: Tally, batch_size: int) -> list[Finding]:
    """Findings that are not about single pictures."""
    findings = []
    captions = sum(source.captions for source in tally.sources.values())
    common = [(text, n) for text, n in tally.common.most_common(EXAMPLES) if n > max(10, COMMON_SHARE * captions)]
    if common:
        about = kind_of("caption-common")
        examples = [Example("", f"at least {n:,} times", caption=text) for text, n in common]
        count = sum(n for _, n in common)
        fix = _command(about.fix, path, examples)
        findings.append(Finding("caption-common", about.level, about.title, count, about.why, fix, examples))
    placed = sum(use.pictures for use in tally.buckets)
    lost = sum(use.lost for use in tally.buckets)
    if placed and lost / placed > CROP_SHARE:
        about = kind_of("crop")
        why = f"{lost / placed:.0%} of the pictures' area is cropped away. {about.why}"
        examples = [example for _, example in tally.worst_crops]
        findings.append(Finding("crop", about.level, about.title, placed, why, _command(about.fix, path, []), examples))
    thin = [index for index, use in enumerate(tally.buckets) if 0 < use.pictures < batch_size]
    if thin and tally.looked == tally.pairs:
        about = kind_of("thin-bucket")
        names = ", ".join(f"{tally.table.buckets[i].width}x{tally.table.buckets[i].height}" for i in thin[:8])
        why = f"{names}{', ...' if len(thin) > 8 else ''} have fewer than {batch_size} pictures. {about.why}"
        findings.append(Finding("thin-bucket", about.level, about.title, len(thin), why, None))
    return findings


def _command(fix: str | None, path: Path, examples: list[Example]) -> str | None:
    """The command with the data set's path, and the first example's file, ready for a shell."""
    if fix is None:
        return None
    files = [example.place.path for example in examples if isinstance(example.place, InFile)]
    if "FILE" in fix and not files:
        return None  # inside a shard or a table, no other program can reach it
    name, file = str(path).rstrip("/"), files[0] if files else ""
    words = {"PATH": str(path), "PATH-aside": f"{name}-aside", "PATH-features": f"{name}-features"}
    words |= {"FILE": file, "FILE.png": f"{file}.png"}
    return " ".join(shlex.quote(words[word]) if word in words else word for word in fix.split(" "))


def _cache(tally: Tally, encoders: Encoders, workers: int) -> Cache:
    """Feature bytes: mean and deviation of the latents and the text states, fp16 (pixart.data.feature_shards)."""
    placed = sum(use.pictures for use in tally.buckets)
    scale = (
        (tally.pairs - tally.without_caption)
        * (placed / (placed + tally.dropped_looking) if placed else 0.0)
        / max(1, placed)
    )  # from the sample to all
    pixels = sum(use.pictures * b.height * b.width for use, b in zip(tally.buckets, tally.table.buckets, strict=True))
    pixels = round(pixels * scale)
    tokens = sum(source.tokens for source in tally.sources.values())
    encode = None
    if encoders.pixels_per_second and encoders.tokens_per_second:
        encode = pixels / encoders.pixels_per_second + tokens / encoders.tokens_per_second
    return Cache(
        pictures=round(placed * scale),
        latent_bytes=pixels // 64 * encoders.latent_channels * 2 * 2,
        text_bytes=tokens * encoders.text_dim * 2,
        read_seconds=tally.seconds / tally.looked * tally.pairs / max(1, workers) if tally.looked else None,
        encode_seconds=encode,
        measured=encoders.measured,
    )


def as_json(report: Report) -> dict:
    """The report as plain values: counts are of what was looked at, examples are named by key."""
    tally, table = report.tally, report.tally.table
    return {
        "path": str(report.path),
        "layout": report.layout,
        "notes": report.notes,
        "rows": tally.rows,
        "pairs": tally.pairs,
        "looked_at": tally.looked,
        "kept": report.kept,
        "dropped": {kind: count for kind, count in tally.dropped.items() if count},
        "lost_unknown": dict(tally.unknown),
        "findings": [_finding_json(finding) for finding in report.findings],
        "captions": {
            name: {"captions": s.captions, "cut": s.cut, "tokens": s.tokens} for name, s in tally.sources.items()
        },
        "max_tokens": tally.max_tokens,
        "base_size": table.base_size,
        "buckets": [
            {"width": b.width, "height": b.height, "ratio": b.ratio, "pictures": use.pictures,
             "cropped": use.lost / use.pictures if use.pictures else 0.0, "enlarged": use.enlarged}
            for b, use in zip(table.buckets, tally.buckets, strict=True) if use.pictures
        ],
        "formats": dict(tally.formats),
        "modes": dict(tally.modes),
        "bytes": tally.bytes,
        "cache": None if report.cache is None else vars(report.cache) | {},
        "seconds": round(report.seconds, 3),
    }  # fmt: skip


def _finding_json(finding: Finding) -> dict:
    examples = [vars_of(example) for example in finding.examples]
    groups = [[example.key for example in group] for group in finding.groups]
    return {
        "kind": finding.kind, "level": finding.level, "title": finding.title, "count": finding.count,
        "why": finding.why, "fix": finding.fix, "examples": examples, "groups": groups,
    }  # fmt: skip


def vars_of(example: Example) -> dict:
    """An example without its place, and without what is empty."""
    values = {"key": example.key, "text": example.text, "caption": example.caption, "cut": example.cut}
    return {name: value for name, value in values.items() if value}


def by_reason(tally: Tally) -> list[tuple[str, int]]:
    """(title, pictures) of what is dropped, most first."""
    counts = Counter({kind_of(kind).title: count for kind, count in tally.dropped.items() if count})
    return counts.most_common()
