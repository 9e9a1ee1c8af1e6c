"""What a training step of XL/2 costs per block, measured with few blocks, and what stage 2 then costs on 64 GPUs.

    python benchmarks/xl_step.py

Two depths are timed; their difference is the cost of one block, and what is left is the cost of the rest. That times
28 is the whole network. FLOPs are counted by torch on the same step, so the share of this machine's matrix-product
peak is known. docs/cluster.md carries the arithmetic on to GPUs.
"""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.optimizers import Optimizer, OptimizerConfig

BATCH, SIDE, TEXT_TOKENS, DEPTHS, REPEATS = 4, 32, 120, (1, 3), 3


def parts(depth: int):
    torch.manual_seed(0)
    config = PixArtConfig(in_channels=4, out_channels=8, width=1152, depth=depth, num_heads=16, text_dim=4096)
    model = PixArt(config)
    batch = (
        torch.randn(BATCH, 4, SIDE, SIDE),
        torch.rand(BATCH) * 999,
        torch.randn(BATCH, TEXT_TOKENS, 4096),
        torch.ones(BATCH, TEXT_TOKENS, dtype=torch.bool),
    )
    return model, Optimizer(model, OptimizerConfig(learning_rate=2e-5, weight_decay=0.03)), batch


def backward(model, batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch).float().square().mean()
    loss.backward()


def measure(depth: int) -> tuple[float, int, int]:
    """Median seconds of a step, its FLOPs and the parameters of the network."""
    model, optimizer, batch = parts(depth)
    with FlopCounterMode(display=False) as counter:
        backward(model, batch)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        optimizer.zero_grad()
        backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(2e-5)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), counter.get_total_flops(), sum(p.numel() for p in model.parameters())


def peak() -> float:
    """FLOP/s of a large bf16 matrix product on this machine, the best of ten."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best


def main() -> None:
    (few_s, few_flops, few_count), (more_s, more_flops, more_count) = (measure(depth) for depth in DEPTHS)
    blocks = DEPTHS[1] - DEPTHS[0]
    block_s, block_flops, block_count = (
        (more - few) / blocks for few, more in ((few_s, more_s), (few_flops, more_flops), (few_count, more_count))
    )
    rest_s, rest_flops, rest_count = (
        few - DEPTHS[0] * block for few, block in ((few_s, block_s), (few_flops, block_flops), (few_count, block_count))
    )
    whole_s, whole_flops = (rest + 28 * block for rest, block in ((rest_s, block_s), (rest_flops, block_flops)))
    top = peak()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, bf16 autocast, AdamW fused")
    print(f"measured: depth {DEPTHS[0]} {few_s:.2f} s, depth {DEPTHS[1]} {more_s:.2f} s; a block {block_s:.3f} s")
    print(f"computed for 28 blocks: {whole_s:.2f} s a step, {whole_s / BATCH:.2f} s a picture")
    count = rest_count + 28 * block_count
    print(f"counted: {whole_flops / BATCH / 1e12:.3f} TFLOP a picture; {count / 1e6:.0f} M parameters")
    print(f"of {top / 1e9:.0f} GFLOP/s in a matrix product, a step reaches {more_flops / more_s / top:.0%}")


if __name__ == "__main__":
    main()
