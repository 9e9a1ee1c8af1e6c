"""Table and plot of what `run.py` measured.

    python benchmarks/frugality/report.py runs/frugality/results.json --plot docs/images/frugality.svg

The headline is the factor by which ours needs fewer FLOPs to reach the error that the tuned official objective has at
the end of its budget, and the same beside the official recipe. An arm that never gets there is "more than".
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from arms import STAGE1_SHARES, TUNING, WATERFALL

ARMS = {"official": "official recipe", "tuned": "official objective, tuned", "ours": "ours"}
COLOURS = {"official": "#9ca3af", "tuned": "#c2571a", "ours": "#1d6fb8"}
SETS = {"cells": "held-out pictures", "concepts": "concepts never seen"}
FAR = 10  # times the best error; a curve that never comes nearer would press the others flat
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 70, 46, 24, 56


def seeds_of(results: dict, arm: str) -> list[dict]:
    return [run for name, run in results.items() if name.startswith(f"arm/{arm}/")]


def spread(values: list[float]) -> str:
    """Mean, and how far the furthest seed lies from it."""
    mean = statistics.mean(values)
    return f"{mean:.4f} ± {max(abs(value - mean) for value in values):.4f}"


def mean_curve(runs: list[dict]) -> list[tuple[float, float]]:
    """(FLOPs, error on held-out pictures), the mean over seeds at every point that all of them have."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [(point[0]["flops"], statistics.mean(p["cells"] for p in point)) for point in points]


def flops_to(curve: list[tuple[float, float]], error: float) -> float | None:
    """FLOPs at which a curve first comes down to an error, read between its points; None if it never does."""
    before = None
    for flops, value in curve:
        if value <= error:
            if before is None:
                return flops
            share = (before[1] - error) / (before[1] - value)
            return math.exp(math.log(before[0]) + share * (math.log(flops) - math.log(before[0])))
        before = (flops, value)
    return None


def times_fewer(slow: list[tuple[float, float]], fast: list[tuple[float, float]]) -> str:
    """How many times fewer FLOPs `fast` needs to reach the error that `slow` ends with."""
    flops, error = slow[-1]
    reached = flops_to(fast, error)
    if reached is None:
        return "never reached"
    return f"{'at least ' if reached == fast[0][0] else ''}{flops / reached:.1f} times"


def table(results: dict) -> list[str]:
    lines = ["| Arm | Seeds | FLOPs | Held-out pictures | Concepts never seen |", "| --- | --- | --- | --- | --- |"]
    for arm, title in ARMS.items():
        runs = seeds_of(results, arm)
        if runs:
            ends = [run["curve"][-1] for run in runs]
            figures = " | ".join(spread([end[name] for end in ends]) for name in SETS)
            lines.append(f"| {title} | {len(runs)} | {ends[0]['flops']:.1e} | {figures} |")
    return lines


def headline(results: dict) -> list[str]:
    curves = {arm: mean_curve(runs) for arm in ARMS if (runs := seeds_of(results, arm))}
    lines = []
    for slow, fast in (("tuned", "ours"), ("official", "ours"), ("official", "tuned")):
        if slow in curves and fast in curves:
            lines.append(
                f"- To the error that *{ARMS[slow]}* ends with ({curves[slow][-1][1]:.4f} at {curves[slow][-1][0]:.1e} "
                f"FLOPs), *{ARMS[fast]}* needs fewer FLOPs by: {times_fewer(curves[slow], curves[fast])}."
            )
    return lines


def tuning(results: dict) -> list[str]:
    lines = ["| Arm | Trial | Tuning pictures | Held-out pictures |", "| --- | --- | --- | --- |"]
    for arm, trials in TUNING.items():
        for trial in trials:
            if run := results.get(f"tuning/{arm}/{trial}"):
                end = run["curve"][-1]
                lines.append(f"| {ARMS[arm]} | {trial} | {end['tuning']:.4f} | {end['cells']:.4f} |")
    return lines


def waterfall(results: dict) -> list[str]:
    lines = ["| Step | Held-out pictures | Concepts never seen |", "| --- | --- | --- |"]
    for step in WATERFALL:
        if run := results.get(f"waterfall/{step}"):
            end = run["curve"][-1]
            lines.append(f"| {step} | {end['cells']:.4f} | {end['concepts']:.4f} |")
    return lines


def stage1(results: dict) -> list[str]:
    """Arms with and without a stage 1, each with the same FLOPs in all."""
    lines = ["| FLOPs for stage 1 | Seeds | Held-out pictures | Concepts never seen |", "| --- | --- | --- | --- |"]
    for share, runs in [("none", seeds_of(results, "ours"))] + [
        (share, [run for name, run in results.items() if name.startswith(f"stage1/{share}/")])
        for share in STAGE1_SHARES
    ]:
        if runs:
            figures = " | ".join(spread([run["curve"][-1][name] for run in runs]) for name in SETS)
            lines.append(f"| {share} | {len(runs)} | {figures} |")
    return lines


def plot(results: dict) -> str:
    """Error against FLOPs as SVG, both axes logarithmic; a thin line a seed."""
    curves = {arm: [[(p["flops"], p["cells"]) for p in run["curve"]] for run in seeds_of(results, arm)] for arm in ARMS}
    best = min(error for arm in curves.values() for curve in arm for _, error in curve)
    far = {arm for arm, lines in curves.items() if lines and min(e for line in lines for _, e in line) > FAR * best}
    every = [point for arm in curves if arm not in far for curve in curves[arm] for point in curve]
    (x0, x1), (y0, y1) = ((min(v) * 0.94, max(v) * 1.06) for v in zip(*every, strict=True))

    def at(flops: float, error: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log(flops / x0) / math.log(x1 / x0)
        y = TOP + (HEIGHT - TOP - BOTTOM) * math.log(y1 / error) / math.log(y1 / y0)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="16">Held-out denoising error against training FLOPs</text>',
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 10}" text-anchor="middle" fill="#6b7280">training FLOPs</text>',
    ]
    for error in ticks(y0, y1):
        y = at(x0, error).split(",")[1]
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end" fill="#6b7280">{error:g}</text>')
    for flops in ticks(x0, x1):
        if f"{flops:e}"[0] in "6789":
            continue  # their labels would run into each other
        x = at(flops, y0).split(",")[0]
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#6b7280">{flops:.0e}</text>')
    for number, (arm, title) in enumerate(ARMS.items()):
        for curve in curves[arm] if arm not in far else []:
            points = " ".join(at(*point) for point in curve)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" stroke-width="1.8"/>')
        y = TOP + 16 + 20 * number
        parts.append(f'<rect x="{WIDTH - 230}" y="{y - 9}" width="18" height="4" fill="{COLOURS[arm]}"/>')
        beyond = f" ({min(e for line in curves[arm] for _, e in line):.0f}: far above)" if arm in far else ""
        parts.append(f'<text x="{WIDTH - 204}" y="{y}">{title}{beyond}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two figures; every digit where they are close together."""
    digits = (1, 2, 5) if high / low > 20 else range(1, 10)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    seconds = sum(run["cpu_seconds"] for name, run in results.items() if name != "budgets")
    for part in (table(results), headline(results), tuning(results), waterfall(results), stage1(results)):
        print("\n".join(part), end="\n\n")
    print(f"{len(results) - 1} runs, {seconds / 3600:.1f} core-hours.")
    if given.plot:
        given.plot.write_text(plot(results))


if __name__ == "__main__":
    main()
