"""Devices and number formats: what a machine has, found once, and the choices that follow from it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixart.errors import UsageError

DeviceType = Literal["cpu", "cuda", "mps"]
Dtype = Literal["float32", "bfloat16", "float16"]
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")
MAX_THREADS = 1024
CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"


@dataclass(frozen=True)
class Device:
    """Facts about one device. `capability` is CUDA's compute capability; memory is in bytes.

    `bfloat16` says whether the device multiplies bf16 in hardware (CUDA 8.0 and newer, Apple M2 and newer with a
    torch that supports it, processors with AVX512-BF16 or AMX), `float16` whether fp16 arithmetic is as fast as it is
    small (Pascal stores fp16, but computes it at 1/64 of its fp32 speed).
    """

    type: DeviceType
    name: str
    total_bytes: int
    free_bytes: int
    bfloat16: bool
    float16: bool
    capability: tuple[int, int] | None = None
    index: int = 0


@dataclass(frozen=True)
class Precision:
    """How weights are kept and what products are computed in, and the reason in a few words."""

    storage: Dtype
    arithmetic: Dtype
    reason: str


def choose_device(devices: list[Device], wanted: str = "auto") -> Device:
    """The device of that type, or by itself the fastest kind: CUDA (the one with the most free memory), MPS, CPU.

    Raises:
        UsageError: there is no such device here.
    """
    if wanted not in DEVICES:
        raise UsageError(f"There is no device {wanted!r}; choose one of {', '.join(DEVICES)}.")
    for kind in ("cuda", "mps", "cpu") if wanted == "auto" else (wanted,):
        of_kind = [device for device in devices if device.type == kind]
        if of_kind:
            return max(of_kind, key=lambda device: device.free_bytes)
    there = ", ".join(sorted({device.type for device in devices}))
    fix = f"leave --device out, or install a build of torch for your GPU: {CUDA_TORCH}" if wanted == "cuda" else ""
    raise UsageError(
        f"There is no {wanted} device for this installation of torch, which has {there}; {fix or 'leave --device out'}."
    )


def choose_precision(device: Device, wanted: str = "auto") -> Precision:
    """Storage and arithmetic for a denoiser on this device. Activations of T5 overflow fp16; see `text_precision`.

    Raises:
        UsageError: the device cannot compute in the dtype that was given.
    """
    if wanted not in ("auto", *DTYPES):
        raise UsageError(f"There is no dtype {wanted!r}; choose one of auto, {', '.join(DTYPES)}.")
    if wanted == "float32":
        return Precision("float32", "float32", "as given")
    if wanted == "float16":
        return Precision("float16", "float16" if device.float16 else "float32", "as given")
    if wanted == "bfloat16":
        if device.bfloat16:
            return Precision("bfloat16", "bfloat16", "as given")
        return Precision("bfloat16", "float32", f"{device.name} has no bf16 arithmetic; weights are kept in bf16")
    if device.bfloat16:
        return Precision("bfloat16", "bfloat16", f"{device.name} computes in bf16")
    if device.type == "cpu":
        return Precision("bfloat16", "float32", "this processor has no bf16 arithmetic; weights are kept in bf16")
    if device.float16:
        return Precision("float16", "float16", f"{device.name} has no bf16, but fast fp16")
    return Precision("float16", "float32", f"{device.name} stores fp16, but computes it slowly")


def text_precision(precision: Precision) -> Precision:
    """For the text encoder: T5's activations exceed fp16's range, so fp16 becomes storage for fp32 arithmetic."""
    if precision.arithmetic != "float16":
        return precision
    return Precision(precision.storage, "float32", "T5 overflows in fp16")


def threads() -> int:
    """Cores that this process may use; OMP_NUM_THREADS gives another number, as for torch.

    A value that is no number from 1 to 1024 is ignored.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isascii() and wanted.isdecimal() and len(wanted) < 6 and 1 <= int(wanted) <= MAX_THREADS:
        return int(wanted)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def find_devices() -> list[Device]:
    """What torch sees here, the CPU last. Imports torch."""
    import torch

    found = []
    if torch.cuda.is_available():
        found += [_cuda(torch, index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        # M1 emulates bf16; a product tells more than a table of chips that grows every year.
        found.append(Device("mps", "Apple GPU", total, total - torch.mps.driver_allocated_memory(), False, True))
    return [*found, find_cpu()]


def find_cpu() -> Device:
    """The processor, without torch."""
    free, total = _memory()
    flags = _processor_flags()
    return Device("cpu", "this processor", total, free, bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}), False)


def _cuda(torch: Any, index: int) -> Device:
    total = torch.cuda.mem_get_info(index)[1]
    capability = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    # Compute capability 6.1 and 7.x without tensor cores run fp16 far below fp32; 6.0, 7.0, 7.5 do not.
    fast_half = capability >= (7, 0) or capability == (6, 0)
    return Device("cuda", name, total, cuda_free(index), capability >= (8, 0), fast_half, capability, index)


def cuda_free(index: int) -> int:
    """Bytes that this process can still allocate, with what torch keeps for reuse, under a limit that it was given."""
    import torch

    free, total = torch.cuda.mem_get_info(index)
    taken, reserved = torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index)
    limit = int(total * torch.cuda.get_per_process_memory_fraction(index))
    return max(0, min(free + reserved, limit) - taken) if limit < total else free + reserved - taken


def _processor_flags() -> set[str]:
    """CPU features as Linux names them; other systems say none, and get fp32 arithmetic, which is always right."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return set(next(lines, "").partition(":")[2].split())


def _memory() -> tuple[int, int]:
    """Bytes of memory that are available and there, no more than a control group allows."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        pages = getattr(os, "sysconf", None)
        total = pages("SC_PAGE_SIZE") * pages("SC_PHYS_PAGES") if pages else 8 << 30
        free = total // 2
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int(Path("/sys/fs/cgroup", limit).read_text())
            taken = int(Path("/sys/fs/cgroup", used).read_text())
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        total, free = min(total, most), min(free, max(most - taken, 0))
    return free, total
