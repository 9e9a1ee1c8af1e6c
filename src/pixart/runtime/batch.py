"""How many images at once: pure functions of the device's free memory and of what a row takes."""

from pixart.runtime.device import Device

# On a CPU a batch pays until the tokens of one pass hold so many numbers (tokens x width): products are large enough
# then, and more leave the caches. Measured with the shipped model and XL/2 on 1 and 2 cores.
CPU_NUMBERS = 1 << 18
GPU_NUMBERS = 20  # that a pass holds at once per token and width: hidden layers of the MLP, queries, keys and values
GPU_SHARE = 0.6  # of the free memory that activations may take; the rest is for fragments and other networks
DECODER_NUMBERS = 4  # that decoding holds at once per pixel and channel of the finest level
MOST_ROWS = 256  # of one pass; more gain nothing on any GPU of today


def rows_at_once(device: Device, *, tokens: int, width: int, number_bytes: int) -> int:
    """How many rows of a denoising pass to compute together; a guided image has two.

    Args:
        device: with its free memory after the networks were loaded.
        tokens, width: of one row, N and D.
        number_bytes: of one activation.
    """
    if device.type == "cpu":
        return max(1, CPU_NUMBERS // (tokens * width))
    row = tokens * width * GPU_NUMBERS * number_bytes
    return min(MOST_ROWS, max(1, int(device.free_bytes * GPU_SHARE) // row))


def images_to_decode(device: Device, *, pixels: int, channels: int, number_bytes: int) -> int:
    """How many images of so many pixels to decode together; `channels` are those of the decoder's finest level."""
    if device.type == "cpu":
        return 1
    image = pixels * channels * DECODER_NUMBERS * number_bytes
    return min(MOST_ROWS, max(1, int(device.free_bytes * GPU_SHARE) // image))
