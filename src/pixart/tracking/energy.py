"""What electricity a run takes: measured by codecarbon where there is a sensor, else estimated from the data sheet."""

import contextlib
import importlib.util
import os
import time
from pathlib import Path
from typing import Any, Literal

EnergySource = Literal["auto", "codecarbon", "tdp"]
POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Runs from its making to `close`, and never raises: where a sensor fails, an estimate takes its place and says so.

    `wanted`: "auto" takes codecarbon where it is installed and a sensor can be read (RAPL, an NVIDIA GPU); "codecarbon"
    takes it anyway, with its own guess from load where there is no sensor; "tdp" multiplies `watts` by the time.
    codecarbon runs in its offline mode and asks no network.
    """

    def __init__(self, wanted: EnergySource, watts: float):
        self.watts, self.begun, self.tracker, self.why = watts, time.monotonic(), None, ""
        if wanted == "codecarbon" or (wanted == "auto" and importlib.util.find_spec("codecarbon") and _sensor()):
            try:
                self.tracker = _start_codecarbon()
            except Exception as error:
                self.why = f"codecarbon could not be started ({str(error) or type(error).__name__}); "

    def read(self) -> tuple[float, str]:
        """kWh so far, and in words where the figure comes from."""
        hours = (time.monotonic() - self.begun) / 3600
        estimate = hours * self.watts / 1000
        if self.tracker is None:
            return estimate, f"{self.why}estimated from the power of the data sheet: {self.watts:g} W all the time"
        try:
            self.tracker.flush()
            return float(self.tracker._total_energy.kWh), _words(self.tracker)  # public only once it has stopped
        except Exception as error:
            self.tracker, self.why = None, f"codecarbon failed ({str(error) or type(error).__name__}); "
            return self.read()

    def close(self) -> None:
        if self.tracker is not None:
            with contextlib.suppress(Exception):
                self.tracker.stop()


def _sensor() -> bool:
    """Whether energy can be read: Intel's and AMD's counters, or an NVIDIA GPU."""
    counters = POWERCAP.glob("intel-rapl:*/energy_uj") if POWERCAP.is_dir() else ()
    return any(os.access(counter, os.R_OK) for counter in counters) or Path("/dev/nvidia0").exists()


def _start_codecarbon() -> Any:
    import logging

    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it speaks before it has read its log_level
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # it must be told one; the CO2 is counted by our own figure of the grid
        tracking_mode="machine",
        output_methods=[],
        log_level="error",
        allow_multiple_runs=True,
        measure_power_secs=15,
    )
    tracker.start()
    return tracker


def _words(tracker: Any) -> str:
    """Which parts codecarbon measures, and which it guesses."""
    measured, guessed = [], []
    for part in tracker._hardware:
        kind, mode = type(part).__name__, getattr(part, "_mode", None)
        sensor = kind == "GPU" or (kind == "CPU" and mode not in ("constant", "cpu_load"))
        (measured if sensor else guessed).append(kind)
    if not measured:
        return f"codecarbon, no sensor readable: estimated from load and the data sheet ({', '.join(guessed)})"
    return f"codecarbon, measured: {', '.join(measured)}; estimated: {', '.join(guessed) or 'nothing'}"
