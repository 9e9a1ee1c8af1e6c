"""The report as one HTML page that needs nothing else: pictures inline, no script, and no request to any host."""

import base64
import io
from html import escape
from importlib.resources import files

from pixart.buckets import Bucket
from pixart.data.check.report import Finding, Report, by_reason
from pixart.data.check.tally import Example
from pixart.data.check.tokens import LONGEST
from pixart.data.check.words import cache_size, cache_time, duration, plural, share, size, verdict
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, Location, printable, read_bytes

THUMB_SIDE = 224  # px; shown at up to 140, or sharper
_COLOURS = ("--drop", "--warn", "--accent", "--note", "--soft")
# Nothing may be fetched, run or embedded, whatever a file name or a caption may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """The whole page. Reads the pictures of its examples again, to draw them small."""
    tally = report.tally
    name = _text(report.path.name or str(report.path))
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="soft">{_text(report.layout)} · {_text(str(report.path))}</p>',
        f'<p class="verdict">{_text(verdict(report))}</p>',
        _verdict_bar(report),
        _tiles(report),
        "<h2>A look at it</h2>" + _sheet(tally.sheet.items) if tally.sheet.items else "",
        "<h2>What was found</h2>" + _findings(report),
        _buckets(report),
        _captions(report),
        _pictures(report),
        _cache(report),
        _footer(report),
    ]
    style = files("pixart.data.check").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: data check</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(part for part in parts if part)}</main></body></html>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def thumbnail(place: Location | None) -> str | None:
    """A data URI of the picture, at most THUMB_SIDE px, or None where it cannot be opened."""
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


def _verdict_bar(report: Report) -> str:
    tally = report.tally
    if not tally.rows:
        return ""
    reasons = by_reason(tally)
    shown, rest = reasons[:4], sum(count for _, count in reasons[4:])
    pieces = [("--keep", "can be trained on", report.kept)]
    pieces += [(colour, title, count) for colour, (title, count) in zip(_COLOURS, shown, strict=False)]
    pieces += [(_COLOURS[4], "Other reasons", rest)] if rest else []
    bar = "".join(f'<i style="flex:{count} 0 0;background:var({colour})"></i>' for colour, _, count in pieces if count)
    key = "".join(
        f'<li><b style="background:var({colour})"></b>{_text(title)}: {count:,}</li>' for colour, title, count in pieces
    )
    return f'<div class="bar">{bar}</div><ul class="key">{key}</ul>'


def _tiles(report: Report) -> str:
    tally = report.tally
    captions = sum(source.captions for source in tally.sources.values())
    tiles = [(f"{tally.rows:,}", "pictures"), (f"{captions:,}", "captions")]
    if tally.looked:
        mean = tally.pixels / max(1, sum(tally.formats.values())) / 1e6
        tiles += [(size(tally.bytes), "read"), (f"{mean:.2f} MP", "in a picture, on average")]
        tiles += [(cache_size(report), f"feature cache at {tally.table.base_size} px")]
    tiles += [(f"{len(report.troubles):,}", "things to look at")]
    return '<div class="tiles">' + "".join(f'<div class="tile"><strong>{_text(big)}</strong><span class="soft small">'
        f"{_text(small)}</span></div>" for big, small in tiles) + "</div>"  # fmt: skip


def _sheet(examples: list[Example]) -> str:
    cells = []
    for example in sorted(examples, key=lambda item: item.key):
        picture = thumbnail(example.place)
        if picture:
            words = _text(f"{example.caption or 'no caption'} ({example.key})")
            cells.append(f'<figure title="{words}"><img src="{picture}" alt="{words}"></figure>')
    hint = "Drawn at random; a caption shows when a picture is pointed at."
    return f'<div class="sheet">{"".join(cells)}</div><p class="soft small">{hint}</p>'


def _findings(report: Report) -> str:
    if not report.findings:
        return '<p class="panel">Nothing to complain about.</p>'
    return f'<div class="findings">{"".join(map(_finding, report.findings))}</div>'


def _finding(finding: Finding) -> str:
    badge = {"dropped": "will be dropped", "attention": "worth a look", "note": "good to know"}[finding.level]
    fix = f"<pre><code>{_text(finding.fix)}</code></pre>" if finding.fix else ""
    return (
        f'<section class="finding {finding.level}"><div class="head"><span class="count">{finding.count:,}</span>'
        f'<h3>{_text(finding.title)}</h3><span class="badge">{badge}</span></div><p>{_text(finding.why)}</p>{fix}'
        f"{_examples(finding)}</section>"
    )


def _examples(finding: Finding) -> str:
    if finding.groups:
        groups = "".join(
            f'<div class="group"><p class="soft small">{_text(group[0].text)}</p>{"".join(map(_shot, group))}</div>'
            for group in finding.groups
        )
        return f'<details open><summary>The largest groups</summary><div class="shots">{groups}</div></details>'
    if not finding.examples:
        return ""
    if any(example.caption for example in finding.examples):
        words = "".join(map(_words, finding.examples))
        return f'<details open><summary>Some of them</summary><ul class="words">{words}</ul></details>'
    shots = "".join(_shot(example, text=True) for example in finding.examples)
    opened = "" if finding.level == "note" else " open"
    return f'<details{opened}><summary>Some of them</summary><div class="shots">{shots}</div></details>'


def _words(example: Example) -> str:
    cut = f"<del>{_text(example.cut)}</del>" if example.cut else ""
    name = f"{example.key}: " if example.key else ""
    return f'<li><span class="soft">{_text(name + example.text)}</span><br>{_text(example.caption)}{cut}</li>'


def _shot(example: Example, text: bool = False) -> str:
    picture = thumbnail(example.place)
    if picture is None:
        drawn = '<div class="none" aria-label="no picture">?</div>'
    else:
        drawn = f'<span class="frame"><img src="{picture}" alt="">{_cut_off(example)}</span>'
    says = f"<span>{_text(example.text)}</span>" if text else ""
    return f'<div class="shot">{drawn}<span class="name">{_text(example.key)}</span>{says}</div>'


def _cut_off(example: Example) -> str:
    """The parts of a picture that its bucket does not keep, in red."""
    if example.kept is None:
        return ""
    left, top, right, bottom = (100 * side for side in example.kept)
    if right - left < 100:
        sides = [f"left:0;top:0;bottom:0;width:{left:.2f}%", f"right:0;top:0;bottom:0;width:{100 - right:.2f}%"]
    else:
        sides = [f"left:0;right:0;top:0;height:{top:.2f}%", f"left:0;right:0;bottom:0;height:{100 - bottom:.2f}%"]
    return "".join(f'<i class="off" style="{side}"></i>' for side in sides)


def _buckets(report: Report) -> str:
    tally = report.tally
    used = [(b, use) for b, use in zip(tally.table.buckets, tally.buckets, strict=True) if use.pictures]
    if not used:
        return ""
    most = max(use.pictures for _, use in used)
    tiles = "".join(_bucket(bucket, use.pictures, use.lost / use.pictures, most) for bucket, use in used)
    placed = sum(use.pictures for _, use in used)
    lost = sum(use.lost for _, use in used) / placed
    crops = "".join(_shot(example, text=True) for _, example in tally.worst_crops)
    worst = f'<div class="panel"><h3>What is lost most</h3><div class="shots">{crops}</div></div>' if crops else ""
    return (
        f"<h2>Buckets at {tally.table.base_size} px</h2>"
        f"<p>{plural(placed, 'picture')} in {len(used)} of {len(tally.table.buckets)} shapes. The fuller the "
        f"shape, the more pictures it has. Cropping takes {share(lost, 1)} of their area.</p>"
        f'<div class="panel buckets">{tiles}</div>'
        f'<h2>Cropped away</h2><div class="two"><div class="panel"><h3>Share of a picture outside its bucket</h3>'
        f'{_chart(tally.lost[:10], None)}<div class="axis"><span>0%</span><span>25%</span><span>50%</span></div></div>'
        f"{worst}</div>"
    )


def _bucket(bucket: Bucket, pictures: int, lost: float, most: int) -> str:
    longest = max(bucket.width, bucket.height)
    width, height = 68 * bucket.width / longest, 68 * bucket.height / longest
    return (
        f'<div class="bucket"><div class="shape"><span style="width:{width:.0f}px;height:{height:.0f}px">'
        f'<i style="height:{max(3, 100 * pictures / most):.0f}%"></i></span></div><b>{pictures:,}</b>'
        f'{bucket.width} × {bucket.height}<br><span class="soft">{share(lost, 1)} cropped</span></div>'
    )


def _captions(report: Report) -> str:
    tally = report.tally
    if not tally.sources:
        return ""
    panels = []
    for name, lengths in sorted(tally.sources.items()):
        last = max(n for n, count in enumerate(lengths.histogram) if count)
        # At most 64 bars; the limit is between two of them.
        step = max(1, -(-min(LONGEST, max(last, tally.max_tokens) + 1) // 64))
        bars = [sum(lengths.histogram[n : n + step]) for n in range(0, max(last, tally.max_tokens) + 1, step)]
        end = f"{len(bars) * step - 1}{' and more' if last == LONGEST else ''}"
        panels.append(
            f'<div class="panel"><h3>{_text(name)}: {plural(lengths.captions, "caption")}</h3>'
            f"{_chart(bars, (tally.max_tokens + 1) / step)}"
            f'<div class="axis"><span>0 tokens</span><span>{end}</span></div><p class="small">'
            f"Longer than the {tally.max_tokens} tokens that are read: {lengths.cut:,} "
            f"({share(lengths.cut, lengths.captions)}).</p></div>"
        )
    return f'<h2>Captions</h2><div class="two">{"".join(panels)}</div>'


def _chart(bars: list[int], limit: float | None) -> str:
    """Bars, and a dashed line at `limit` (in bars), beyond which they are red."""
    most = max(1, *bars)
    drawn = "".join(
        f'<rect x="{index + 0.08:.2f}" y="{100 - max(1.5, 100 * count / most):.1f}" width="0.84" '
        f'height="{max(1.5, 100 * count / most):.1f}"{" class=over" if limit and index + 0.5 > limit else ""}>'
        f"<title>{count:,}</title></rect>"
        for index, count in enumerate(bars)
        if count
    )
    line = f'<line x1="{limit:.2f}" x2="{limit:.2f}" y1="0" y2="100"/>' if limit else ""
    return f'<svg class="chart" viewBox="0 0 {len(bars)} 100" preserveAspectRatio="none" role="img">{drawn}{line}</svg>'


def _pictures(report: Report) -> str:
    tally = report.tally
    total = sum(tally.formats.values())
    if not total:
        return ""
    sides = [(2**n, count) for n, count in enumerate(tally.sides) if count]
    rows = [("Format", tally.formats.most_common()), ("Colour mode", tally.modes.most_common())]
    rows.append(("Side of a square of the same area", [(f"{low:,} to {2 * low - 1:,} px", n) for low, n in sides]))
    panels = "".join(
        f'<div class="panel scroll"><table><tr><th>{_text(head)}</th><th class="n">Pictures</th></tr>'
        + "".join(f'<tr><td>{_text(name)}</td><td class="n">{n:,}</td></tr>' for name, n in values)
        + "</table></div>"
        for head, values in rows
    )
    return f'<h2>Pictures</h2><div class="two">{panels}</div>'


def _cache(report: Report) -> str:
    if report.cache is None:
        return ""
    cache = report.cache
    return (
        f'<h2>Feature cache</h2><div class="panel"><p><b>{_text(cache_size(report))}</b> for '
        f"{plural(cache.pictures, 'picture')}: {_text(size(cache.latent_bytes))} of latents and "
        f"{_text(size(cache.text_bytes))} of text states; without mirrored copies.</p>"
        f"<p>Time here: {_text(cache_time(report))}.</p></div>"
    )


def _footer(report: Report) -> str:
    notes = "".join(f"<p>{_text(note)}</p>" for note in report.notes)
    looked = "all pictures" if report.tally.looked == report.tally.pairs else plural(report.tally.looked, "picture")
    return (
        f"<footer>{notes}<p>Made by <code>pixart data check</code>, which looked at {looked} in "
        f"{duration(report.seconds)}. This file holds its pictures itself and asks no other "
        f"computer for anything.</p></footer>"
    )
