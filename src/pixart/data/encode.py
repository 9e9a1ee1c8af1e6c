"""The two encoders as extraction and training use them: many images or captions at once, on any device."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pixart.encoders import autoencoder
from pixart.encoders.text import TEXT_ENCODERS, TextEncoder
from pixart.encoders.tokenizer import MAX_TOKENS
from pixart.encoders.vae import load_autoencoder
from pixart.files import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def load_vae(folder: Path, device: str | torch.device = "cpu"):
    """A frozen Diffusers AutoencoderKL in fp32. Raises PixArtError, naming the folder, where it cannot be loaded."""
    # Channels last: 2.6 times as fast on a CPU at 256 px
    return load_autoencoder(folder).to(device, memory_format=torch.channels_last)


def load_text_encoder(
    folder: Path, tokenizer: Path, device: str | torch.device = "cpu", max_tokens: int = MAX_TOKENS
) -> TextEncoder:
    """A BERT or T5 encoder folder, by the class that its config names."""
    names = read_json_object(folder / "config.json").get("architectures") or ["nameless model"]
    names = names if isinstance(names, list) else [names]
    name = next((name for name in names if name in TEXT_ENCODERS), str(names[0]))
    encoder = TextEncoder(folder, tokenizer, name, max_tokens)
    encoder.model.to(device)
    return encoder


@torch.inference_mode()
def encode_images(vae, images: Sequence["Image"], *, flip: bool, precision: str) -> list[tuple[Tensor, ...]]:
    """Mean and deviation, fp16 (C, H/8, W/8), of each RGB image, all of one size; with `flip` the mirror image's too.

    `precision` names the dtype of products, "float32" or "bfloat16".
    """
    device = next(vae.parameters()).device
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    pixels = (pixels.to(device).float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
    parts: list[Tensor] = []
    for batch in (pixels, pixels.flip(-1)) if flip else (pixels,):
        with autocast(precision, device):
            mean, std = autoencoder.moments(vae, batch)
        parts += [mean.half().cpu().contiguous(), std.half().cpu().contiguous()]
    return [tuple(part[i].clone() for part in parts) for i in range(len(images))]


@torch.inference_mode()
def encode_captions(
    encoder: TextEncoder, captions: Sequence[str], batch_size: int = 128, *, precision: str = "float32"
) -> tuple[list[Tensor], int]:
    """Unpadded token states (tokens, T) fp16 of each caption, encoded with others of like length for speed.

    Also how many captions were longer than the encoder reads and were cut.
    """
    device = next(encoder.model.parameters()).device
    tokenized = [encoder.tokenize(caption.lower().strip()) for caption in captions]
    ids = [tokens for tokens, _ in tokenized]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out: list[Tensor] = [torch.empty(0)] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = len(ids[chosen[-1]])
        tokens = torch.tensor([ids[i] + [0] * (length - len(ids[i])) for i in chosen], device=device)
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (length - len(ids[i])) for i in chosen], device=device)
        with autocast(precision, device):
            states = encoder.model(input_ids=tokens, attention_mask=mask)[0].half().cpu()
        for row, i in enumerate(chosen):
            out[i] = states[row, : len(ids[i])].clone()
    return out, sum(bool(cut) for _, cut in tokenized)


def autocast(precision: str, device: torch.device):
    """Matrix products in `precision`, all else and the weights as they are."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)
