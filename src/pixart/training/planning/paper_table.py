"""The table that `pixart plan paper/all` ends with: published costs beside our own arithmetic."""

from dataclasses import replace

from pixart.training.planning.hardware import Hardware, named
from pixart.training.planning.paper_costs import PUBLISHED, STAGES, V100_PER_A100


def print_paper_costs(*, price: float | None, utilisation: float | None, grid: float) -> None:
    """Published A100 days, USD and CO2 of six models; PixArt-α's stages; and how far our estimates agree."""
    a100, v100 = (
        replace(gpu, price=gpu.price if price is None else price, utilisation=utilisation or gpu.utilisation)
        for gpu in (named("a100"), named("v100"))
    )
    print("Published training costs, and the same A100 days at the price, power and grid assumed here")
    columns = f"{'A100 days':>11}{'USD':>12}{'ours':>12}{'CO2':>8}{'ours':>8}"
    print(f"  {'model':18}{'params':>7}{'images':>9}{'FID':>7}{columns}")
    for row in PUBLISHED:
        hours = row.days * 24
        tonnes = hours * a100.watts / 1000 * grid / 1e6
        print(
            f"  {row.name:18}{row.parameters:>7}{row.images:>9}{row.fid:>7.2f}{row.days:>11,.0f}"
            f"{row.thousand_usd * 1000:>12,.0f}{hours * a100.price:>12,.0f}{row.tonnes:>6,.1f} t{tonnes:>6,.1f} t"
        )
    print("  FID is zero-shot on COCO, 30,000 pictures, as published; the others' days are as PixArt-α states them.")
    print("\nPixArt-α's stages: published V100 days, and ours from FLOPs")
    print(f"  {'stage':20}{'steps':>9}{'batch':>8}{'FLOPs':>10}{'published':>11}{'ours':>8}{'':>8}{'implied use':>13}")
    for stage in STAGES:
        ours = v100_days(stage.flops, v100)
        print(
            f"  {stage.name:20}{stage.steps:>9,}{stage.batch_size:>8,}{stage.flops:>10.1e}{stage.v100_days:>11,.0f}"
            f"{ours:>8,.0f}{ours / stage.v100_days - 1:>8.0%}{stage.implied_utilisation(v100):>13.1%}"
        )
    flops, published = sum(s.flops for s in STAGES), sum(s.v100_days for s in STAGES)
    ours = v100_days(flops, v100)
    without = v100_days(flops - STAGES[-1].flops, v100)
    print(
        f"  {'all (v2, v3)':20}{'':17}{flops:>10.1e}{published:>11,.0f}{ours:>8,.0f}{ours / published - 1:>8.0%}"
        f"{flops / (published * 86_400 * v100.peak):>13.1%}\n"
    )
    days = flops / (86_400 * a100.peak * a100.utilisation)
    first = (published - STAGES[-1].v100_days) / V100_PER_A100
    for line in (
        "Implied use: the share of a V100's peak at which these FLOPs take the published days; activations that the "
        "official trainer",
        "computes again, a third more, are not counted in it, so the cards were busier than that.",
        f"In A100 days as the paper converts (V100 days / {V100_PER_A100}): published 753 with the 1024-px part "
        "(v2, v3) and 675",
        f"without it (v1; the table gives {first:,.0f}); ours {ours / V100_PER_A100:,.0f} and "
        f"{without / V100_PER_A100:,.0f}.",
        f"Straight from FLOPs at the A100's assumed {a100.utilisation:.0%}: {days:,.0f} A100 days, "
        f"{days * 24 * a100.price:,.0f} USD.",
        "Money: the published USD are 2.13 to 2.14 an A100 hour for the five others, and 1.60 (v1) and 1.57 (v2, v3)",
        f"for PixArt-α; at 2.14 for all it would be {675 * 24 * 2.14:,.0f} and {753 * 24 * 2.14:,.0f} USD.",
        f"CO2: the published bars are 22 to 26 g an A100 hour; {a100.watts:g} W on a grid of {grid:g} g/kWh emit "
        f"{a100.watts * grid / 1000:,.0f} g.",
        "The ratios between the models agree, the tonnes do not.",
    ):
        print(line)


def v100_days(flops: float, v100: Hardware) -> float:
    return flops / (86_400 * v100.peak * v100.utilisation)
