"""The one training loop: autoencoder, three stages, and whatever comes later bring a model and a `loss(model, batch)`.

Every step seeds its own random stream from (seed, step) and asks for its own batch by number, so a run that is
continued from a checkpoint takes exactly the steps that an unbroken run would take; no random state is saved.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pixart.errors import PixArtError, UsageError
from pixart.training import checkpoint, metrics
from pixart.training.ema import Ema
from pixart.training.optimizer import Optimizer, OptimizerConfig, learning_rate

EXIT_PREEMPTED = 75  # stopped by a signal with a good checkpoint: run the same command again


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs; how long it runs is the sum of the recipe's phases."""

    seed: int = 0
    bf16: bool = True
    compile: bool = False
    ema_decay: float = 0.999
    log_every: int = 50
    evaluate_every: int = 1000
    save_every: int = 500

    def __post_init__(self):
        if min(self.log_every, self.evaluate_every, self.save_every) < 1 or not 0 <= self.ema_decay < 1:
            raise UsageError(
                f"loop: log_every {self.log_every}, evaluate_every {self.evaluate_every} and save_every "
                f"{self.save_every} must be at least 1, ema_decay {self.ema_decay} from 0 to below 1."
            )
        if self.seed < 0:
            raise UsageError(f"loop: seed {self.seed} must not be negative.")


class Preempted(PixArtError):
    """SIGINT or SIGTERM arrived; the checkpoint is on disk."""

    exit_code = EXIT_PREEMPTED


def train(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, dict], torch.Tensor],
    batches: Callable[[int], dict],
    steps: int,
    run: Path,
    *,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    evaluate: Callable[[torch.nn.Module, int], dict[str, float]],
    report: Callable[[str], None] = print,
    record: Callable[[int, dict[str, float]], None] | None = None,
) -> torch.nn.Module:
    """Train `model` for `steps` steps inside the run folder `run` and return a copy with the EMA weights.

    Args:
        model: trained in place, weights in fp32.
        loss: `loss(model, batch) -> scalar`; it draws its own noise from torch's global stream.
        batches: `batches(step) -> batch`, a pure function of the step. `batch["count"]` is its number of pictures.
        evaluate: `evaluate(ema_model, step) -> {name: figure}`, every `loop.evaluate_every` steps and at the end.
        report: takes one line of progress.
        record: `record(step, figures)` gets all figures that also go to `metrics.jsonl`.

    Raises:
        PixArtError: a loss or gradient is not finite (the last good checkpoint stays); a checkpoint cannot be read.
        Preempted: SIGINT or SIGTERM, after a checkpoint was written.
    """
    run.mkdir(parents=True, exist_ok=True)
    ema = Ema(model, decay=loop.ema_decay)
    optim = Optimizer(model, optimizer)
    start = checkpoint.restore(run, model, ema, optim)
    if start:
        report(f"continuing {run} at step {start:,} of {steps:,}")
    metrics.forget_after(run, start)
    forward = torch.compile(model) if loop.compile else model
    stop = _StopOnSignal()

    def log(step: int, figures: dict[str, float]) -> None:
        metrics.append(run, step, figures)
        if record:
            record(step, figures)

    begun, seen, last_log = time.perf_counter(), 0, time.perf_counter()

    try:
        for step in range(start, steps):
            torch.manual_seed(loop.seed * 1_000_003 + step)
            batch = batches(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=loop.bf16):
                value = loss(forward, batch)
            optim.zero_grad()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip)
            if not (torch.isfinite(value) and torch.isfinite(norm)):
                raise PixArtError(
                    f"Step {step}: loss {value.item()}, gradient norm {norm.item()}; stopped before the update. "
                    f"The last good checkpoint in {run} is kept. Try a lower --optimizer.learning-rate."
                )
            rate = learning_rate(step, steps, optimizer)
            optim.step(rate)
            ema.update(model, step)

            done, seen = step + 1, seen + batch["count"]
            if done % loop.log_every == 0 or done == steps:
                now = time.perf_counter()
                figures = {"loss": value.item(), "lr": rate, "grad_norm": norm.item()}
                figures["images_per_second"] = seen / (now - last_log)
                left = (now - begun) / (done - start) * (steps - done)
                log(done, figures)
                report(_line(done, steps, figures, left))
                seen, last_log = 0, now
            if done % loop.evaluate_every == 0 or done == steps:
                paused = time.perf_counter()
                figures = evaluate(ema.model, done)
                log(done, figures)
                report(f"step {done:,}: " + ", ".join(f"{name} {figure:.4f}" for name, figure in figures.items()))
                last_log += time.perf_counter() - paused
            if done % loop.save_every == 0 or done == steps or stop.requested:
                checkpoint.save(run, done, model, ema, optim)
            if stop.requested and done < steps:
                raise Preempted(f"Stopped by a signal at step {done:,}; run the same command again to continue.")
    finally:
        stop.restore()
    return ema.model


def _line(done: int, steps: int, figures: dict[str, float], left_s: float) -> str:
    return (
        f"step {done:,}/{steps:,}  loss {figures['loss']:.4f}  lr {figures['lr']:.2e}  "
        f"grad {figures['grad_norm']:.2f}  {figures['images_per_second']:.1f} images/s  {left_s / 60:.1f} min left"
    )


class _StopOnSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours after the step; a second acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self.old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.old[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread (a test or a notebook): signals stay with their owner
                break

    def _request(self, *_: object) -> None:
        self.requested = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
