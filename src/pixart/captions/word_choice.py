"""Drawing the next word at random, so that what a picture gets does not depend on the pictures beside it."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class WordChoice:
    """A logits processor that draws: after it, taking the largest score is sampling with temperature and top-p.

    It adds Gumbel noise to the scores (the Gumbel-max trick), from one stream of random numbers per picture, named by
    (seed, key, index). `generate` with `do_sample=True` draws all rows from one stream: there, a picture's caption
    depends on its neighbours, and a run that was killed and continued writes other captions than one that was not.
    """

    def __init__(self, temperature: float, top_p: float, *, seed: int, keys: Sequence[str], index: int):
        import torch

        self.temperature, self.top_p = temperature, top_p
        self.streams = []
        for key in keys:
            digest = hashlib.sha256(f"{seed}\n{index}\n{key}".encode("utf-8", "surrogatepass")).digest()
            # Of a seed, torch uses 63 bits.
            self.streams.append(torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1))

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """`scores` (B, vocabulary) of any float type -> scores of the same shape in float32, with the noise."""
        import torch

        scores = scores.float() / self.temperature
        if self.top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            chances = ordered.softmax(dim=-1)
            # A word stays if those before it do not make up top_p yet, so the first always does.
            beyond = chances.cumsum(dim=-1) - chances >= self.top_p
            scores = scores.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        noise = [torch.empty(scores.shape[-1]).exponential_(generator=stream) for stream in self.streams]
        return scores - torch.stack(noise).log().to(scores.device)
