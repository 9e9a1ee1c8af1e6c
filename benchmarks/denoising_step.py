"""A guided step of XL/2 beside stock Diffusers, on this CPU: the same random weights, latents, prompt, dtype, in turn.

    python benchmarks/denoising_step.py [--size 256] [--dtype bfloat16] [--rounds 5] [--compile] [--layers 28]

A step is one pass of the network for a prompt of 20 tokens and an unconditional text of 2; for Diffusers both are
padded to 120 tokens, as its pipeline does. `--compile` adds Diffusers with torch.compile on its blocks, which takes a
minute at first; `--layers` takes fewer blocks. Ratios are medians over rounds, in which the arms take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pixart.checkpoints.diffusers import diffusers_config, to_diffusers_names
from pixart.model.pixart import PixArt, PixArtConfig, TextContext

WIDTH, TOKENS, PADDED = 1152, (20, 2), 120


class Ours:
    """The network as torch_networks.py uses it: keys and values once per prompt, both halves of guidance in a pass."""

    def __init__(self, config: PixArtConfig, state: dict[str, torch.Tensor]):
        with torch.device("meta"):
            self.model = PixArt(config)
        self.model.load_state_dict(state, assign=True)
        self.model.requires_grad_(False).eval()

    def read(self, texts: torch.Tensor) -> TextContext:
        rows = zip(texts, TOKENS, strict=True)
        return TextContext.together([self.model.encode_text(text[None, :count], None) for text, count in rows])

    def step(self, x_t: torch.Tensor, timestep: int, context: TextContext) -> torch.Tensor:
        modulation = self.model.embed_timestep(torch.tensor([timestep, timestep]))
        return self.model.denoise(x_t.repeat(2, 1, 1, 1), modulation, context)


def stock(config: PixArtConfig, state: dict[str, torch.Tensor], dtype: torch.dtype, fused: bool, compiled: bool):
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        model = PixArtTransformer2DModel(**diffusers_config(config))
    fresh = PixArtTransformer2DModel(**diffusers_config(config) | {"num_layers": 1})
    names = to_diffusers_names(state, config.depth)
    model.load_state_dict(names, assign=True)
    model.pos_embed = fresh.pos_embed.to(dtype)  # holds the positions, which are not in the file
    model.pos_embed.proj.load_state_dict({k[15:]: v for k, v in names.items() if k.startswith("pos_embed.proj.")})
    model.requires_grad_(False).eval()
    if fused:
        model.fuse_qkv_projections()
    if compiled:
        for block in model.transformer_blocks:
            block.compile()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    side, dtype = options.size // 8, getattr(torch, options.dtype)
    # sample_size 64 has positions of the 512-px model; the size of this network's images does not change its cost.
    config = PixArtConfig(
        in_channels=4, out_channels=8, width=WIDTH, depth=options.layers, num_heads=16, text_dim=4096, sample_size=side
    )
    state = random_state(config, dtype)
    x_t = torch.randn(1, 4, side, side).to(dtype)
    texts = torch.randn(2, PADDED, 4096).to(dtype)
    mask = (torch.arange(PADDED)[None] < torch.tensor(TOKENS)[:, None]).to(dtype)
    ours = Ours(config, state)
    theirs = stock(config, state, dtype, fused=False, compiled=False)

    def of(model) -> Callable[[int], torch.Tensor]:
        def step(timestep: int) -> torch.Tensor:
            now = torch.tensor([timestep, timestep])
            nothing = {"resolution": None, "aspect_ratio": None}
            return model(x_t.repeat(2, 1, 1, 1), texts, now, nothing, encoder_attention_mask=mask, return_dict=False)[0]

        return step

    with torch.inference_mode():
        contexts = ours.read(texts)
        arms: dict[str, Callable[[], object]] = {"stock": lambda: of(theirs)(500)}
        fused = stock(config, state, dtype, fused=True, compiled=False)
        arms["stock, fused"] = lambda: of(fused)(500)
        if options.compile:
            compiled = stock(config, state, dtype, fused=True, compiled=True)
            arms["stock, fused, compiled"] = lambda: of(compiled)(500)
        arms["pixart"] = lambda: ours.step(x_t, 500, contexts)
        a, b = of(theirs)(500).float(), ours.step(x_t, 500, contexts).float()
        print(f"difference from stock, of the largest value: {(a - b).abs().max() / a.abs().max():.1e}")
        table(arms, options.rounds)
        floor(config, side, dtype)


def random_state(config: PixArtConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict of small numbers, all different enough that nothing is trivial."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in PixArt(config).state_dict().items()}
    numbers = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        count, scale = shape.numel(), 0.5 * shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1
        rolled = numbers.roll(index * 1013).repeat(-(-count // len(numbers)))[:count]
        state[name] = (rolled * scale).view(shape).to(dtype)
    return state


def table(arms: dict[str, Callable[[], object]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            begun = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - begun)
    seconds = {name: values[1:] for name, values in seconds.items()}
    first = seconds["stock"]
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(first, values, strict=True)]
        print(
            f"{name}: {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}), "
            f"{statistics.median(ratios):.2f} times as fast as stock ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def floor(config: PixArtConfig, side: int, dtype: torch.dtype) -> None:
    """What the products of a guided step would take at the best rate of a large product, attention apart."""
    a = torch.randn(2048, 2048).to(dtype)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    rate, tokens = 2 * 2048**3 / best, (side // 2) ** 2
    products = 2 * 2 * 14 * config.width**2 * tokens * config.depth
    attention = 2 * 4 * tokens**2 * config.width * config.depth
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; a product of 2048 x 2048 x 2048 reaches "
        f"{rate / 1e9:.0f} GFLOP/s; products of a guided step: {products / 1e9:.0f} GFLOP, {products / rate:.3f} s at "
        f"that rate; self-attention: {attention / 1e9:.0f} GFLOP"
    )


if __name__ == "__main__":
    main()
