"""What each switch for frugality gives in a short run: the held-out loss after the same FLOPs from the same start.

    python benchmarks/switches.py --data runs/emoji --cache runs/emoji-features \\
        --autoencoder runs/emoji-autoencoder/vae --init runs/emoji-stage1 --steps 300

Every run is `stage2.toml` of projects/emoji at 64 px with another switch. FLOPs are counted by
torch.utils.flop_counter, forward and backward, plus Newton-Schulz for Muon; a switch that makes a step cheaper gets
more steps, ending, as its papers say, without it. The loss is that of the averaged weights on held-out pictures at
fixed noise, with the whole network. Seconds are process time, to be read beside the steps: on a shared machine they are
upper bounds.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from pixart.training.stages import build
from torch.utils.flop_counter import FlopCounterMode

from pixart.training import recipe as recipes
from pixart.training.batches import Phase
from pixart.training.loop import train
from pixart.training.recipe import TextRecipe
from pixart.training.rows import RowStreams

SHARED = {"warmup_steps": 50, "decay_share": 0.35}
OPTIMIZERS = {
    "AdamW": ("adamw", 1e-3),
    "AdamW in 8 bits": ("adamw8bit", 1e-3),
    "Muon": ("muon", 1e-3),
    "CAME, rate 3e-4": ("came", 3e-4),
    "CAME, rate 1e-4": ("came", 1e-4),
}
SPARED = {
    "TREAD, half routed": {"route_share": 0.5},
    "masking, half": {"mask_share": 0.5},
    "masking, three quarters": {"mask_share": 0.75},
}
DENSE_SHARE = 0.15  # of the steps of a run that spares tokens, at its end


def step_flops(recipe: TextRecipe) -> float:
    """FLOPs of the first step of a recipe: forward and backward, and Muon's iterations."""
    stage = build(recipe, lambda line: None)
    batch = stage.batches(0) | {"rng": RowStreams(0, 0, range(recipe.phases[0].batch_size))}
    counter = FlopCounterMode(display=False)
    with counter:
        stage.loss(stage.model, batch).backward()
    flops = float(counter.get_total_flops())
    if recipe.optimizer.name == "muon":
        for name, p in stage.model.named_parameters():
            if name.startswith("blocks.") and p.ndim == 2 and "table" not in name:
                small, large = sorted(p.shape)
                flops += 5 * (4 * small * small * large + 2 * small**3)
    return flops


def run(recipe: TextRecipe) -> tuple[float, float]:
    """The held-out loss at the end, and seconds per step."""
    stage = build(recipe, lambda line: None)
    steps = sum(phase.steps for phase in recipe.phases)
    figures: list[float] = []

    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        figures.append(stage.evaluate(ema, step)["held_out_loss"])
        return {}

    begun = time.process_time()
    train(
        stage.model, stage.loss, stage.batches, steps, recipe.run,
        loop=recipe.loop, optimizer=recipe.optimizer, evaluate=evaluate, report=lambda line: None,
    )  # fmt: skip
    return figures[-1], (time.process_time() - begun) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--cache", "--autoencoder", "--init"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names that contain this")
    given = parser.parse_args()
    base = dataclasses.replace(
        recipes.load("projects/emoji/recipes/stage2.toml"),
        data=given.data, cache=given.cache, autoencoder=given.autoencoder, init=given.init,
    )  # fmt: skip
    loop = dataclasses.replace(base.loop, ema_decay=0.98, seed=given.seed, save_every=10**6, evaluate_every=10**6)
    dense = Phase(given.steps, given.size, given.batch_size)
    plain = dataclasses.replace(base, loop=loop, phases=(dense,))
    plain = dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, **SHARED))
    budget = step_flops(plain) * given.steps

    print(f"{'switch':26} {'GFLOP/step':>10} {'steps':>6} {'s/step':>7} {'held-out loss':>14}", flush=True)
    for title in (*OPTIMIZERS, *SPARED):
        if given.only not in title:
            continue
        recipe, steps = plain, given.steps
        if title in OPTIMIZERS:
            name, rate = OPTIMIZERS[title]
            optimizer = dataclasses.replace(plain.optimizer, name=name, learning_rate=rate)
            recipe = dataclasses.replace(plain, optimizer=optimizer)
            flops = step_flops(recipe)
            steps = round(budget / flops)
            phases: tuple[Phase, ...] = (dataclasses.replace(dense, steps=steps),)
        else:
            spared = dataclasses.replace(dense, **SPARED[title])
            flops = step_flops(dataclasses.replace(recipe, phases=(spared,)))
            mean = (1 - DENSE_SHARE) * flops + DENSE_SHARE * budget / given.steps
            steps = round(budget / mean)
            last = round(DENSE_SHARE * steps)
            phases = (dataclasses.replace(spared, steps=steps - last), dataclasses.replace(dense, steps=last))
        with tempfile.TemporaryDirectory() as folder:
            loss, seconds = run(dataclasses.replace(recipe, phases=phases, run=Path(folder) / "run"))
        print(f"{title:26} {flops / 1e9:10.1f} {steps:6} {seconds:7.2f} {loss:14.4f}", flush=True)


if __name__ == "__main__":
    main()
