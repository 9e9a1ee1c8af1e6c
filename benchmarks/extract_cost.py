"""What one picture and one caption cost the encoders of the released PixArt-α: time on one CPU thread, and arithmetic.

    python benchmarks/extract_cost.py

The autoencoder has the shape of sd-vae-ft-ema and random weights, which cost the same. Of T5-v1.1-XXL one of its 24
equal layers is run, since the whole would need 19 GB, and counted 24 times. docs/cluster.md scales these figures.
"""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode


def measured(call, runs: int = 3) -> tuple[float, float]:
    """Median seconds, and floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        call()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times), counter.get_total_flops()


@torch.inference_mode()
def main() -> None:
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    torch.set_num_threads(1)
    kind = "DownEncoderBlock2D", "UpDecoderBlock2D"
    vae = AutoencoderKL(
        down_block_types=(kind[0],) * 4, up_block_types=(kind[1],) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    vae = vae.eval().to(memory_format=torch.channels_last)
    for size in (256, 512):
        pixels = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            seconds, flops = measured(lambda p=pixels: vae.encode(p))
        print(f"autoencoder, {size} px: {seconds:.2f} s, {flops / 1e12:.3f} TFLOP")
    config = T5Config(
        d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=1, vocab_size=100, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config).eval()
    tokens = torch.randint(100, (1, 120))
    with torch.autocast("cpu", torch.bfloat16):
        seconds, flops = measured(lambda: encoder(input_ids=tokens))
    print(f"T5-v1.1-XXL, 120 tokens: {24 * seconds:.2f} s, {24 * flops / 1e12:.3f} TFLOP")


if __name__ == "__main__":
    main()
