"""Where in the image each word was read: the cross-attention of the denoiser, word by word.

The idea is DAAM's (Tang et al. 2022, arXiv 2210.04885): the softmax weights of cross-attention, averaged over heads,
layers and steps. There they are stretched from the many sizes of a U-Net; here all blocks see the same grid of tokens.
Only the rows with the prompt count, not the unconditional ones. Needs the extra `torch`.
"""

import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import UsageError
from pixart.pipeline.networks import choose_runtime, load_networks
from pixart.pipeline.pipeline import Generated, OnStep, Pipeline
from pixart.pipeline.request import Request

MARKS = {"Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm"}  # punctuation and such, but no emoji
# From the lowest share, which leaves the image as it is, over violet and orange to yellow: RGBA.
COLOURS = np.array([[40, 0, 90, 0], [110, 20, 150, 90], [220, 60, 80, 170], [255, 150, 20, 210], [255, 240, 90, 235]])


@dataclass(frozen=True)
class AttentionMaps:
    """How the tokens of an image share their attention among the words, as a mean of steps, blocks and heads.

    Attributes:
        words: W words of the prompt, in order.
        shares: (W, rows, columns) float32, of all attention at that place: at most 1 over the words.
        rest: (rows, columns) float32, what is left for the text encoder's own tokens (start and end of the text) and
            for punctuation. Words and rest sum to 1.
    """

    words: tuple[str, ...]
    shares: np.ndarray
    rest: np.ndarray


def torch_pipeline(pipeline: Pipeline) -> Pipeline:
    """The same pipeline if torch computes it, else another of the same folder that does.

    Raises:
        PixArtError: torch is not installed.
    """
    if pipeline.networks.name == "torch":
        return pipeline
    runtime = choose_runtime(pipeline.folder, "torch", "float32", device="cpu")
    return Pipeline(pipeline.folder, load_networks(pipeline.folder, runtime))


def generate_with_maps(
    pipeline: Pipeline,
    request: Request,
    on_step: OnStep | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> tuple[Generated, AttentionMaps]:
    """Generate the one image of a checked request and keep the weights with which the network read the prompt.

    The image is the one that `pipeline.generate` gives. `pipeline` must be in torch, see `torch_pipeline`.

    Raises:
        UsageError: the request is for more than one image.
    """
    if len(request.prompts) * len(request.seeds) != 1:
        raise UsageError("Attention maps are made of one image at a time; give one prompt and one seed.")
    words, members = words_of(pipeline.core.tokenizer, request.texts[0])
    with _watched() as seen:
        (generated,) = pipeline.generate(request, on_step, on_notice)
    mean = seen.total / seen.count  # (N, L)
    step = pipeline.folder.size_multiple
    grid = (request.image_height // step, request.image_width // step)
    shares = [mean[:, places].sum(axis=1).reshape(grid) for places in members]
    shares = np.stack(shares) if shares else np.zeros((0, *grid), np.float32)
    return generated, AttentionMaps(words, shares, 1 - shares.sum(axis=0))


@dataclass
class _Seen:
    total: Any = 0.0
    count: int = 0


@contextmanager
def _watched() -> Iterator[_Seen]:
    """While open, each pass of this thread adds what its first row reads in each block, (N, L) float32."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from pixart.model.block import CrossAttention

    seen, me = _Seen(), threading.get_ident()

    def look(layer, inputs) -> None:
        if isinstance(layer, CrossAttention) and threading.get_ident() == me:
            x, key, _, mask = inputs
            weights = attention_weights(layer, x[:1], key[:1], None if mask is None else mask[:1])
            seen.total = seen.total + weights.mean(dim=1)[0].cpu().numpy()
            seen.count += 1

    # Not a hook of this denoiser: where networks take turns in memory, it may not be loaded yet.
    hook = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def attention_weights(layer, x, key, mask):
    """The softmax inside a `CrossAttention`, which its fused kernel does not hand out: (B, h, N, L) float32.

    Image tokens x (B, N, D), keys (B or 1, h, L, d), mask (B, 1, 1, L) bool, True where there is a token, None for all.
    """
    from pixart.model.block import split_heads

    (query,) = split_heads(layer.q_linear(x), 1, layer.num_heads)  # (B, h, N, d)
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)


def words_of(tokenizer: Tokenizer, text: str) -> tuple[tuple[str, ...], list[list[int]]]:
    """The words of a text as the tokenizer splits it, and the places of each word's tokens in the network's input.

    Punctuation and special tokens belong to no word; nor do words that were cut.
    """
    text = text.lower().strip()  # as the text encoder reads it
    encoding, read = tokenizer.tokenizer.encode(text), tokenizer.tokenize(text)[0]
    kept = len(read) if len(read) == len(encoding.ids) else len(read) - 1  # of a cut text, all but its closing token
    words: list[str] = []
    members: list[list[int]] = []
    last = None
    for place in range(kept):
        start, end = encoding.offsets[place]
        word, piece = encoding.word_ids[place], text[start:end].strip()
        if word is None or all(unicodedata.category(letter) in MARKS for letter in piece):
            last = None
        elif word == last:
            words[-1] += text[start:end]
            members[-1].append(place)
        else:
            words.append(piece)
            members.append([place])
            last = word
    return tuple(words), members


def overlay(image: Any, share: np.ndarray) -> Any:
    """A word's map (rows, columns) over an RGB PIL image in grey, from its lowest share (nothing) to its highest."""
    from PIL import Image

    value = (share - share.min()) / max(float(np.ptp(share)), 1e-9) * (len(COLOURS) - 1)
    colours = np.stack([np.interp(value, range(len(COLOURS)), COLOURS[:, i]) for i in range(4)], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8), "RGBA").resize(image.size, Image.Resampling.BICUBIC)
    grey = Image.blend(image, image.convert("L").convert("RGB"), 0.85).convert("RGBA")
    return Image.alpha_composite(grey, heat).convert("RGB")
