"""How a model is held in memory on one machine: pure functions of its sizes, the device and what is free.

The peak of each way to generate is estimated, and the first that fits is taken. docs/memory.md explains the ways."""

from dataclasses import dataclass, fields, replace

from pixart.errors import PixArtError
from pixart.runtime.device import Device, Precision, text_precision
from pixart.runtime.memory import PLAIN, Memory

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROGRAM = 510_000_000  # Python, torch, diffusers and transformers
LAYER_NUMBERS = 20  # per token and width that a step holds at once
DECODER_NUMBERS = 4.5  # per pixel and channel of the second-finest level that decoding holds at once
SHARE = 0.9  # of the free memory that a plan may take
LARGE = 1 << 30  # bytes of a text encoder's files from which it is not loaded to be used once


@dataclass(frozen=True)
class Sizes:
    """A model and one image of it. Networks are counted in numbers, `text_file` in bytes."""

    text_linear: int  # of the text encoder's linear layers
    text_other: int
    text_layer: int  # of its largest linear layer
    text_file: int
    denoiser: int
    decoder: int
    tokens: int  # of one image
    width: int  # of the denoiser
    decoded: float  # that decoding the image holds at once
    decoded_tile: float  # that decoding one tile of it holds at once


@dataclass(frozen=True)
class Need:
    """Bytes at the peak: on the device, and in the computer's memory, which on a CPU are the same."""

    device: int
    host: int

    def fits(self, device: Device, host_free: int) -> bool:
        return self.device <= SHARE * device.free_bytes and self.host <= SHARE * host_free


@dataclass(frozen=True)
class Plan:
    """What was decided: `memory` leaves nothing open. `reason` is for the line that says so."""

    memory: Memory
    need: Need
    reason: str


def decoder_dtype(device: Device, precision: Precision, wanted: str) -> str:
    """bf16 on a GPU that computes in it, unless fp32 was given; else fp32, since many decoders overflow in fp16."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cuda" and device.bfloat16 and precision.storage != "float32" else "float32"


def encoder_precision(precision: Precision, wanted: str) -> Precision:
    """Of the text encoder, by that of the denoiser, or as given."""
    return text_precision(precision if wanted == "auto" else replace(precision, storage=wanted, arithmetic=wanted))


def estimate(sizes: Sizes, device: Device, precision: Precision, memory: Memory) -> Need:
    """What one guided image takes at its peak, with nothing in `memory` left open."""
    of_text = encoder_precision(precision, memory.text_encoder_dtype)
    kept, product = BYTES[of_text.storage], BYTES[of_text.arithmetic]
    widened = sizes.text_layer * product  # the layer that works, in the dtype of the products
    if memory.text_states is not None:
        text = 0
    elif memory.text_encoder_mode == "streamed":
        text = widened
    elif memory.text_encoder_8bit:
        text = sizes.text_linear + sizes.text_other * product + widened
    else:
        text = (sizes.text_linear + sizes.text_other) * kept + (widened if kept != product else 0)
    half = BYTES[precision.arithmetic]
    denoiser = sizes.denoiser * BYTES[precision.storage]
    step = 2 * sizes.tokens * sizes.width * LAYER_NUMBERS * half
    numbers = BYTES[decoder_dtype(device, precision, memory.vae_dtype)]
    decoder = sizes.decoder * numbers
    decoding = int((sizes.decoded_tile if memory.decode == "tiled" else sizes.decoded) * numbers)
    in_turn = max(text, denoiser + step, decoder + decoding)
    together = text + denoiser + decoder + max(step, decoding)
    if device.type != "cuda":
        peak = PROGRAM + (in_turn if memory.staged else together)
        return Need(peak, peak)
    if memory.offload:
        return Need(in_turn, PROGRAM + text + denoiser + decoder)
    return Need(in_turn if memory.staged else together, PROGRAM)


def ways(sizes: Sizes, once: bool) -> list[Memory]:
    """Ways to generate, the fastest first.

    `once`: all texts are known, so that a large text encoder that is read while it works is never slower than one that
    is loaded first.
    """
    loaded, streamed = (Memory(text_encoder_mode=how, decode="whole") for how in ("loaded", "streamed"))
    first = [] if once and sizes.text_file > LARGE else [loaded, replace(loaded, text_encoder_8bit=True)]
    tiled = replace(streamed, decode="tiled")
    return [*first, streamed, tiled, replace(tiled, staged=True)]


def in_words(memory: Memory) -> str:
    """What `memory` saves."""
    texts = {
        memory.text_encoder_mode == "streamed": "the text encoder works from its file",
        memory.text_encoder_8bit: "the text encoder is kept in 8 bits",
        memory.text_states is not None: "texts come from a file",
    }
    phrases = [
        texts.get(True),
        "large images are decoded in tiles" if memory.decode == "tiled" else None,
        "networks are loaded in turn" if memory.staged else None,
        "networks move to the GPU to work" if memory.offload else None,
    ]
    return ", ".join(phrase for phrase in phrases if phrase) or "everything is loaded"


def choose_plan(
    sizes: Sizes, device: Device, precision: Precision, host_free: int, given: Memory = PLAIN, *, once: bool = False
) -> Plan:
    """The first way that fits, with what was given in its place.

    Args:
        host_free: bytes that are free in the computer's memory.
        given: what somebody has chosen; only what it leaves open is decided here.
        once: the model is loaded for one request.

    Raises:
        PixArtError: nothing fits; says what would.
    """
    chosen = {each.name: getattr(given, each.name) for each in fields(Memory)}
    chosen = {name: value for name, value in chosen.items() if value != getattr(PLAIN, name)}
    if given.text_encoder_8bit:
        chosen.setdefault("text_encoder_mode", "loaded")
    if given.text_encoder_mode == "streamed":
        chosen["text_encoder_8bit"] = False
    plans = []
    for way in ways(sizes, once):
        memory = replace(way, **chosen)
        need = estimate(sizes, device, precision, memory)
        free = device.free_bytes if device.type == "cuda" else host_free
        words = f"{in_words(memory)}; about {gigabytes(need.device)} of {gigabytes(free)} free"
        if need.fits(device, host_free):
            return Plan(memory, need, words)
        plans.append(Plan(memory, need, f"{words}, which may not be enough"))
    least = min(plans, key=lambda plan: (plan.need.device, plan.need.host))
    if chosen.keys() & {"staged", "text_encoder_mode", "text_encoder_8bit", "decode"}:
        return least
    raise PixArtError(
        f"This does not fit {device.name}: with every saving it takes about {gigabytes(least.need.device)} and "
        f"{gigabytes(free)} are free; generate a smaller image, take the texts from a file of pixart encode, close "
        "other programs, or try it all the same with --staged --decode tiled --text-encoder-mode streamed."
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


# On a CPU a batch pays until the tokens of one pass hold so many numbers (tokens x width): products are large enough
# then, and more leave the caches. Measured with the shipped model and XL/2 on 1 and 2 cores.
CPU_NUMBERS = 1 << 18
GPU_NUMBERS = 20  # that a pass holds at once per token and width: hidden layers of the MLP, queries, keys and values
GPU_SHARE = 0.6  # of the free memory that activations may take; the rest is for fragments and other networks
DECODED_NUMBERS = 4  # that decoding holds at once per pixel and channel of the finest level
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
    image = pixels * channels * DECODED_NUMBERS * number_bytes
    return min(MOST_ROWS, max(1, int(device.free_bytes * GPU_SHARE) // image))
