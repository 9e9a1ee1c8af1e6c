"""Where in the image each word was read: the cross-attention of the denoiser, word by word.

The idea is DAAM's (Tang et al. 2022, arXiv 2210.04885): the softmax weights of cross-attention, averaged over heads,
layers and steps. There they are stretched from the many sizes of a U-Net; here all blocks see the same grid of tokens.
Only the rows with the prompt count, not the unconditional ones. The network computes every x_t of a finished
generation once more, so that any engine may have generated it, and the image cannot have changed by it. Needs the
extra `torch`.
"""

import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import UsageError
from pixart.pipeline.networks import choose_runtime, load_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.pipeline.trace import Trace

MARKS = {"Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm"}  # punctuation and such, but no emoji


@dataclass(frozen=True)
class AttentionMaps:
    """How the image's tokens share their attention among the words, at each of S steps.

    Attributes:
        words: W words of the prompt, in order.
        shares: (S, W, rows, columns) float32, of all attention at that place: at most 1 over the words.
        rest: (S, rows, columns) float32, what is left for the text encoder's own tokens (start and end of the text)
            and for punctuation. Words and rest sum to 1.
    """

    words: tuple[str, ...]
    shares: np.ndarray
    rest: np.ndarray


def torch_networks(pipeline: Pipeline) -> Any:
    """The pipeline's own networks in torch, or, where ONNX Runtime computes, others loaded from the same folder.

    Raises:
        ModuleNotFoundError: the extra `torch` is not installed.
    """
    from pixart.pipeline.torch_networks import TorchNetworks

    if isinstance(pipeline.networks, TorchNetworks):
        return pipeline.networks
    return load_networks(pipeline.folder, choose_runtime(pipeline.folder, "torch", "float32", device="cpu"))


def attention_maps(
    networks: Any, trace: Trace, *, blocks: Sequence[int] | None = None, on_step: Callable[[int], None] | None = None
) -> AttentionMaps:
    """Compute every step of a trace again and keep the weights with which the network reads the prompt.

    Args:
        networks: in torch, with the weights that generated the image; see `torch_networks`.
        trace: the image's steps.
        blocks: which blocks to average over; None means all.
        on_step: called with the index of every step before it is computed; may raise to stop.

    Raises:
        UsageError: the network has no such block.
    """
    prompt, folder = trace.generated.settings["resolved_prompt"], networks.folder
    text, _ = networks.encode(prompt)
    words, members = words_of(
        Tokenizer(folder.path / "tokenizer", folder.path / "text_encoder", folder.max_tokens), prompt
    )
    denoiser = networks.denoiser
    depth, patch = len(denoiser.blocks), denoiser.config.patch_size
    chosen = tuple(range(depth)) if blocks is None else tuple(blocks)
    if not chosen or not set(chosen) <= set(range(depth)):
        raise UsageError(f"There are no blocks {list(chosen)}; give at least one, from 0 to {depth - 1}.")
    layers = [denoiser.blocks[i].cross_attn for i in chosen]
    grid = (trace.x_t.shape[2] // patch, trace.x_t.shape[3] // patch)
    shares = np.empty((len(trace.timesteps), len(words), *grid), np.float32)
    rest = np.empty((len(trace.timesteps), *grid), np.float32)
    for step, (x_t, timestep) in enumerate(zip(trace.x_t, trace.timesteps, strict=True)):
        if on_step is not None:
            on_step(step)
        with _watched(layers) as seen:
            networks.denoise(networks.latents(x_t[None]), [timestep], [text], [0])
        tokens = np.mean(seen, axis=0)  # (N, L)
        for word, places in enumerate(members):
            shares[step, word] = tokens[:, places].sum(axis=1).reshape(grid)
        rest[step] = np.delete(tokens, [i for places in members for i in places], axis=1).sum(axis=1).reshape(grid)
    return AttentionMaps(words, shares, rest)


@contextmanager
def _watched(layers: list[Any]) -> Iterator[list[np.ndarray]]:
    """While open, each pass of this thread through `layers` (CrossAttention) adds its weights, (N, L) float32."""
    seen: list[np.ndarray] = []
    me = threading.get_ident()

    def look(layer, inputs) -> None:
        if threading.get_ident() == me:  # another thread may be using the same network
            x, key, _, mask = inputs
            seen.append(attention_weights(layer, x, key, mask).mean(dim=1)[0].cpu().numpy())

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
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
