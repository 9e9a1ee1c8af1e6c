"""The one training loop: autoencoder, three stages, and whatever comes later bring a model and a `loss(model, batch)`.

What a step does follows from the seed and its number: batches come by number, and every row of a batch has its own
random stream (rows.py). So a run that is continued takes the steps that an unbroken one takes, and any number of
processes takes the steps that one process takes; no random state is saved.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from pixart.errors import UsageError
from pixart.training import checkpoint, distributed, metrics, nonfinite
from pixart.training.clock import Clock
from pixart.training.distributed import Device, Parallel, World
from pixart.training.ema import Ema
from pixart.training.optimizers.optimizer import Optimizer, OptimizerConfig, learning_rate
from pixart.training.precision import LossScale, Precision, autocast
from pixart.training.rows import RowStreams, Share
from pixart.training.stopping import Preempted, StopOnSignal


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs; how long it runs is the sum of the recipe's phases.

    `accumulate` parts of a batch are computed one after the other, for less memory, and `checkpoint_activations`
    computes each block again in the backward pass; neither changes the result by more than rounding. `parallel` and
    `device` say who computes: auto takes what is there, DDP where torchrun started several processes. `ema_decays` are
    further averages, to choose from when the run is over (`pixart ema`).
    """

    seed: int = 0
    precision: Precision = "bf16"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    parallel: Parallel = "auto"
    device: Device = "auto"
    ema_decay: float = 0.999
    ema_decays: tuple[float, ...] = ()
    log_every: int = 50
    evaluate_every: int = 1000
    save_every: int = 500

    def __post_init__(self):
        for name in ("accumulate", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"loop: {name} {getattr(self, name)} must be at least 1.")
        decays = (self.ema_decay, *self.ema_decays)
        if not all(0 <= decay < 1 for decay in decays) or len(set(decays)) < len(decays):
            raise UsageError(
                f"loop: ema_decay {self.ema_decay} and ema_decays {self.ema_decays} must be from 0 to below 1, each "
                "another one."
            )
        if not 0 <= self.seed < 2**40:
            raise UsageError(f"loop: seed {self.seed} must not be negative, nor above 2^40.")


# What may differ when a run is continued: who computes how, and how often it is looked at.
MAY_CHANGE = (
    *("accumulate", "checkpoint_activations", "compile", "parallel", "device"),
    *("log_every", "evaluate_every", "save_every"),
)


def train(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, dict], torch.Tensor],
    batches: Callable[[int, Share], dict],
    steps: int,
    run: Path,
    *,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    evaluate: Callable[[torch.nn.Module, int], dict[str, float]],
    report: Callable[[str], None] = print,
    record: Callable[[int, dict[str, float]], None] | None = None,
    receipt: Callable[[int], dict] | None = None,
    data: str | None = None,
    world: World | None = None,
) -> torch.nn.Module:
    """Train `model` for `steps` steps inside the run folder `run` and return a copy with the EMA weights.

    Args:
        model: trained in place, weights in fp32.
        loss: `loss(model, batch) -> scalar`, the mean over the rows. It calls `model` and nothing of its parts, and
            takes its random numbers from `batch["rng"]` (see rows.py).
        batches: `batches(step, share) -> batch`, a pure function of both. `batch["count"]` is its number of pictures,
            `batch["keys"]`, where there, their names.
        evaluate: `evaluate(ema_model, step) -> {name: figure}`, every `loop.evaluate_every` steps and at the end, by
            the main process only.
        report: takes one line of progress.
        record: `record(step, figures)` gets all figures that also go to `metrics.jsonl`.
        receipt: `receipt(step)` is kept in the checkpoint: what the run has cost. Of the main process only.
        data: names what is trained on; a checkpoint that was trained on something else is refused.
        world: the processes that train together, as `distributed.joined` gives them; one if left out.

    Raises:
        PixArtError: a loss or gradient is not finite (the last good checkpoint stays); a checkpoint cannot be read;
            another process was lost; the disk is full.
        Preempted: SIGINT or SIGTERM, after a checkpoint was written.
    """
    world = world or distributed.alone(loop.device)
    check(loop, optimizer, model, world)
    run.mkdir(parents=True, exist_ok=True)
    with distributed.noticing_the_lost(world, run), StopOnSignal() as stop:
        model.to(world.device)
        distributed.make_equal(model, world)
        averages = Ema(model, decay=loop.ema_decay, others=loop.ema_decays)
        saved = checkpoint.newest(run)
        if saved:
            saved.refuse_other_data(data)
            saved.load_weights(model, averages)
        if loop.checkpoint_activations:
            for block in model.blocks:
                block.forward = partial(recomputed, block.forward, use_reentrant=False)
        spread = distributed.spread(model, world, loop.parallel)
        if loop.parallel == "fsdp" and world.size > 1:
            averages.shard(model, main=world.main)
        forward = torch.compile(spread) if loop.compile else spread
        optim, scale = Optimizer(model, optimizer), LossScale(loop.precision)
        start = 0
        if saved:
            start = saved.step
            saved.load_optimizer(optim)
            scale.load_state(saved.state.get("loss_scale", scale.state()))
        world.wait()  # nobody sweeps before all have read
        if world.main:
            checkpoint.sweep(run)
            metrics.forget_after(run, start)
            if start:
                report(f"continuing {run} at step {start:,} of {steps:,}")

        def log(step: int, figures: dict[str, float]) -> None:
            metrics.append(run, step, figures)
            if record:
                record(step, figures)

        clock = Clock(start, steps)
        for step in range(start, steps):
            optim.zero_grad()
            value, parts = torch.zeros((), device=world.device), []
            shares = world.shares(loop.accumulate)
            for share in shares:
                with clock.loading():
                    batch = _prepared(batches(step, share), step, share, loop.seed, world.device)
                with distributed.gradients(spread, exchanged=share is shares[-1]):
                    with autocast(loop.precision, world.device):
                        part = loss(forward, batch) / len(shares)
                    (part * scale.scale).backward()
                value += part.detach()
                parts.append(batch)
            scale.unscale(list(model.parameters()))
            norm = distributed.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip)).item()
            value, stopping = world.agree(value, stop.requested)
            value, rate = value.item(), learning_rate(step, steps, optimizer)
            if math.isfinite(value) and math.isfinite(norm):
                optim.step(rate)
                averages.update(model, step)
                scale.good_step()
            elif not (math.isfinite(value) and scale.halve()):
                raise world.once(nonfinite.error(step, value, norm, parts, run, world))

            done = step + 1
            clock.step(done, sum(batch["count"] for batch in parts) * world.size)
            if world.main and (done % loop.log_every == 0 or done == steps):
                figures = {"loss": value, "lr": rate, "grad_norm": norm, **clock.figures()}
                log(done, figures)
                report(clock.line(done, figures))
            if done % loop.evaluate_every == 0 or done == steps:
                whole = averages.whole()
                with clock.paused():
                    if world.main:
                        figures = evaluate(whole, done)
                        log(done, figures)
                        report(f"step {done:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
                    world.wait()
            if done % loop.save_every == 0 or done == steps or stopping:
                extra = {"data": data, "loss_scale": scale.state(), "receipt": receipt(done) if receipt else None}
                checkpoint.save(run, done, model, averages, optim, main=world.main, extra=extra)
            if stopping and done < steps:
                again = "run the same command again to continue."
                raise world.once(Preempted(f"Stopped by a signal at step {done:,}; {again}"))
        _, stopping = world.agree(torch.zeros((), device=world.device), stop.requested)
        if stopping:  # in the last step: a chain must not go on to its next stage
            again = "run the same command again to finish."
            raise world.once(Preempted(f"Stopped by a signal with all {steps:,} steps done; {again}"))
        whole = averages.whole()
        return whole.cpu() if world.main else whole


def check(loop: LoopConfig, optimizer: OptimizerConfig, model: torch.nn.Module, world: World) -> None:
    """Raises UsageError for what cannot be trained together."""
    if loop.checkpoint_activations and not hasattr(model, "blocks"):
        raise UsageError("loop.checkpoint_activations: this network has no blocks to compute again. Leave it out.")
    if loop.parallel == "fsdp" and world.size > 1 and optimizer.name != "adamw":
        raise UsageError(f"loop.parallel is fsdp, but {optimizer.name} needs whole matrices. Give adamw, or ddp.")


def _prepared(batch: dict, step: int, share: Share, seed: int, device: torch.device) -> dict:
    """The batch on its device, with the random streams of its rows in `rng`."""
    rows = share.rows(batch["count"] * share.parts)
    torch.manual_seed((seed * 1_000_003 + step) * share.parts + share.part)  # for what does not ask `rng`
    moved = {name: part.to(device) if torch.is_tensor(part) else part for name, part in batch.items()}
    return {**moved, "rng": RowStreams(seed, step, rows)}
