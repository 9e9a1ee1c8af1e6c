"""A tiny training run for processes that are killed or train together: seconds for hundreds of them.

Processes come from a fork server that has imported the libraries once and never used them, so that each starts in
milliseconds; other tests of kills use it too.
"""

import json
import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from pixart.diffusion.objective import Objective
from pixart.errors import PixArtError
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training import distribution
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig, StopOnSignal, train_loop
from pixart.training.optimizers import OptimizerConfig
from pixart.training.rows import ALL_ROWS, MicrobatchSlice, RowStreams

STEPS, BATCH = 6, 8
LATER = (  # torch and pixart import these when they first need them
    "torch.distributed.fsdp", "torch._dynamo", "pixart.data.extract", "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pixart.training.loop", "pixart.diffusion.objective", *LATER])


def tiny_model(seed: int = 0) -> PixArt:
    torch.manual_seed(seed)
    model = PixArt(PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16, in_channels=4, out_channels=4))
    for block in model.blocks:  # as it is initialised the text would not matter in so few steps
        torch.nn.init.normal_(block.cross_attn.proj.weight, std=0.1)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    return model


class TinyBatches:
    """Batches by number; `at(step, part)` is called before one is made."""

    def __init__(self, at=lambda step, part: None, poisoned: int | None = None):
        self.at, self.poisoned = at, poisoned

    def __getitem__(self, where: tuple[int, MicrobatchSlice]) -> dict:
        step, part = where
        self.at(step, part)
        rows = part.rows(BATCH)
        rng = RowStreams(5, step, rows, purpose=1)
        text = torch.from_numpy(rng.standard_normal((len(rows), 8, 16)))
        mask = torch.arange(8) < torch.from_numpy(1 + 7 * rng.random(len(rows)))[:, None]
        latent = torch.from_numpy(rng.standard_normal((len(rows), 4, 8, 8)))
        keys = [f"image-{step}-{row}.png" for row in rows]
        if step == self.poisoned:
            latent[[row == 6 for row in rows]] = torch.nan
        return {"latent": latent, "text": text, "text_mask": mask, "count": len(rows), "keys": keys}


def tiny_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    objective = Objective("flow")
    noised = objective.add_noise(batch["latent"], batch["rng"])
    batch["levels"] = noised.levels
    prediction = model(noised.x_t, noised.timestep, batch["text"], batch["text_mask"])
    return objective.losses(prediction, noised)


def tiny_train(
    run: Path,
    *,
    steps: int = STEPS,
    batches=None,
    loss=tiny_loss,
    data="",
    world=None,
    model=None,
    optimizer=None,
    **loop,
):
    """Train the tiny model in `run` and return its average."""
    settings = {"precision": "float32", "log_every": 1, "save_every": 1, "validate_every": 4, "device": "cpu"}
    run.mkdir(parents=True, exist_ok=True)
    with StopOnSignal() as stop:
        return train_loop(
            model or tiny_model(), loss, batches or TinyBatches(), steps, run,
            loop=LoopConfig(**(settings | loop)), ema=EmaConfig((0.9,)), world=world or distribution.alone("cpu"),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, **(optimizer or {})), stop=stop, data=data,
            validate=lambda ema, step: {"size": sum(p.square().sum().item() for p in ema.parameters())},
            say=lambda line: None,
        )  # fmt: skip


def metrics(run: Path, name: str = "loss") -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def predictions(model: torch.nn.Module) -> torch.Tensor:
    batch = TinyBatches()[99, ALL_ROWS]
    with torch.no_grad():
        return model(batch["latent"], torch.linspace(10, 990, BATCH), batch["text"], batch["text_mask"])


def start(act, *arguments) -> BaseProcess:
    process = PROCESSES.Process(target=act, args=arguments)
    process.start()
    return process


def together(act, size: int, *arguments) -> list[BaseProcess]:
    """`act(world, *arguments)` in `size` processes that find each other as those of torchrun do.

    The first argument is a path; the sentence of an error stands beside it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(as_rank, rank, size, port, act, *arguments) for rank in range(size)]


def as_rank(rank: int, size: int, port: int, act, *arguments) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with distribution.joined("auto", "cpu") as world:
            act(world, *arguments)
    except PixArtError as error:
        arguments[0].with_suffix(f".{rank}.txt").write_text(str(error))
        os._exit(error.exit_code)
