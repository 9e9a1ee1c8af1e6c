"""A tiny model that has learned something, and a fast denoiser distilled from it in seconds by `pixart train`."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from conftest import write_tiny_model
from tiny_data import write_tiny_data

from pixart.checkpoints.diffusers import load_transformer, save_transformer
from pixart.data.features import text_states
from pixart.diffusion import flow
from pixart.training.batches import Phase, TextCondition
from pixart.training.command import train_recipe
from pixart.training.distillation import Distillation, FastRecipe
from pixart.training.loop import LoopConfig
from pixart.training.optimizers.optimizer import OptimizerConfig


def write_teacher(home: Path) -> Path:
    """`home/teacher`, a model folder that was taught two plain pictures for every caption of `home/data`.

    Which of the two a noise leads to is decided on the way: paths are bent, and few steps of the teacher go astray.
    """
    folder, data = home / "teacher", write_tiny_data(home / "data")
    write_tiny_model(folder)
    text = text_states(data, "train", folder / "text_encoder", folder / "tokenizer", home / "cache", lambda line: None)
    condition, rng = TextCondition(text, 0.1, 1.0), np.random.default_rng(0)
    count = len(text.first_caption) - 1
    plain = torch.from_numpy(rng.standard_normal((count, 2, 8, 1, 1), np.float32)).expand(-1, -1, -1, 8, 8)
    network = load_transformer(folder / "transformer")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(100):
        chosen = rng.integers(0, count, 32)
        x_0 = plain[chosen, rng.integers(0, 2, 32)]
        eps = torch.from_numpy(rng.standard_normal(x_0.shape, np.float32))
        sigma, read = torch.from_numpy(rng.random(32, np.float32)), condition(chosen, rng)
        velocity = network(flow.add_noise(x_0, eps, sigma), 1000 * sigma, read["text"], read["text_mask"])
        optimizer.zero_grad()
        flow.losses(velocity, x_0, eps).mean().backward()
        optimizer.step()
    save_transformer(network.state_dict(), network.config, folder / "transformer", None)
    return folder


def recipe(home: Path, *, steps: int = 70) -> FastRecipe:
    return FastRecipe(
        run=home / "fast-run",
        data=home / "data",
        cache=home / "cache",
        teacher=home / "teacher",
        phases=(Phase(steps=steps, size=64, batch_size=16),),
        distillation=Distillation(steps=2, teacher_steps=8, guidance_scale=2.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, decay_share=0.5),
        loop=LoopConfig(precision="fp32", ema_decay=0.9, log_every=10, evaluate_every=1000, save_every=1000),
    )


def train_fast(home: Path, **changes) -> FastRecipe:
    """The finished recipe of the fast denoiser of `home/teacher`."""
    asked = dataclasses.replace(recipe(home), **changes)
    assert train_recipe(asked, lambda line: None) == 0
    return asked
