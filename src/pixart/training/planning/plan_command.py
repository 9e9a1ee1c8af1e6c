"""`pixart plan RECIPE`: what a training needs and costs, as a table on stdout."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from pixart.errors import UsageError
from pixart.training.planning.hardware import GPUS, GRIDS, Hardware, grid_intensity, named, this_machine

BUSY = 0.25  # share of the measured time without a processor of which nothing is said: threads wait for each other

USAGE = """usage: pixart plan RECIPE [--hardware NAME] [--price USD] [--grid-intensity G] [--utilisation X] [--count N]
                   [--json] [--dotted.override VALUE ...]

What a training needs and costs, before it is paid for. A few real steps are taken here to measure this machine.

  RECIPE             a recipe as `pixart train` takes it; paper/all also compares with the paper's published costs
  --hardware NAME    this, all (the default), or one of {gpus}
  --price USD        price of one processor's hour, instead of the table's assumption
  --grid-intensity G grams of CO2 per kWh, or one of {grids}; {world} (the world's mean in 2023) by default
  --utilisation X    share of the peak that training reaches on named hardware, 0 to 1, instead of the assumption
  --count N          how many processors share the work; scaling is taken to be perfect
  --json             one JSON object instead of the tables"""

OPTIONS = ("--hardware", "--price", "--grid-intensity", "--utilisation", "--count")


def run(arguments: list[str]) -> int:
    """Everything after `pixart plan`. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(gpus=", ".join(gpu.name for gpu in GPUS), grids=", ".join(GRIDS), world=GRIDS["world"]))
        return 0 if arguments else 2
    from pixart.training.chain import resolve

    name, as_json = arguments[0], "--json" in arguments
    options, overrides = _take_options([a for a in arguments[1:] if a != "--json"])
    grid = grid_intensity(options.get("--grid-intensity", "world"))
    price = _number(options, "--price", 0, 1e4)
    utilisation = _number(options, "--utilisation", 1e-3, 1)
    count = int(_number(options, "--count", 1, 1e5) or 1)
    wanted = options.get("--hardware", "all").lower()
    gpus = [] if wanted == "this" else list(GPUS) if wanted == "all" else [named(wanted)]
    gpus = [_changed(gpu, price, utilisation) for gpu in gpus]
    plans = [_plan(stage, gpus, wanted, price, grid, count) for stage in resolve(name, overrides)]
    if as_json:
        print(json.dumps({"recipe": name, "grid_g_per_kwh": grid, "stages": plans}, indent=1))
        return 0
    for plan in plans:
        _print_plan(plan, count)
    if len(plans) > 1:
        _print_total(name, plans, count)
    print(f"\n{_assumptions(gpus, wanted, grid)}")
    if name == "paper/all":
        from pixart.training.planning.paper_table import print_paper_costs

        print()
        print_paper_costs(price=price, utilisation=utilisation, grid=grid)
    return 0


def _plan(stage, gpus: list[Hardware], wanted: str, price: float | None, grid: float, count: int) -> dict:
    """Everything about one recipe, as JSON values."""
    from pixart.training.planning.plan import bill, build_network, network_config, works
    from pixart.training.planning.speed import MEASURED_STEPS, measure

    name, recipe = stage.name, stage.recipe
    found = works(recipe)
    plan = {
        "recipe": name,
        "network": _network_line(build_network, recipe, network_config(recipe)),
        "steps": sum(work.steps for work in found),
        "images": sum(work.images for work in found),
        "flops": sum(work.flops for work in found),
        "hardware": {},
    }
    if wanted in ("this", "all"):
        print(f"{name}: measuring {MEASURED_STEPS} steps of each picture size here ...", file=sys.stderr, flush=True)
        speeds = {measured.size: measured for measured in measure(recipe)}
        plan["measured"] = [asdict(measured) for measured in speeds.values()]
        total = None
        for work in works(recipe, fused_attention=_has_gpu()):
            machine = _changed(this_machine(speeds[work.size].speed), price, None)
            part = bill(work, machine, grid=grid, processors=count)
            total = part if total is None else total + part
        plan["hardware"]["this"] = asdict(total) | {"fits": total.memory <= machine.memory}
    for gpu in gpus:
        bills = [bill(work, gpu, grid=grid, processors=count) for work in found]
        total = bills[0]
        for part in bills[1:]:
            total = total + part
        plan["hardware"][gpu.name] = asdict(total) | {
            "fits": total.memory <= gpu.memory,
            "largest_batch": max(
                0, min(int((gpu.memory * 0.9 - work.state_bytes) / max(1, work.image_bytes)) for work in found)
            ),
        }
    receipt = _receipt(recipe.run)
    if receipt:
        plan["receipt"] = receipt
    return plan


def _network_line(build, recipe, config) -> str:
    import torch

    with torch.device("meta"):
        model = build(recipe, config)
    return f"{type(model).__name__} with {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _receipt(run: Path) -> dict | None:
    try:
        return json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _print_plan(plan: dict, count: int) -> None:
    print(
        f"\n{plan['recipe']}: {plan['network']}, {plan['steps']:,} steps, {plan['images']:,} pictures, "
        f"{plan['flops']:.2g} FLOPs"
    )
    for measured in plan.get("measured", ()):
        part = "" if measured["depth"] is None else f", {measured['depth']} blocks"
        print(
            f"  measured here: {measured['size']} px, {measured['batch_size']} pictures a step{part}: "
            f"{measured['seconds_per_step']:.2f} s, {measured['speed'] / 1e9:.0f} GFLOP/s"
        )
    waited = max((measured["waited"] for measured in plan.get("measured", ())), default=0.0)
    if waited > BUSY:
        print(f"  for {waited:.0%} of that time other programs, or a quota, kept the processor: alone it takes less")
    _print_bills(plan["hardware"], count)
    if "receipt" in plan:
        receipt, expected = plan["receipt"], plan["hardware"].get("this")
        line = f"  the run here has taken {_hours(receipt['hours'])} for {receipt['images']:,} pictures"
        if expected and receipt["images"]:
            per_image = expected["hours"] / expected["images"] * receipt["images"]
            line += f"; the plan for so many is {_hours(per_image)} ({per_image / receipt['hours'] - 1:+.0%})"
        print(line)


def _print_bills(bills: dict[str, dict], count: int) -> None:
    share = f"hours / {count}" if count > 1 else "hours"
    print(f"  {'':9}{'memory':>10}{share:>12}{'energy':>13}{'money':>17}{'CO2':>11}")
    for name, cost in bills.items():
        note = "" if cost["fits"] else "  its batch does not fit"
        if "largest_batch" in cost and not cost["fits"]:
            note += f"; {cost['largest_batch']:,} at once do" if cost["largest_batch"] else "; nor does one picture"
        print(
            f"  {name:9}{_bytes(cost['memory']):>10}{_hours(cost['hours'] / count):>12}{_energy(cost['kwh']):>13}"
            f"{cost['usd']:>13,.2f} USD{_mass(cost['co2_kg']):>11}{note}"
        )


def _print_total(name: str, plans: list[dict], count: int) -> None:
    print(f"\n{name}: {sum(p['images'] for p in plans):,} pictures, {sum(p['flops'] for p in plans):.2g} FLOPs")
    total: dict[str, dict] = {}
    for plan in plans:
        for machine, cost in plan["hardware"].items():
            sums = total.setdefault(machine, dict.fromkeys(("memory", "hours", "kwh", "usd", "co2_kg"), 0.0))
            sums["fits"] = sums.get("fits", True) and cost["fits"]
            sums["memory"] = max(sums["memory"], cost["memory"])
            for key in ("hours", "kwh", "usd", "co2_kg"):
                sums[key] += cost[key]
    _print_bills(total, count)


def _assumptions(gpus: list[Hardware], wanted: str, grid: float) -> str:
    lines = [
        f"Assumed: {grid:g} g CO2 per kWh; full power all the time and no overhead of the building. Hours are those of "
        "training steps:",
        "features, evaluation and pictures come on top. Memory is that of one processor with its share of the batch.",
        "On named hardware a step takes what its FLOPs take, or what starting its operations takes: small ones wait.",
    ]
    for gpu in gpus:
        lines.append(
            f"  {gpu.name}: {gpu.peak / 1e12:,.0f} TFLOP/s x {gpu.utilisation:.2f} (assumed), {gpu.watts:g} W, "
            f"{gpu.price:g} USD/h (assumed); {gpu.source}"
        )
    if wanted in ("this", "all"):
        machine = this_machine(1.0)
        lines.append(f"  this: {machine.watts:g} W, {machine.price:g} USD/h; {machine.source}")
    return "\n".join(lines)


def _take_options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Our options, and what is left for the recipe."""
    arguments = [
        part for a in arguments for part in (a.split("=", 1) if a.startswith(tuple(f"{o}=" for o in OPTIONS)) else [a])
    ]
    options, rest, at = {}, [], 0
    while at < len(arguments):
        if arguments[at] in OPTIONS:
            if at + 1 >= len(arguments):
                raise UsageError(f"{arguments[at]} needs a value; pixart plan --help says which.")
            options[arguments[at]] = arguments[at + 1]
            at += 2
        else:
            rest.append(arguments[at])
            at += 1
    return options, rest


def _number(options: dict[str, str], name: str, low: float, high: float) -> float | None:
    if name not in options:
        return None
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f"{name} {options[name]!r} must be a number from {low:g} to {high:g}.")
    return value


def _changed(hardware: Hardware, price: float | None, utilisation: float | None) -> Hardware:
    from dataclasses import replace

    return replace(
        hardware,
        price=hardware.price if price is None else price,
        utilisation=hardware.utilisation if utilisation is None else utilisation,
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB" if value >= 1e8 else f"{value / 1e6:,.0f} MB"


def _hours(value: float) -> str:
    if value >= 72:
        return f"{value / 24:,.1f} days"
    if value >= 0.1:
        return f"{value:.2f} h"
    return f"{value * 60:.1f} min" if value >= 1 / 60 else f"{value * 3600:.1f} s"


def _energy(kwh: float) -> str:
    return f"{kwh:,.1f} kWh" if kwh >= 1 else f"{kwh * 1000:.1f} Wh"


def _mass(kg: float) -> str:
    if kg >= 1000:
        return f"{kg / 1000:,.1f} t"
    return f"{kg:,.1f} kg" if kg >= 1 else f"{kg * 1000:.1f} g"
