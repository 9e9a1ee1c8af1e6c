"""The receipt of a run: what it took so far, all its starts together, beside what was predicted when it began."""

import json
import time
from pathlib import Path
from typing import Any

import torch

import pixart
from pixart.tracking.energy import EnergyMeter, EnergySource
from pixart.training.batches import phase_at, total_steps
from pixart.training.files import write_whole
from pixart.training.planning.hardware import GRIDS, machine_name, this_machine
from pixart.training.planning.plan import Work, works

NAME = "receipt.json"


class Meter:
    """Counts FLOPs, pictures, hours, energy, money and CO2 while a run trains; `close` ends it.

    Hours, energy and money count every start of the run, steps that a kill made it take twice as well. FLOPs and
    pictures are those of the steps that the weights have seen.
    """

    def __init__(self, recipe, *, energy: EnergySource = "auto", processes: int = 1):
        self.recipe, self.processes = recipe, processes if torch.cuda.is_available() else 1
        self.works, self.steps = works(recipe), total_steps(recipe.phases)
        self.before = read(recipe.run) or {}
        self.predicted: dict[str, Any] | None = self.before.get("predicted")
        self.machine = this_machine(1.0)
        self.energy = EnergyMeter(energy, self.machine.watts * self.processes)
        self.begun, self.first_step = time.monotonic(), None

    def look(self, step: int, figures: dict[str, float]) -> dict[str, float]:
        """Take in a report of the loop, write the receipt into the run folder, and give the figures worth a curve."""
        if self.predicted is None and figures.get("images_per_second"):
            self.predicted = self._predict(step, figures["images_per_second"])
        receipt = self.receipt(step)
        write(self.recipe.run / NAME, receipt)
        shown = {name: receipt[name] for name in ("hours", "energy_kwh", "co2_kg", "usd")}
        if self.predicted:
            shown["predicted_hours"] = self.predicted["hours"]
        return shown

    def receipt(self, step: int) -> dict[str, Any]:
        """Everything, as JSON values, for a checkpoint at `step`."""
        here = (time.monotonic() - self.begun) / 3600
        hours = self.before.get("hours", 0.0) + here
        kwh, source = self.energy.read()
        kwh += self.before.get("energy_kwh", 0.0)
        images, flops = done(self.works, step)
        grid = GRIDS["world"]
        return {
            "format": 1,
            "step": step,
            "steps": self.steps,
            "images": images,
            "flops": flops,
            "hours": hours,
            "processors": self.processes,
            "machine": machine_name(),
            "energy_kwh": kwh,
            "energy_source": source,
            "usd": self.before.get("usd", 0.0) + here * self.machine.price * self.processes,
            "usd_per_hour": self.machine.price,
            "co2_kg": kwh * grid / 1000,
            "grid_g_per_kwh": grid,
            "predicted": self.predicted,
            "versions": {"pixart": pixart.__version__, "torch": torch.__version__},
        }

    def summary(self, step: int) -> str:
        """One line for the end of a run: what it took, and how far the prediction was off."""
        now = self.receipt(step)
        line = (
            f"took {now['hours'] * 60:.1f} min, {now['flops']:.2g} FLOPs, {now['images']:,} pictures, "
            f"{now['energy_kwh'] * 1000:.1f} Wh, {now['usd']:.2f} USD, {now['co2_kg'] * 1000:.1f} g CO2"
        )
        if self.predicted:
            line += f"; predicted at step {self.predicted['at_step']:,}: {self.predicted['hours'] * 60:.1f} min"
            line += f" ({self.predicted['hours'] / now['hours'] - 1:+.0%})"
        return line

    def close(self) -> None:
        self.energy.close()

    def _predict(self, step: int, images_per_second: float) -> dict[str, Any]:
        """The whole run at the speed of its first steps, by FLOPs where later phases have larger pictures."""
        # By the whole phase: others may have its size and batch, and crops of another side.
        now = self.works[self.recipe.phases.index(phase_at(self.recipe.phases, step - 1))]
        hours = sum(work.flops for work in self.works) / (images_per_second * now.flops_per_image) / 3600
        kwh = hours * self.machine.watts * self.processes / 1000
        return {
            "at_step": step,
            "hours": hours,
            "energy_kwh": kwh,
            "usd": hours * self.machine.price * self.processes,
            "co2_kg": kwh * GRIDS["world"] / 1000,
            "memory_bytes": max(work.memory(self.processes) for work in self.works),
        }


def done(works: list[Work], step: int) -> tuple[int, int]:
    """Pictures and FLOPs of the first `step` steps of a run."""
    images = flops = 0
    for work in works:
        taken = min(step, work.steps)
        images += taken * work.batch_size
        flops += taken * work.batch_size * work.flops_per_image
        step -= taken
    return images, flops


def read(run: Path) -> dict[str, Any] | None:
    """The receipt of a run folder; None where there is none or it cannot be read."""
    try:
        value = json.loads((run / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("format") == 1 else None


def write(path: Path, receipt: dict[str, Any]) -> None:
    """Raises PixArtError where the disk refuses; an older receipt stays."""
    write_whole(path, json.dumps(receipt, indent=1))
