"""Files, configuration and devices: what everything else stands on."""

import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pixart import config, files
from pixart.errors import PixArtError, UsageError
from pixart.runtime.device import Device, choose_device, choose_precision, text_precision, threads

GB = 1 << 30


@dataclass(frozen=True)
class Phase:
    steps: int
    size: int = 64

    def __post_init__(self):
        if self.size < 1:
            raise UsageError(f"size is {self.size}; it must be at least 1.")


@dataclass(frozen=True)
class Recipe:
    run: Path
    phases: tuple[Phase, ...]
    kind: Literal["flow", "ddpm"] = "flow"
    gamma: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.99)
    compile: bool = False


TABLE = {"run": "runs/x", "phases": [{"steps": 3}], "gamma": 2, "weights": {"3D": 3}}


def test_a_table_goes_round():
    recipe = config.structure(TABLE, Recipe, "x.toml")
    assert recipe == Recipe(Path("runs/x"), (Phase(3),), gamma=2.0, weights={"3D": 3.0})
    assert config.structure(config.plain(recipe), Recipe, "x.toml") == recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"phases": [{"steps": "3"}]}, "phases.steps"),
        ({"phases": [{"stepz": 3}]}, "steps"),
        ({"phases": [{"steps": 1e30}]}, "phases.steps"),
        ({"phases": [{"steps": True}]}, "phases.steps"),
        ({"phases": [{"steps": 1, "size": 0}]}, "size"),
        ({"phases": 5}, "phases"),
        ({"phases": [[[]]]}, "phases"),
        ({"kind": "flov"}, "flow"),
        ({"gamma": float("nan")}, "gamma"),
        ({"weights": [1]}, "weights"),
        ({"weights": {"3D": "much"}}, "weights"),
        ({"betas": [0.9]}, "betas"),
        ({"compile": 1}, "compile"),
        ({"run": 3}, "run"),
        ({"run": "a\0b"}, "run"),
        ({"gama": 1}, "gamma"),
        ({"x" * 100_000: 1}, "no key"),
    ],
)
def test_what_a_table_cannot_hold_is_refused_by_name(change, named):
    with pytest.raises(UsageError) as refused:
        config.structure(TABLE | change, Recipe, "x.toml")
    assert named in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("table", [[], 3, None, {}, "x"])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(UsageError):
        config.structure(table, Recipe, "x.toml")


def test_flags_change_every_value():
    recipe = config.structure(TABLE, Recipe, "x.toml")
    flags = ["--phases.0.steps", "9", "--weights.3D", "4", "--gamma", "None", "--compile", "--betas", "0.5", "0.6"]
    changed = config.with_flags(recipe, flags, "pixart train")
    assert changed == Recipe(Path("runs/x"), (Phase(9),), weights={"3D": 4.0}, compile=True, betas=(0.5, 0.6))


@pytest.mark.parametrize("flags", [["--phases.0.stepz", "9"], ["--run"], ["--gamma", "much"], ["extra"]])
def test_other_flags_end_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        config.with_flags(config.structure(TABLE, Recipe, "x.toml"), flags, "pixart train")
    assert stopped.value.code == 2


@pytest.mark.parametrize("flags", [["--gamma", "nan"], ["--phases.0.size", "-1"]])
def test_values_out_of_range_are_refused_as_in_a_table(flags):
    with pytest.raises(UsageError):
        config.with_flags(config.structure(TABLE, Recipe, "x.toml"), flags, "pixart train")


@pytest.mark.parametrize("content", [b"a = \xff", b"a = ", b"[" * 100_000, b"#" * (2 << 20)])
def test_bad_toml_is_refused(tmp_path, content):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        config.read_toml(path)


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, "[" * 150 + "]" * 150, "NaN", "[1e999]", "9" * 5000, '{"a": 1, "a": 2}', b"\xff", "{", ""],
)
def test_bad_json_is_refused(content):
    with pytest.raises(PixArtError):
        files.parse_json(content, "x.json")


def test_only_regular_files_of_bounded_length_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"1" * 20)
    for path in (tmp_path / "pipe", tmp_path / "missing", tmp_path, Path("/dev/zero")):
        with pytest.raises(PixArtError):
            files.read_bytes(path, 100)
    with pytest.raises(PixArtError):
        files.read_bytes(tmp_path / "long", 19)
    assert files.read_bytes(tmp_path / "long", 20) == b"1" * 20


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a[1].json"
    files.write_json(path, {"step": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert files.read_json(path) == {"step": 1} and os.listdir(tmp_path) == [path.name]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        with files.replacing(tmp_path / "model") as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]


def _write_and_hang(path: Path, ready) -> None:
    with files.replacing(path) as partial:
        partial.mkdir()
        (partial / "weights").write_bytes(bytes(1000))
        ready.set()
        signal.pause()


def test_what_a_killed_writer_left_goes_with_the_next_and_what_a_living_one_writes_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    killed, living = (context.Event() for _ in range(2))
    processes = [context.Process(target=_write_and_hang, args=(tmp_path / "m", event)) for event in (killed, living)]
    for process, event in zip(processes, (killed, living), strict=True):
        process.start()
        assert event.wait(30)
    processes[0].kill()
    processes[0].join()
    files.write_whole(tmp_path / "m", "done")
    left = [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    assert len(left) == 1 and f".{processes[1].pid}." in left[0]
    processes[1].kill()
    processes[1].join()


def test_a_lock_refuses_a_second_holder(tmp_path):
    with files.locked(tmp_path / "lock", "taken"):
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool, pytest.raises(PixArtError):
            pool.apply(_take, (tmp_path / "lock",))
    _take(tmp_path / "lock")


def _take(path: Path) -> None:
    with files.locked(path, "taken"):
        pass


def gpu(name: str, gigabytes: int, capability: tuple[int, int], bfloat16: bool, float16: bool) -> Device:
    return Device("cuda", name, gigabytes * GB, gigabytes * GB, bfloat16, float16, capability)


MACHINES = {  # device -> storage and arithmetic of the denoiser, and arithmetic of T5, as in the design
    "T4": (gpu("T4", 16, (7, 5), False, True), "float16", "float16", "float32"),
    "P4000": (gpu("P4000", 8, (6, 1), False, False), "float16", "float32", "float32"),
    "3090": (gpu("3090", 24, (8, 6), True, True), "bfloat16", "bfloat16", "bfloat16"),
    "H100": (gpu("H100", 80, (9, 0), True, True), "bfloat16", "bfloat16", "bfloat16"),
    "M2": (Device("mps", "M2", 16 * GB, 12 * GB, False, True), "float16", "float16", "float32"),
    "AVX2": (Device("cpu", "AVX2", 8 * GB, 6 * GB, False, False), "bfloat16", "float32", "float32"),
    "AMX": (Device("cpu", "AMX", 24 * GB, 20 * GB, True, False), "bfloat16", "bfloat16", "bfloat16"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_dtypes_by_machine(name):
    device, storage, arithmetic, text = MACHINES[name]
    chosen = choose_precision(device)
    assert (chosen.storage, chosen.arithmetic) == (storage, arithmetic)
    assert text_precision(chosen).arithmetic == text
    assert choose_precision(device, "float32").arithmetic == "float32"


def test_the_fastest_kind_of_device_is_chosen_and_a_missing_one_refused():
    cpu, small, large = MACHINES["AVX2"][0], MACHINES["T4"][0], MACHINES["3090"][0]
    assert choose_device([small, large, cpu]) is large
    assert choose_device([large, cpu], "cpu") is cpu
    for wanted in ("cuda", "mps", "tpu"):
        with pytest.raises(UsageError):
            choose_device([cpu], wanted)
    assert choose_precision(cpu, "float16").arithmetic == "float32"


@pytest.mark.parametrize("given", ["1e20", "100000000000000000000", "0", "-3", "", "x", "²"])
def test_absurd_thread_counts_are_ignored(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert 1 <= threads() <= (os.cpu_count() or 1)
