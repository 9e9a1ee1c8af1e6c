"""The one training loop. It knows no task: a task brings a model, a loss and batches by number.

What a step does follows from the seed and its number: batches come by number, and every row of a batch has its own
random stream (rows.py). So a run that is continued takes the steps that an unbroken one takes, and any number of
processes takes the steps that one process takes; no random state is saved.

On SIGINT and SIGTERM the step is finished, a checkpoint is written, and the exit code is 75.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from pixart.data.encode import autocast
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object, write_json
from pixart.model.adapters import adapted
from pixart.runtime.compiled import allow_shapes
from pixart.runtime.device import find_cpu, threads
from pixart.training import checkpoints, distribution, reports
from pixart.training.batches import Loader
from pixart.training.distribution import DeviceName, Parallel, World
from pixart.training.ema import Ema, EmaConfig
from pixart.training.optimizers import Optimizer, OptimizerConfig, learning_rate
from pixart.training.rows import MicrobatchSlice, RowStreams

EXIT_PREEMPTED = 75  # stopped by a signal with a good checkpoint: run the same command again


class Preempted(PixArtError):
    """SIGINT or SIGTERM arrived; the checkpoint is on disk."""

    exit_code = EXIT_PREEMPTED


class StopOnSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours after the step; a second acts at once."""

    def __enter__(self) -> "StopOnSignal":
        self.requested = False
        self.old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.old[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread (a test or a notebook): signals stay with their owner
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        self.__exit__()


MEMORY = "memory.json"
AGAIN = "run the same command again to"


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs; how long it runs is the sum of the recipe's phases.

    `precision` is that of matrix products; auto takes what the device computes fast in, never bf16 on a processor
    without such instructions. `accumulate` parts of a batch are computed one after the other, for less memory, and
    `checkpoint_activations` computes each block again in the backward pass; neither changes the result by more than
    rounding. `compile` compiles each block. `parallel` and `device` say who computes: auto takes what is there, DDP
    where torchrun started several processes. `workers` read batches ahead; None: with a GPU.
    """

    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    parallel: Parallel = "auto"
    device: DeviceName = "auto"
    workers: int | None = None
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 500

    def __post_init__(self):
        for name in ("accumulate", "log_every", "validate_every", "save_every"):
            if not 1 <= getattr(self, name) < 2**40:
                raise UsageError(f"loop: {name} {getattr(self, name)} must be at least 1.")
        if not 0 <= self.seed < 2**40 or not 0 <= (self.workers or 0) <= 256:
            raise UsageError(f"loop: seed {self.seed} must be from 0 to 2^40, workers {self.workers} from 0 to 256.")


# What may differ when a run is continued: who computes how, and how often it is looked at.
MAY_CHANGE = (
    *("accumulate", "checkpoint_activations", "compile", "parallel", "device", "workers"),
    *("log_every", "validate_every", "save_every"),
)


def train_loop(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, dict[str, Any]], Tensor],
    batches: Any,
    steps: int,
    run: Path,
    *,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    ema: EmaConfig,
    world: World,
    stop: StopOnSignal,
    validate: Callable[[torch.nn.Module, int], dict[str, float]],
    record: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    say: Callable[[str], None] = print,
    data: str = "",
) -> torch.nn.Module:
    """Train `model` for `steps` steps inside the run folder `run` and return a copy with the averaged weights.

    Args:
        model: trained in place, weights in fp32.
        loss: `loss(model, batch) -> (B,)`, see `task.Task`.
        batches: `batches[step, part] -> batch`, a pure function of both; see `batches.Batches`.
        validate: `validate(averaged model, step) -> {name: metric}`, every `loop.validate_every` steps and at the end,
            by the main process only.
        record: gets what also goes to `metrics.jsonl`.
        data: names what is trained on; a checkpoint that was trained on something else is refused.

    Raises:
        PixArtError: a loss or gradient is not finite (the last good checkpoint stays); a checkpoint cannot be read;
            another process was lost; the disk is full.
        Preempted: SIGINT or SIGTERM, after a checkpoint was written.
    """
    check(loop, optimizer, model, world)
    with distribution.translate_peer_failure(world, run):
        model.to(world.device)
        distribution.broadcast_parameters(model, world)
        averages = Ema(model, ema)
        saved = checkpoints.newest(run)
        if saved:
            saved.refuse_other_data(data)
            saved.load_weights(model, averages)
        prepare_blocks(model, loop)
        wrapped = distribution.wrap_parallel(model, world, loop.parallel)
        if loop.parallel == "fsdp" and world.size > 1:
            averages.shard(model, main=world.main)
        optim = Optimizer(model, optimizer)
        scaler = torch.amp.GradScaler(world.device.type, enabled=loop.precision == "float16")
        step, hours, images, accumulate = 0, 0.0, 0, _accumulate(run, loop)
        if saved:
            step, hours, images = saved.state.step, saved.state.hours, saved.state.images
            saved.load_optimizer(optim)
            if saved.state.scaler:
                counts = ("growth_interval", "_growth_tracker")
                state = {name: int(v) if name in counts else v for name, v in saved.state.scaler.items()}
                scaler.load_state_dict(state)
        world.wait()  # nobody sweeps before all have read
        if world.main:
            checkpoints.sweep(run)
            reports.forget_after(run, step)
            if step:
                say(f"continuing {run} at step {step:,} of {steps:,}")
        clock = reports.Clock()
        begun = time.monotonic()
        loader = iter(_loader(batches, range(step, steps), world.slices(accumulate), loop, world))
        while step < steps:
            optim.zero_grad()
            value, parts, slices = torch.zeros((), device=world.device), [], world.slices(accumulate)
            try:
                for part in slices:
                    with clock.loading():
                        batch = _prepared(next(loader), step, part, loop.seed, world.device)
                    parts.append(batch)
                    with distribution.gradients(wrapped, exchanged=part is slices[-1]):
                        with autocast(loop.precision, world.device):
                            losses = loss(wrapped, batch)
                        batch["losses"] = losses.detach()
                        mean = losses.mean() / len(slices)
                        scaler.scale(mean).backward()
                    value += mean.detach()
            except torch.OutOfMemoryError:
                accumulate = _halve_parts(run, batches, step, accumulate, world, say)
                loader = iter(_loader(batches, range(step, steps), world.slices(accumulate), loop, world))
                continue
            scaler.unscale_(optim.torch)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip)
            norm = distribution.full_tensor(norm).item()
            value, stopping = world.agree(value, stop.requested)
            value, rate = value.item(), learning_rate(step, steps, optimizer)
            if math.isfinite(value) and math.isfinite(norm):
                optim.step(rate)
                averages.update(model, step)
                scaler.update()
            elif math.isfinite(value) and scaler.is_enabled() and scaler.get_scale() > 1:
                scaler.update(scaler.get_scale() / 2)  # fp16 overflowed: the step is left out
            else:
                raise world.once(reports.not_finite(step, value, norm, parts, run, world))

            step += 1
            taken = sum(batch["count"] for batch in parts) * world.size
            images += taken
            clock.images += taken
            if world.main and (step % loop.log_every == 0 or step == steps):
                metrics = {"loss": value, "lr": rate, "grad_norm": norm, **clock.metrics()}
                reports.log(run, step, metrics, record)
                say(
                    f"step {step:,}/{steps:,}  loss {value:.4f}  lr {rate:.2e}  grad {norm:.2f}  "
                    f"{metrics['images_per_second']:.1f} images/s"
                )
            if step % loop.validate_every == 0 or step == steps:
                averaged = averages.full_model()
                with clock.paused():
                    if world.main:
                        metrics = validate(averaged, step)
                        reports.log(run, step, metrics, record)
                        found = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                        say(f"step {step:,}: {found or 'no images to validate on'}")
                    world.wait()
            if step % loop.save_every == 0 or step == steps or stopping:
                taken_hours = hours + (time.monotonic() - begun) / 3600
                scale = {name: float(v) for name, v in scaler.state_dict().items()}
                state = checkpoints.State(step, {}, data=data, scaler=scale, hours=taken_hours, images=images)
                checkpoints.save(run, state, model, averages, optim, main=world.main)
            if stopping and step < steps:
                raise world.once(Preempted(f"Stopped by a signal at step {step:,}; {AGAIN} continue."))
        averaged = averages.full_model()
        return averaged.cpu() if world.main else averaged


def check(loop: LoopConfig, optimizer: OptimizerConfig, model: torch.nn.Module, world: World) -> None:
    """Raises UsageError for what cannot be trained together."""
    if loop.checkpoint_activations and not hasattr(model, "blocks"):
        raise UsageError("loop.checkpoint_activations: this network has no blocks to compute again. Leave it out.")
    if loop.parallel == "fsdp" and world.size > 1 and optimizer.name != "adamw":
        raise UsageError(f"loop.parallel is fsdp, but {optimizer.name} needs full matrices. Give adamw, or ddp.")
    if loop.parallel == "fsdp" and world.size > 1 and adapted(model):
        raise UsageError("loop.parallel is fsdp, but what an adapter trains is small. Give ddp.")
    if loop.precision == "float16" and world.device.type == "cpu":
        raise UsageError("loop.precision float16 is for GPUs; on the CPU give float32 or bfloat16.")
    if loop.precision == "bfloat16" and world.device.type == "cpu" and not find_cpu().bfloat16:
        raise UsageError(
            "loop.precision bfloat16: this processor has no such arithmetic and would be ten times slower than in "
            "float32. Give float32."
        )


def prepare_blocks(model: torch.nn.Module, loop: LoopConfig) -> None:
    """Recompute and compile block by block: equal blocks share one compiled graph for each shape of latents."""
    blocks = list(getattr(model, "blocks", ())) or [model]
    for block in blocks:
        if loop.checkpoint_activations:
            block.forward = partial(recomputed, block.forward, use_reentrant=False)
        if loop.compile:
            allow_shapes()
            block.compile(fullgraph=True, dynamic=False)


def _loader(batches: Any, steps: range, slices: list[MicrobatchSlice], loop: LoopConfig, world: World) -> Loader:
    gpu = world.device.type == "cuda"
    local = max(1, torch.cuda.device_count()) if gpu else 1
    workers = (min(8, threads() // local) if gpu else 0) if loop.workers is None else loop.workers
    return Loader(batches, steps, slices, workers=workers, pinned=gpu)


def _prepared(batch: dict, step: int, part: MicrobatchSlice, seed: int, device: torch.device) -> dict:
    """The batch on its device, with the random streams of its rows in `rng`."""
    rows = part.rows(batch["count"] * part.parts)
    torch.manual_seed((seed * 1_000_003 + step) * part.parts + part.part)  # for what does not use `rng`
    moved = {name: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for name, v in batch.items()}
    return {**moved, "rng": RowStreams(seed, step, rows)}


def _accumulate(run: Path, loop: LoopConfig) -> int:
    """The recipe's number of parts, or the larger one that an earlier start needed for want of memory."""
    if not (run / MEMORY).is_file():
        return loop.accumulate
    kept = read_json_object(run / MEMORY).get("accumulate")
    if type(kept) is not int or not 1 <= kept < 2**20:
        raise PixArtError(f"{run / MEMORY} does not hold the number of parts of a batch; remove it.")
    return max(kept, loop.accumulate)


def _halve_parts(run: Path, batches: Any, step: int, accumulate: int, world: World, say: Callable[[str], None]) -> int:
    """After running out of memory: half as many images at once from now on, also when the run is continued."""
    torch.cuda.empty_cache()
    rows = batches[step, MicrobatchSlice()]["count"]
    if world.size > 1 or accumulate * 2 > rows or rows % (accumulate * 2):
        raise PixArtError(
            f"Out of memory at step {step}. Give a larger --loop.accumulate, --loop.checkpoint-activations True, or "
            "fewer pixels."
        )
    write_json(run / MEMORY, {"accumulate": accumulate * 2})
    say(f"out of memory: from now on each batch is computed in {accumulate * 2} parts")
    return accumulate * 2
