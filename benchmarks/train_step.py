"""A training step here beside the same network in Diffusers' class with a plain loop, in one run.

    python benchmarks/train_step.py emoji-64 emoji-128 emoji-256 xl-256 [--compile] [--threads 2]

Ours is the real loop, `pixart.training.loop.train_loop`, with its defaults. After each of its steps the plain one takes
one, so that both meet the same machine. The plain loop is what a user would write around `PixArtTransformer2DModel`:
bf16 autocast, the same AdamW in one kernel, clipping, a moving average by one foreach call, and captions padded to 120
tokens as the official trainer pads. Both have the same batch, features in memory and the same caption lengths (those
of the emoji captions: 4 to 41 tokens, 13 in the middle); `--caption-tokens 120` takes away what trimming saves.

FLOPs are those of forward and backward, counted by torch.utils.flop_counter on ours. The peak is the best of a bf16
matrix product of 2048 x 2048 measured in the same run. `waits` is the share of our loop's time that goes into batches.
"""

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixart.diffusion.objective import Objective
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.distribution import alone
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig, StopOnSignal, train_loop
from pixart.training.optimizers import OptimizerConfig
from pixart.training.rows import MicrobatchSlice, RowStreams

EMOJI = PixArtConfig(width=256, depth=8, num_heads=4, text_dim=384)
XL = PixArtConfig(width=1152, depth=2, num_heads=16, text_dim=4096, in_channels=4, out_channels=4)
CASES = {  # network, side in pixels, batch
    "emoji-64": (EMOJI, 64, 64),
    "emoji-128": (EMOJI, 128, 32),
    "emoji-256": (EMOJI, 256, 8),
    "xl-128": (XL, 128, 16),
    "xl-256": (XL, 256, 8),
}
PADDED, IMAGES, WARM = 120, 256, 3


class Memory:
    """Batches of random latents and captions of real lengths; `text` is padded to the longest of a batch."""

    def __init__(self, config: PixArtConfig, side: int, batch: int, tokens: int | None):
        rng = np.random.default_rng(0)
        lengths = np.clip(np.round(rng.lognormal(np.log(13), 0.4, IMAGES)), 4, 41).astype(int)
        lengths = lengths if tokens is None else np.full(IMAGES, tokens)
        self.states = [torch.randn(length, config.text_dim).half() for length in lengths]
        self.latents = torch.randn(IMAGES, config.in_channels, side // 8, side // 8)
        self.batch = batch

    def read(self, step: int) -> dict:
        rows = np.random.default_rng([0, step]).integers(0, IMAGES, self.batch)
        length = -(-max(len(self.states[row]) for row in rows) // 16) * 16
        text = torch.zeros(self.batch, length, self.states[0].shape[1])
        mask = torch.zeros(self.batch, length, dtype=torch.bool)
        for place, row in enumerate(rows):
            states = self.states[row]
            text[place, : len(states)], mask[place, : len(states)] = states.float(), True
        keys = [str(row) for row in rows]
        return {"latent": self.latents[rows], "text": text, "text_mask": mask, "count": self.batch, "keys": keys}


def diffusers_model(config: PixArtConfig) -> torch.nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        cross_attention_dim=config.width,
        caption_channels=config.text_dim,
        sample_size=config.sample_size,
    )


class PlainLoop:
    """The other side: one training step of Diffusers' class on the batch that ours has just seen."""

    def __init__(self, config: PixArtConfig):
        torch.manual_seed(0)
        self.model = diffusers_model(config)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, batch: dict) -> None:
        x_0, text = batch["latent"], batch["text"]
        padded = torch.zeros(len(text), PADDED, text.shape[2])
        padded[:, : text.shape[1]] = text
        mask = torch.zeros(len(text), PADDED, dtype=torch.bool)
        mask[:, : text.shape[1]] = batch["text_mask"]
        eps, sigma = torch.randn_like(x_0), torch.sigmoid(torch.randn(len(x_0)))
        level = sigma.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.model(
                (1 - level) * x_0 + level * eps,
                timestep=1000 * sigma,
                encoder_hidden_states=padded,
                encoder_attention_mask=mask,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
            loss = (velocity.float() - (eps - x_0)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 0.001)
        loss.item()  # a loop that looks at its loss, as ours does


def measure(case: str, steps: int, compile: bool, tokens: int | None) -> dict[str, float]:
    """Seconds per step of both, interleaved; FLOPs of a step of ours; the share of the time that waits for data."""
    config, side, batch_size = CASES[case]
    torch.manual_seed(0)
    model, plain, objective = PixArt(config), PlainLoop(config), Objective()

    def loss(network: torch.nn.Module, batch: dict) -> torch.Tensor:
        noised = objective.add_noise(batch["latent"], batch["rng"])
        prediction = network(noised.x_t, noised.timestep, batch["text"], batch["text_mask"])
        return objective.losses(prediction, noised)

    memory = Memory(config, side, batch_size, tokens)
    with FlopCounterMode(display=False) as counter:
        loss(model, memory.read(0) | {"rng": RowStreams(0, 0, range(batch_size))}).mean().backward()
    ours: list[float] = []
    theirs: list[float] = []
    loading: list[float] = []
    left: list[float] = []

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, where: tuple[int, MicrobatchSlice]) -> dict:
            if left:
                ours.append(time.perf_counter() - left[-1])
            begun = time.perf_counter()
            batch = memory.read(where[0])
            loading.append(time.perf_counter() - begun)
            if where[0]:
                ours[-1] += loading[-1]
            begun = time.perf_counter()
            plain.step(batch)
            theirs.append(time.perf_counter() - begun)
            left.append(time.perf_counter())
            return batch

    rare = 10**6
    never = {"log_every": rare, "validate_every": rare, "save_every": rare}
    loop = LoopConfig(precision="bfloat16", compile=compile, device="cpu", workers=0, **never)
    with tempfile.TemporaryDirectory() as folder, StopOnSignal() as stop:
        train_loop(
            model, loss, Batches(), steps, Path(folder), loop=loop, optimizer=OptimizerConfig(learning_rate=1e-4),
            ema=EmaConfig(decays=(0.999,)), world=alone("cpu"), stop=stop, validate=lambda ema, step: {},
            say=lambda line: None,
        )  # fmt: skip
    ours, theirs, loading = ours[WARM:], theirs[WARM : len(ours)], loading[WARM : len(ours)]
    ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(ours)
    return {
        "ours_images_per_second": batch_size / middle,
        "plain_images_per_second": batch_size / statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "gflop": counter.get_total_flops() / 1e9,
        "gflop_per_second": counter.get_total_flops() / 1e9 / middle,
        "waits": sum(loading) / sum(ours),
    }


def peak() -> float:
    """GFLOP/s of the best bf16 matrix product."""
    a, b = torch.randn(2, 2048, 2048).bfloat16()
    best = float("inf")
    for _ in range(12):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="loop.compile for ours")
    parser.add_argument("--caption-tokens", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    best = peak()
    print(f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads, peak {best:.0f} GFLOP/s")
    for case in given.cases:
        figures = measure(case, given.steps, given.compile, given.caption_tokens)
        figures["share_of_peak"] = figures["gflop_per_second"] / best
        print(json.dumps({"case": case} | {name: round(value, 4) for name, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
