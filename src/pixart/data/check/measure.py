"""What the feature cache will take: sizes from the model folder's configs, rates from a short run of its encoders."""

import json
import time
from pathlib import Path

from pixart.buckets import fit, square_table
from pixart.data.check.report import Encoders
from pixart.data.check.tally import Tally
from pixart.data.images import open_image
from pixart.data.pairs import ImageProblem, read_bytes
from pixart.errors import PixArtError

# Of the shipped model's encoders on the two cores of docs/log.md, as --measure measures them.
SHIPPED_PIXELS_PER_SECOND = 2.8e6
SHIPPED_TOKENS_PER_SECOND = 7400.0


def read_encoders(model: Path, *, shipped: bool) -> Encoders:
    """Sizes from the configs; with `shipped`, rates as they were once measured. Raises PixArtError naming the file."""
    vae = _config(model / "vae" / "config.json")
    text = _config(model / "text_encoder" / "config.json")
    channels, width = vae.get("latent_channels", 4), text.get("hidden_size", text.get("d_model"))
    if not isinstance(channels, int) or not isinstance(width, int):
        raise PixArtError(f"{model} does not say how wide its latents and text states are; is it a model folder?")
    if not shipped:
        return Encoders(channels, width)
    return Encoders(channels, width, SHIPPED_PIXELS_PER_SECOND, SHIPPED_TOKENS_PER_SECOND)


def measure(model: Path, encoders: Encoders, tally: Tally, base_size: int) -> Encoders:
    """Rates of encoding a few pictures and captions of the data set itself on this machine. Needs torch.

    Gives `encoders` back where there is no picture or no caption to measure with.
    """
    from pixart.data.encode import encode_captions, encode_pictures, load_text_encoder, load_vae

    side = max(16, base_size - base_size % 16)
    table = square_table(side)
    pictures, captions = [], []
    for example in tally.sheet.items:
        captions.append(example.caption)
        try:
            pictures.append(fit(open_image(read_bytes(example.place)).image, table).image)
        except ImageProblem:  # it has gone since
            continue
    captions = [caption for caption in captions if caption]
    if not pictures or not captions:
        return encoders
    vae = load_vae(model / "vae")
    text_encoder = load_text_encoder(model / "text_encoder", model / "tokenizer")
    pixels = _rate(lambda count: encode_pictures(vae, pictures[:count], flip=False, precision="bf16"), len(pictures))
    lengths = [len(text_encoder.tokenize(caption.lower().strip())[0]) for caption in captions]
    texts = _rate(lambda count: encode_captions(text_encoder, captions[:count], precision="bf16"), len(captions))
    tokens = texts * sum(lengths) / len(lengths)
    return Encoders(encoders.latent_channels, encoders.text_dim, pixels * side**2, tokens, measured=True)


def _rate(encode, count: int) -> float:
    """Things a second: once to warm up, then twice as many as long as that takes under a second."""
    encode(1)
    number = 1
    while True:
        begun = time.perf_counter()
        encode(number)
        seconds = time.perf_counter() - begun
        if seconds > 1 or number == count:
            return number / seconds
        number = min(count, 2 * number)


def _config(file: Path) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(f"{file} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise PixArtError(f"{file} is not a JSON object.")
    return values
