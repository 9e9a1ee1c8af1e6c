"""The benchmark for a GPU runs from end to end, every row of it, at a tiny size on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = {
    *("machine", "random weights written", "ours, cold", "ours", "ours, compiled", "ours, the server's engine"),
    *("stock, cold", "stock", "stock behind a lock", "stock, best", "stock's best over ours", "at most 8 GB", "tests"),
    *(f"training step, {method}{how}" for method in ("full", "lora") for how in ("", ", compiled")),
}


@pytest.mark.slow
def test_every_row_is_measured_and_written(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, script, "--dry", "--no-tests", "--seconds", "3000", "--out", tmp_path]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {row["row"] for row in rows} == ROWS
    assert not [row for row in rows if "failed" in row or ("skipped" in row and row["row"] != "tests")]
    arms = {(row["row"], row["pixels"], row["batch"]) for row in rows if "seconds_an_image" in row}
    assert len(arms) == 3 * 2 * 2 + 2  # stock as it comes is measured at the smaller size only
    assert all(each in (tmp_path / "gpu.md").read_text() for each in ROWS)
