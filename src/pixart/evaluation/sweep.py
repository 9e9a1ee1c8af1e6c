"""Guidance as a curve: what following the caption more strongly costs in likeness to true pictures."""

import math
from html import escape

from pixart.errors import UsageError
from pixart.evaluation.report import COPY, DRAWN, REAL, columns
from pixart.evaluation.table import aligned, written

MOST = 20
ALIGNMENT, FIDELITY = "retrieval_at_1", "kernel_distance_judge"
FONT = 'font-family="sans-serif" font-size="12"'
MIDDLE = 'text-anchor="middle"'
HALO = 'paint-order="stroke" stroke="white" stroke-width="3"'
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 420, 70, 30, 20, 60


def read_scales(words: str) -> list[float]:
    """Guidance scales from "1,1.5,2". Raises UsageError."""
    try:
        scales = [float(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise UsageError(f"--guidance-sweep {words}: give numbers with commas between, such as 1,2,4.5.") from None
    if not 2 <= len(scales) <= MOST or len(set(scales)) < len(scales) or not all(0 <= scale <= 50 for scale in scales):
        raise UsageError(f"--guidance-sweep {words}: give 2 to {MOST} different scales from 0 to 50.")
    return sorted(scales)


def sweep_table(sweep: list[dict]) -> str:
    """One line for each scale: alignment, fidelity by both kinds of features."""
    head = [
        "guidance",
        "own caption first of 500",
        "kernel distance, judge",
        "kernel distance, plain",
        "style right",
    ]
    rows = [head]
    for told in sweep:
        found = columns(told)[DRAWN]["all"]
        rows.append(
            [
                f"{told['protocol']['guidance_scale']:g}",
                written(found[ALIGNMENT], "share"),
                written(found[FIDELITY], "distance"),
                written(found["kernel_distance_plain"], "distance"),
                written(found["style_accuracy"], "share"),
            ]
        )
    return aligned(rows)


def as_svg(sweep: list[dict]) -> str:
    """Kernel distance to the right, retrieval upwards, one point for each scale, with 95% intervals as bars."""
    points = []
    for told in sweep:
        found = columns(told)[DRAWN]["all"]
        points.append((told["protocol"]["guidance_scale"], found[FIDELITY], found[ALIGNMENT]))
    marks = {name: columns(sweep[0])[name]["all"] for name in (REAL, COPY)}
    xs = [v for _, x, _ in points for v in (x.low, x.high)] + [m[FIDELITY].value for m in marks.values()]
    ys = [v for _, _, y in points for v in (y.low, y.high)] + [m[ALIGNMENT].value for m in marks.values()]
    (x_low, x_high), (y_low, y_high) = _around(xs), (max(0.0, _around(ys)[0]), min(1.0, _around(ys)[1]))

    def right(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for x in _round_values(x_low, x_high):
        parts.append(f'<path d="M{right(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{right(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    for y in _round_values(100 * y_low, 100 * y_high):
        parts.append(f'<path d="M{LEFT} {down(y / 100):.1f}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(y / 100) + 4:.1f}" text-anchor="end">{y:g}%</text>')
    for name, mark in marks.items():
        x, y = right(mark[FIDELITY].value), down(mark[ALIGNMENT].value)
        parts.append(f'<path d="M{x - 5:.1f} {y:.1f}h10m-5 -5v10" stroke="#777" stroke-width="2"/>')
        anchor, aside = ("end", -8) if x > WIDTH / 2 else ("start", 8)
        parts.append(
            f'<text x="{x + aside:.1f}" y="{y + 14:.1f}" fill="#555" text-anchor="{anchor}">{escape(name)}</text>'
        )
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#999"/>')
    path = "L".join(f"{right(x.value):.1f} {down(y.value):.1f}" for _, x, y in points)
    parts.append(f'<path d="M{path}" fill="none" stroke="#1b6ca8" stroke-width="2"/>')
    for scale, x, y in points:
        cx, cy = right(x.value), down(y.value)
        parts.append(f'<path d="M{right(x.low):.1f} {cy:.1f}H{right(x.high):.1f}" stroke="#1b6ca8" opacity="0.4"/>')
        parts.append(f'<path d="M{cx:.1f} {down(y.low):.1f}V{down(y.high):.1f}" stroke="#1b6ca8" opacity="0.4"/>')
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="#1b6ca8"/>')
        parts.append(f'<text x="{cx + 7:.1f}" y="{cy - 7:.1f}" font-weight="bold" {HALO}>{scale:g}</text>')
    title = f"{sweep[0]['model']}: guidance scales, {sweep[0]['protocol']['num']} held-out captions"
    below = "kernel distance x 1000 (left is better); bars: 95%"
    parts += [
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 14}" {MIDDLE}>{below}</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" {MIDDLE}>own caption first of 500</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _round_values(low: float, high: float) -> list[float]:
    """Some 4 to 9 multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    room = (high - low) / 4
    power = 10 ** math.floor(math.log10(room))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= room)
    return [round(step * k, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _around(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or 1.0
    return low - room, high + room
