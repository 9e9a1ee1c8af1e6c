"""Machines, prices and grids for `pixart plan`: every figure with its source; what nobody publishes is an assumption.

Peaks are dense, for 16-bit inputs with 32-bit sums, as the vendors' data sheets give them; power is the data sheet's
maximum of the board. Prices and utilisation are assumptions (2026-11): change them with --price and --utilisation.
"""

import os
from dataclasses import dataclass

from pixart.errors import UsageError


@dataclass(frozen=True)
class Hardware:
    """One processor: peak in FLOP/s, share of it that training reaches, memory in bytes, power in W, USD per hour.

    `launch` is how many seconds starting one operation takes: small networks wait for that, not for arithmetic.
    """

    name: str
    peak: float
    utilisation: float
    memory: float
    watts: float
    price: float
    source: str
    launch: float = 5e-6  # assumed; eager PyTorch on a GPU


GB = 1e9
# The utilisation is assumed: 0.35 for cards that have fused attention in bf16, 0.25 for those before it. Published
# trainings of large transformers reach 0.3 to 0.5 (PaLM, 2204.02311, table 3: 0.21 to 0.46).
# Prices: on-demand offers of clouds in 2026 lie from half to twice of these.
GPUS = (
    Hardware("v100", 125e12, 0.25, 32 * GB, 300, 0.71, "NVIDIA V100 SXM2 data sheet (2018); price as the paper's own"),
    Hardware("t4", 65e12, 0.25, 16 * GB, 70, 0.40, "NVIDIA T4 data sheet (2019)"),
    Hardware("a100", 312e12, 0.35, 80 * GB, 400, 1.60, "NVIDIA A100 SXM data sheet (2021)"),
    Hardware("h100", 989e12, 0.35, 80 * GB, 700, 2.70, "NVIDIA H100 SXM data sheet (2023)"),
    Hardware("h200", 989e12, 0.35, 141 * GB, 700, 3.60, "NVIDIA H200 SXM data sheet (2024)"),
    Hardware("l40s", 362e12, 0.35, 48 * GB, 350, 0.90, "NVIDIA L40S data sheet (2023)"),
    Hardware("rtx4090", 165e12, 0.35, 24 * GB, 450, 0.40, "NVIDIA Ada GPU architecture whitepaper (2023)"),
    Hardware("mi300x", 1307e12, 0.30, 192 * GB, 750, 2.50, "AMD Instinct MI300X data sheet (2023)"),
)
# A server's processor of 32 to 64 cores has a thermal design power of 270 to 350 W: 6 to 11 W a core. The price is what
# clouds ask for a core-hour. Both are assumptions.
WATTS_PER_CORE = 10.0
PRICE_PER_CORE = 0.05

# Grams of CO2 equivalents per kWh of electricity in 2023: Ember (2024), as Our World in Data shows it.
GRIDS = {"world": 481, "china": 582, "india": 713, "germany": 381, "france": 56, "norway": 30}


def named(name: str) -> Hardware:
    """A GPU of the table, by name. Raises UsageError."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise UsageError(f"No hardware {name!r} in the table. It knows: this, all, {known}.")


def this_machine(achieved: float) -> Hardware:
    """The machine that this runs on, with the FLOP/s that a training step was measured to reach on it."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        for gpu in GPUS:
            if gpu.name in properties.name.lower().replace(" ", ""):
                return Hardware(
                    "this", achieved, 1.0, properties.total_memory, gpu.watts, gpu.price, f"measured; {gpu.source}", 0.0
                )
        return Hardware("this", achieved, 1.0, properties.total_memory, 300, 1.0, f"measured on {properties.name}", 0.0)
    cores = cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    source = f"measured; power and price assumed: {cores} cores of {WATTS_PER_CORE:g} W and {PRICE_PER_CORE:g} USD/h"
    return Hardware("this", achieved, 1.0, memory, cores * WATTS_PER_CORE, cores * PRICE_PER_CORE, source, 0.0)


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def grid_intensity(name: str) -> float:
    """g CO2 per kWh, from a name of the table or a number. Raises UsageError."""
    if name.lower() in GRIDS:
        return float(GRIDS[name.lower()])
    try:
        value = float(name)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2000:
        raise UsageError(
            f"--grid-intensity {name!r}: give grams of CO2 per kWh from 0 to 2000, or one of {', '.join(GRIDS)}."
        )
    return value


def machine_name() -> str:
    """What this machine is called in a receipt: the processor's name, never the host's."""
    import platform

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{cpu_count()} cores of {model}"
