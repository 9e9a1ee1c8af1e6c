"""Attention, MLP and modulation, shared by the PixArt transformer and the class-conditional DiT.

Shape letters are those of pixart.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention over image tokens: (B, N, D) -> (B, N, D).

    Two options of PixArt-Σ (arXiv 2403.04692, section 3.2; PixArt-sigma `PixArt_blocks.py:AttentionKVCompress`): with
    `qk_norm` queries and keys are normed over the full width, and with `kv_compress` k above 1 keys and values are
    made k times narrower and lower by a depthwise convolution.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool = False, kv_compress: int = 1):
        super().__init__()
        self.num_heads, self.kv_compress = num_heads, kv_compress
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        if kv_compress > 1:
            self.sr = nn.Conv2d(width, width, kernel_size=kv_compress, stride=kv_compress, groups=width)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """`grid` is rows and columns, rows · columns = N; only compression needs it."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)  # (B, N, D) each
        query, key = self.q_norm(query), self.k_norm(key)
        if self.kv_compress > 1:
            if grid is None:
                raise ValueError("compressing keys and values needs the rows and columns of a complete image")
            key, value = self.compress(key, *grid), self.compress(value, *grid)  # (B, M, D) each, M = N/k²
        (query,), (key,), (value,) = (split_heads(part, 1, self.num_heads) for part in (query, key, value))
        return self.proj(join_heads(attend(query, key, value, None)))  # (B, N, D)

    def compress(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(B, N, D) -> (B, M, D)."""
        image = x.transpose(1, 2).unflatten(2, (rows, columns)).to(self.sr.weight.dtype)  # (B, D, rows, columns)
        return self.norm(self.sr(image).flatten(2).transpose(1, 2))


class CrossAttention(nn.Module):
    """Image tokens read text tokens: (B, N, D) -> (B, N, D). Keys and values are made apart, once per prompt."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_and_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (B, L, D) -> keys and values, (B, h, L, d) each."""
        key, value = split_heads(self.kv_linear(text), 2, self.num_heads)
        return key, value

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Keys and values (B or 1, h, L, d), mask (B or 1, 1, 1, L) bool or None, to read every text token."""
        (query,) = split_heads(self.q_linear(x), 1, self.num_heads)  # (B, h, N, d)
        return self.proj(join_heads(attend(query, key, value, mask)))  # (B, N, D)


class Mlp(nn.Module):
    """Two linear layers with a tanh GELU between: (..., in) -> (..., out)."""

    def __init__(self, in_width: int, hidden: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden)
        self.fc2 = nn.Linear(hidden, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; query (B, h, N, d), key, value (B or 1, h, M, d), mask (B, 1, 1, M) bool -> (B, h, N, d)."""
    key, value = (part.expand(len(query), -1, -1, -1) for part in (key, value))
    if not (query.requires_grad and query.device.type == "cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU the fused kernel's bf16 backward took 3 to 7 times as long as these lines (16 to 64 tokens, torch 2.13),
    # close to half of a training step.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, h, N, M)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts·D) -> `parts` tensors (B, h, N, d), views of the same memory."""
    batch, count, _ = x.shape
    return x.view(batch, count, parts, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """(B, h, N, d) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then one pass of scale and shift: x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
