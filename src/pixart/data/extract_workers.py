"""Who computes the batches of an extraction on one machine: this process, or several beside it."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from pixart.data.extract import Job, Runner
from pixart.data.extract_batch import ATTEMPTS, Batch, Extractor, quarantined, work
from pixart.data.feature_shards import NULL_TEXT
from pixart.data.feature_writer import BatchRecord, write_null_text
from pixart.errors import PixArtError

WORKER_MEMORY = 1.5e9  # bytes of a worker beside the encoders' weights: torch, pictures, and the rows of a batch


def load(job: Job, *, device: str = "cpu", decoders: int = 1) -> Extractor:
    """The encoders of a job; the first who loads them also writes the null text, always the same."""
    extractor = Extractor(job.settings, device=device, decoders=decoders)
    states = extractor.null_text()
    if states is not None and job.folder.read(NULL_TEXT) is None:
        write_null_text(job.folder, states)
    return extractor


def here(job: Job, batches: Iterator[Batch]) -> Iterator[BatchRecord]:
    """In this process, on the CPU. The encoders are loaded when there is a first batch."""
    yield from _here(job, batches, "cpu")


def _here(job: Job, batches: Iterator[Batch], device: str) -> Iterator[BatchRecord]:
    extractor = None
    for batch in batches:
        extractor = extractor or load(job, device=device, decoders=_decoders(1))
        yield work(extractor, batch, job.folder, job.origin)


def choose(settings_weights: int, workers: int | None, devices: list[str]) -> int:
    """How many processes: one per GPU, or one per core as far as the memory goes. `settings_weights` in bytes."""
    if workers is not None:
        return workers
    if devices != ["cpu"]:
        return len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Weights may be stored in half precision and are held in 32 bits.
    fit = int(_free_memory() // (2 * settings_weights + WORKER_MEMORY))
    return max(1, min(cores, fit))


def devices() -> list[str]:
    """The GPUs that torch sees, or the CPU."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def weights_bytes(*folders: Path | None) -> int:
    return sum(file.stat().st_size for folder in folders if folder for file in folder.glob("*.safetensors"))


def runner(workers: int, on: list[str]) -> Runner:
    """`workers` processes over the devices `on`; one worker is this process."""
    if workers == 1:
        return lambda job, batches: _here(job, batches, on[0])
    return _Pool(workers, on)


@dataclass(frozen=True)
class _Pool:
    workers: int
    on: list[str]

    def __call__(self, job: Job, batches: Iterator[Batch]) -> Iterator[BatchRecord]:
        while True:
            lost: list[Batch] = []
            yield from self._until_broken(job, batches, lost)
            if not lost:
                return
            # One of these ended its process. Alone, it harms only itself.
            for batch in lost:
                yield self._alone(job, batch)

    def _until_broken(self, job: Job, batches: Iterator[Batch], lost: list[Batch]) -> Iterator[BatchRecord]:
        first = next(batches, None)
        if first is None:
            return
        pool = self._processes(job, self.workers)
        running: dict[Future, Batch] = {}
        waiting = [first]
        try:
            while running or waiting:
                # Few stand in line: a batch holds its captions, and there may be ten thousand batches.
                waiting += islice(batches, 2 * self.workers - len(running) - len(waiting))
                while waiting:
                    running[pool.submit(_work, waiting[0])] = waiting[0]
                    del waiting[0]
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    record = future.result()
                    del running[future]
                    yield record
        except BrokenProcessPool:
            lost += [*running.values(), *waiting]
        finally:
            _end(pool)

    def _alone(self, job: Job, batch: Batch) -> BatchRecord:
        for _ in range(ATTEMPTS - 1):
            pool = self._processes(job, 1)
            try:
                return pool.submit(_work, batch).result()
            except BrokenProcessPool:
                continue
            finally:
                _end(pool)
        return quarantined(batch, "its process was ended by the system each time, perhaps for want of memory.")

    def _processes(self, job: Job, count: int) -> ProcessPoolExecutor:
        context = get_context("spawn")  # a fork would inherit locked locks of torch's threads
        on = context.SimpleQueue()
        for i in range(count):
            on.put(self.on[i % len(self.on)])
        arguments = (job, on, os.getpid(), _decoders(count))
        return ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=arguments)


def _end(pool: ProcessPoolExecutor) -> None:
    """Let nothing of the pool live on, whatever ended it."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with suppress(Exception):
            process.kill()
            process.join()


def _decoders(workers: int) -> int:
    return max(1, min(8, (os.cpu_count() or 1) // workers))


def _free_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8e9


# A worker process: its job, and the encoders once the first batch is there, so that a failure to load is an answer.
_job: Job | None = None
_device, _threads = "cpu", 1
_extractor: Extractor | None = None


def _begin(job: Job, on, parent: int, decoders: int) -> None:
    global _job, _device, _threads
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _job, _device, _threads = job, on.get(), decoders
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its children."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(batch: Batch) -> BatchRecord:
    global _extractor
    assert _job is not None
    try:
        _extractor = _extractor or load(_job, device=_device, decoders=_threads)
    except MemoryError:
        raise PixArtError("The encoders do not fit into memory; run again with fewer --workers.") from None
    return work(_extractor, batch, _job.folder, _job.origin)
