"""What training runs cost: FLOPs counted from the networks, hours from the runs' own metrics.

    python benchmarks/training_cost.py runs/emoji-autoencoder runs/emoji-stage1 runs/emoji-stage2 runs/emoji-stage3

FLOPs are those of one forward pass on one picture, counted by torch.utils.flop_counter, times three (forward and
backward), times the pictures. Features (latents and text states) and evaluation are not in it. Hours are the wall time
of the steps, from `images_per_second` in metrics.jsonl; core-hours are those times the cores of this machine.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixart.encoders import autoencoder
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.batches import Phase, phase_at
from pixart.training.recipe import AutoencoderRecipe, ClassRecipe, Recipe, from_run

TEXT_TOKENS = 32  # what most batches are padded to


def forward_flops(recipe: Recipe, phase: Phase) -> int:
    """FLOPs of one picture's forward pass in the given phase."""
    torch.manual_seed(0)
    counter = FlopCounterMode(display=False)
    if isinstance(recipe, AutoencoderRecipe):
        side = phase.crop or phase.size
        model = autoencoder.Reconstruction(autoencoder.build(recipe.autoencoder))
        inputs = (torch.zeros(1, 3, side, side),)
    else:
        size, side = recipe.model, phase.size // 8
        sizes = {"width": size.width, "depth": size.depth, "num_heads": size.num_heads}
        x_t, timestep = torch.zeros(1, 8, side, side), torch.tensor([500.0])
        if isinstance(recipe, ClassRecipe):
            model = DiT(DiTConfig(class_counts=(100, 7), **sizes))
            inputs = (x_t, timestep, torch.zeros(1, 2, dtype=torch.int64))
        else:
            model = PixArt(PixArtConfig(**sizes))
            inputs = (x_t, timestep, torch.zeros(1, TEXT_TOKENS, 384), torch.ones(1, TEXT_TOKENS, dtype=torch.bool))
    with counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def hours(run: Path, recipe: Recipe) -> float:
    """Wall time of the steps of a run, counting a step that was done twice (after a stop) twice."""
    seconds = 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "images_per_second" in row:
            pictures = recipe.loop.log_every * phase_at(recipe.phases, row["step"] - 1).batch_size
            seconds += pictures / row["images_per_second"]
    return seconds / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    total_flops, total_hours = 0, 0.0
    print(f"{'run':28} {'steps':>8} {'pictures':>10} {'FLOPs':>10} {'hours':>7}")
    for run in parser.parse_args().runs:
        recipe = from_run(run)
        steps = sum(phase.steps for phase in recipe.phases)
        pictures = sum(phase.steps * phase.batch_size for phase in recipe.phases)
        flops = sum(3 * forward_flops(recipe, phase) * phase.steps * phase.batch_size for phase in recipe.phases)
        wall = hours(run, recipe)
        total_flops, total_hours = total_flops + flops, total_hours + wall
        print(f"{run.name:28} {steps:8,} {pictures:10,} {flops:10.2e} {wall:7.2f}")
    print(f"{'all':28} {'':8} {'':10} {total_flops:10.2e} {total_hours:7.2f}")
    print(f"{os.cpu_count()} cores: {total_hours * (os.cpu_count() or 1):.2f} core-hours")


if __name__ == "__main__":
    main()
