"""Quality per FLOP: the official recipe, its objective tuned, and ours, by the held-out denoising error.

    python benchmarks/frugality/run.py --data runs/emoji --cache runs/emoji-features \\
        --autoencoder runs/emoji-autoencoder/vae --stage1 runs/emoji-stage1 --runs runs/frugality

Tuning comes first (four trials for each tunable arm, judged on held-out pictures of their own), then the arms with
three seeds, then the waterfall, then arms that give a share of the same FLOPs to a stage 1. Everything reported is
measured on other pictures and on concepts never seen. What is done is kept in results.json and never done again; a run
that was cut short continues. `report.py` makes table and plot.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from arms import OFFICIAL_ARM, SIZE, STAGE1_SHARES, TUNING, WATERFALL, Arm, Places, recipe_of, stage1_recipe
from pixart.training.stages import build
from torch.utils.flop_counter import FlopCounterMode

from pixart.data import features
from pixart.evaluation.denoising_error import denoising_error
from pixart.training.batches import TextCondition
from pixart.training.command import train_recipe
from pixart.training.loop import train
from pixart.training.recipe import ClassRecipe, TextRecipe, text_folders
from pixart.training.rows import RowStreams

SEEDS = (0, 1, 2)
SPLITS = {"cells": "test_cells", "concepts": "test_concepts"}


def held_out(places: Places, recipe: TextRecipe) -> dict[str, dict]:
    """Three sets: `tuning` and `cells`, two quarters of the held-out pictures, and `concepts`, never seen at all."""
    encoder, tokenizer = text_folders(recipe)
    sets = {}
    for name, split in SPLITS.items():
        mean, _ = features.latents(places.data, split, SIZE, places.autoencoder, places.cache, print)
        text = features.text_states(places.data, split, encoder, tokenizer, places.cache, print)
        condition = TextCondition(text, dropout=0.0, short_share=1.0)(np.arange(len(mean)), np.random.default_rng(0))
        sets[name] = {"latent": mean.float(), **condition}
    whole = sets["cells"]
    return {
        "tuning": {key: value[0::4] for key, value in whole.items()},
        "cells": {key: value[2::4] for key, value in whole.items()},
        "concepts": sets["concepts"],
    }


def step_flops(recipe: ClassRecipe | TextRecipe) -> float:
    """FLOPs of one step, forward and backward, as torch.utils.flop_counter counts them; the mean of four batches."""
    stage, totals = build(recipe, lambda line: None), []
    for step in range(4):
        counter = FlopCounterMode(display=False)
        with counter:
            batch = stage.batches(step)
            stage.loss(stage.model, batch | {"rng": RowStreams(0, step, range(batch["count"]))}).backward()
        totals.append(counter.get_total_flops())
    return float(np.mean(totals))


def after_stage1(arm: Arm, places: Places, recipe: TextRecipe, flops: float) -> tuple[TextRecipe, float]:
    """Train a stage 1 with the arm's share of the FLOPs; the recipe with what is left of its steps, and FLOPs spent."""
    probe = stage1_recipe(arm, places, name="probe", steps=8, seed=recipe.loop.seed)
    per_step, budget = step_flops(probe), recipe.phases[0].steps * flops
    steps = round(arm.stage1_share * budget / per_step)
    first = stage1_recipe(arm, places, name=f"{recipe.run.name}-stage1", steps=steps, seed=recipe.loop.seed)
    train_recipe(first, report=lambda line: None)
    spent = steps * per_step
    phase = dataclasses.replace(recipe.phases[0], steps=round((budget - spent) / flops))
    return dataclasses.replace(recipe, phases=(phase,), init=first.run), spent


def measure(recipe: TextRecipe, flops: float, sets: dict[str, dict], *, spent: float = 0.0) -> dict:
    """Train a recipe to its end and return its curve: errors of the averaged weights against FLOPs.

    `flops` is what a step takes, `spent` what was before the first.
    """
    stage, steps = build(recipe, lambda line: None), recipe.phases[0].steps
    kept = recipe.run / "curve.json"
    curve = json.loads(kept.read_text()) if kept.exists() else []

    def evaluate(ema: torch.nn.Module, step: int) -> dict[str, float]:
        begun = time.process_time()
        ema.eval()
        wanted = sets if step == steps else {"cells": sets["cells"]}
        errors = {
            name: denoising_error(ema, **parts, objective=recipe.objective, bf16=True) for name, parts in wanted.items()
        }
        curve[:] = [point for point in curve if point["step"] < step]
        means = {name: error.mean for name, error in errors.items()}
        curve.append({"step": step, "flops": spent + step * flops, **means})
        if step == steps:
            curve[-1]["levels"] = {name: list(error.velocity) for name, error in errors.items()}
        curve[-1]["evaluation_seconds"] = time.process_time() - begun
        write_json(kept, curve)
        return means

    begun = time.process_time()
    train(
        stage.model, stage.loss, stage.batches, steps, recipe.run,
        loop=recipe.loop, optimizer=recipe.optimizer, evaluate=evaluate, report=lambda line: None,
    )  # fmt: skip
    return {"curve": curve, "steps": steps, "step_flops": flops, "cpu_seconds": time.process_time() - begun}


def write_json(path: Path, value: object) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def plan(results: dict, given: argparse.Namespace) -> Iterator[tuple[str, Arm, float, int]]:
    """Name, arm, FLOPs and seed of every run, in order; what the tuning chose is known once it is done."""
    for arm, trials in TUNING.items():
        for trial, how in trials.items():
            yield f"tuning/{arm}/{trial}", how, given.tuning_flops, 0
    chosen = {arm: best_trial(results, arm) for arm in TUNING}
    for seed in SEEDS:
        for arm, trial in chosen.items():
            yield f"arm/{arm}/seed {seed}", TUNING[arm][trial], given.arm_flops, seed
    for step, how in WATERFALL.items():
        yield f"waterfall/{step}", how, given.tuning_flops, 0
    for seed in SEEDS:
        yield f"arm/official/seed {seed}", OFFICIAL_ARM, given.arm_flops, seed
    for seed in SEEDS:
        for share, number in STAGE1_SHARES.items():
            how = dataclasses.replace(TUNING["ours"][chosen["ours"]], stage1_share=number)
            yield f"stage1/{share}/seed {seed}", how, given.arm_flops, seed


def best_trial(results: dict, arm: str) -> str:
    """The trial with the lowest error on the pictures that are kept for tuning."""
    errors = {trial: results[f"tuning/{arm}/{trial}"]["curve"][-1]["tuning"] for trial in TUNING[arm]}
    return min(errors, key=errors.get)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--cache", "--autoencoder", "--stage1", "--runs"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tuning-flops", type=float, default=1e13)
    parser.add_argument("--arm-flops", type=float, default=4e13)
    parser.add_argument("--only", default="", help="names that begin with this: tuning, arm, waterfall, stage1")
    given = parser.parse_args()
    places = Places(given.data, given.cache, given.autoencoder, given.stage1, given.runs)
    places.runs.mkdir(parents=True, exist_ok=True)
    budgets = {"tuning_flops": given.tuning_flops, "arm_flops": given.arm_flops}
    kept = places.runs / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {"budgets": budgets}
    if results["budgets"] != budgets:
        raise SystemExit(f"{kept} was made with {results['budgets']}; give these, or another --runs.")
    sets: dict[str, dict] = {}
    flops: dict[str, float] = {}
    for name, arm, budget, seed in plan(results, given):
        if name in results or not name.startswith(given.only):
            continue
        probe = recipe_of(arm, places, name="probe", steps=8, seed=seed, points=1)
        sets = sets or held_out(places, probe)
        if arm.objective not in flops:
            flops[arm.objective] = step_flops(probe)
        per_step = flops[arm.objective]
        folder = name.replace("/", "-").replace(" ", "_").replace(",", "")
        points = 8 if name.startswith("arm/") else 1
        recipe = recipe_of(arm, places, name=folder, steps=round(budget / per_step), seed=seed, points=points)
        spent = 0.0
        if arm.stage1_share:
            recipe, spent = after_stage1(arm, places, recipe, per_step)
        results[name] = measure(recipe, per_step, sets, spent=spent)
        write_json(kept, results)
        last = results[name]["curve"][-1]
        print(
            f"{name:45} {last['flops']:.2e} FLOPs  cells {last['cells']:.4f}  concepts {last['concepts']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
