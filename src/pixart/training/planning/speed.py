"""How fast this machine trains a recipe's network: a few real steps on random data."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pixart.training.planning.flops import training_flops
from pixart.training.planning.plan import (
    build_network,
    counted_flops,
    drawing_config,
    drawing_flops,
    drawing_passes,
    network_config,
    random_inputs,
    text_tokens,
    works,
)

MEASURED_STEPS = 3  # after one that is not counted
LARGEST_SHARE = 0.25  # of the memory that is free: what the measured network may take
LONGEST_STEP = 1e11  # FLOPs that a measured step may have: about a second on two cores


@dataclass(frozen=True)
class Measured:
    """What a few steps here took: `speed` in FLOP/s, of a network of `depth` blocks in batches of `batch_size`.

    `waited` is the share of the time, from 0 to 1, that this had no processor; 0 where a GPU was measured.
    """

    size: int
    batch_size: int
    depth: int | None
    seconds_per_step: float
    speed: float
    waited: float


def measure(recipe, *, steps: int = MEASURED_STEPS) -> list[Measured]:
    """Take a few real training steps per picture size of the recipe, on random data, and say how fast they were.

    Where the network or the batch is too large for a short measurement, fewer blocks and pictures are taken; speed is
    in FLOP/s, which both leave nearly as it is.
    """
    import torch

    config, tokens = network_config(recipe), text_tokens(recipe)
    if config is not None:
        free = _free_memory()
        depth = config.depth
        while depth > 1 and 20 * _parameters(recipe, replace(config, depth=depth)) > LARGEST_SHARE * free:
            depth //= 2
        config = replace(config, depth=depth)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    model = build_network(recipe, config)
    if torch.cuda.is_available():
        model = model.cuda()
    found = {}
    for work, phase in zip(works(recipe), recipe.phases, strict=True):
        if work.size in found:
            continue
        side = phase.crop or phase.size
        # Of what is timed here: who teaches a student is left out of both.
        per_image = counted_flops(recipe, side) if config is None else training_flops(config, side // 8, tokens)
        count = max(1, min(work.batch_size, int(LONGEST_STEP * max(1, threads / 2) / per_image)))
        seconds, own = _time_steps(model, recipe, config, side, count, steps)
        if (drawing := drawing_config(recipe)) and recipe.drawn.share:
            per_image += drawing_flops(recipe, drawing, side)
            drawn, own_drawn = _time_drawing(recipe, drawing, side, count, steps)
            seconds, own = seconds + drawn, own + own_drawn
        depth = None if config is None else config.depth
        waited = 0.0 if torch.cuda.is_available() else max(0.0, 1 - own / seconds)
        found[work.size] = Measured(work.size, count, depth, seconds, per_image * count / seconds, waited)
    return list(found.values())


def _time_steps(model, recipe, config, side: int, count: int, steps: int) -> tuple[float, float]:
    """Seconds of one training step of `count` pictures, as `_mean_seconds` gives them."""
    import torch

    from pixart.training.ema import Ema
    from pixart.training.optimizers.optimizer import Optimizer
    from pixart.training.precision import autocast

    device = next(model.parameters()).device
    optimizer, average = Optimizer(model, recipe.optimizer), Ema(model, decay=0.999)
    batch = _random_batch(recipe, config, side, count, device)

    def step(number: int) -> None:
        with autocast(recipe.loop.precision, device):
            found = model(*batch)
            value = sum(part.float().square().mean() for part in (found if isinstance(found, tuple) else (found,)))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
        optimizer.step(0.0)  # a rate of zero: the weights stay as they are, the work is the same
        average.update(model, number)

    return _mean_seconds(step, steps, device)


def _time_drawing(recipe, config, side: int, count: int, steps: int) -> tuple[float, float]:
    """Seconds that a decoder's training step of `count` pictures spends on drawing its share of their latents."""
    import torch

    from pixart.model.pixart import PixArt
    from pixart.training.precision import autocast

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = PixArt(config).to(device).eval().requires_grad_(False)
    drawn = max(1, round(recipe.drawn.share * count))
    batch = _random_batch(recipe, config, side, drawn, device)

    def one_pass(number: int) -> None:
        with torch.no_grad(), autocast(recipe.loop.precision, device):
            network(*batch)

    passes = drawing_passes(recipe) * recipe.drawn.share * count / drawn
    seconds, own = _mean_seconds(one_pass, steps, device)
    return passes * seconds, passes * own


def _mean_seconds(act: Callable[[int], None], times: int, device) -> tuple[float, float]:
    """Of so many times, after a first one that does not count; and for how many of them this thread had a processor."""
    act(0)
    _wait(device)
    begun, own = time.perf_counter(), time.thread_time()
    for number in range(1, times + 1):
        act(number)
    _wait(device)
    return (time.perf_counter() - begun) / times, (time.thread_time() - own) / times


def _random_batch(recipe, config, side: int, count: int, device) -> tuple:
    import torch

    from pixart.model.pixart import PixArtConfig

    if config is None:
        return random_inputs(recipe, side, count, device)
    x_t = torch.randn(count, config.in_channels, side // 8, side // 8, device=device)
    timestep = torch.full((count,), 500.0, device=device)
    if isinstance(config, PixArtConfig):
        tokens = text_tokens(recipe)
        text = torch.randn(count, tokens, config.text_dim, device=device)
        size = torch.tensor([[1024.0, 1024.0, 1.0]], device=device).expand(count, 3)
        return x_t, timestep, text, torch.ones(count, tokens, dtype=torch.bool, device=device), size
    return x_t, timestep, torch.zeros(count, len(config.class_counts), dtype=torch.int64, device=device)


def _wait(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parameters(recipe, config) -> int:
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in build_network(recipe, config).parameters())


def _free_memory() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
