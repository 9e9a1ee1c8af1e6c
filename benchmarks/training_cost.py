"""What training runs of any kind took: steps, pictures, FLOPs, hours and energy, from their own receipts.

    python benchmarks/training_cost.py runs/emoji-autoencoder runs/emoji-stage1 runs/emoji-stage2 runs/emoji-decoder

A run that began before there were receipts has its FLOPs counted as a receipt would (training/plan.py), and its hours
from `images_per_second` in metrics.jsonl: those of its steps alone, steps that a stop made it take twice as well. A
receipt's hours are those of the whole program, evaluation and the start included. Neither knows how many of the
machine's cores worked, so these are no core-hours.
"""

import argparse
import json
from pathlib import Path

from pixart.training.planning.plan import works

from pixart.errors import PixArtError
from pixart.training import receipt
from pixart.training.batches import phase_at
from pixart.training.recipe import Recipe, from_run


def without_receipt(run: Path) -> dict[str, float]:
    """What a receipt would say of a run that has none, energy excepted."""
    recipe = from_run(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "images_per_second" in row]
    step = rows[-1]["step"]
    images, flops = receipt.done(works(recipe), step)
    seconds = sum(pictures(recipe, row["step"]) / row["images_per_second"] for row in rows)
    return {"step": step, "images": images, "flops": flops, "hours": seconds / 3600}


def pictures(recipe: Recipe, step: int) -> int:
    """How many pictures are behind the report at `step`: of the steps since the one before."""
    before = (step - 1) // recipe.loop.log_every * recipe.loop.log_every
    return sum(phase_at(recipe.phases, number).batch_size for number in range(before, step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    total = {"images": 0, "flops": 0, "hours": 0.0, "energy_kwh": 0.0}
    print(f"{'run':28}{'steps':>8}{'pictures':>11}{'FLOPs':>10}{'hours':>7}{'Wh':>7}  from")
    for run in parser.parse_args().runs:
        found = receipt.read(run)
        source = "receipt" if found else "metrics"
        try:
            row = found or without_receipt(run)
        except (PixArtError, OSError, ValueError, IndexError) as error:
            raise SystemExit(f"{run}: {error}") from None
        total = {name: value + row[name] for name, value in total.items() if name in row}
        print(line(run.name, f"{row['step']:,}", row) + f"  {source}")
    print(line("all", "", total))


def line(name: str, steps: str, row: dict[str, float]) -> str:
    energy = f"{row['energy_kwh'] * 1000:.1f}" if "energy_kwh" in row else "-"
    return f"{name:28}{steps:>8}{row['images']:11,}{row['flops']:10.2e}{row['hours']:7.2f}{energy:>7}"


if __name__ == "__main__":
    main()
