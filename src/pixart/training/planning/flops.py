"""How much arithmetic and how much memory a training step takes, worked out from the sizes of the network alone.

FLOPs are those of matrix products and convolutions, two for each multiplication with its addition, as
`torch.utils.flop_counter` counts them; everything else is a few per cent. Letters as in model/pixart.py.
"""

from dataclasses import dataclass

from pixart.model.dit import DiTConfig
from pixart.model.embed import TimestepEmbedder
from pixart.model.pixart import PixArtConfig

BACKWARD = 2  # a matrix product's backward pass is two of its size: for its input and for its weight
FP32, BF16 = 4, 2  # bytes


def forward_flops(config: PixArtConfig | DiTConfig, side: int, text_tokens: int = 0) -> int:
    """FLOPs of one forward pass for one picture whose latent is `side` x `side`."""
    width, patch = config.width, config.patch_size**2
    tokens = side**2 // config.patch_size**2
    ends = 2 * tokens * width * patch * (config.in_channels + config.out_channels)
    time = 2 * width * (TimestepEmbedder.frequencies + width)
    own = 2 * tokens * width**2 * (4 + 2 * config.mlp_ratio) + 4 * tokens**2 * width  # qkv, proj, MLP; attention
    if isinstance(config, DiTConfig):
        modulation = 2 * width * 6 * width
        return ends + time + config.depth * (own + modulation) + 2 * width * 2 * width
    time += 2 * width * 6 * width  # t_block, once for all blocks: adaLN-single
    if config.micro_conditions:
        time += 3 * 2 * (width // 3) * (TimestepEmbedder.frequencies + width // 3)
    text = 2 * text_tokens * width * (config.text_dim + width)
    cross = 2 * width**2 * (2 * tokens + 2 * text_tokens) + 4 * tokens * text_tokens * width
    return ends + time + text + config.depth * (own + cross)


def training_flops(config: PixArtConfig | DiTConfig, side: int, text_tokens: int = 0, *, again: bool = False) -> int:
    """FLOPs of one picture in a training step; `again`: activations are computed a second time to save memory."""
    return (1 + BACKWARD + again) * forward_flops(config, side, text_tokens)


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs at its peak, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations + self.working


def training_memory(
    parameters: int,
    config: PixArtConfig | DiTConfig,
    side: int,
    batch_size: int,
    text_tokens: int = 0,
    *,
    bf16: bool = True,
    fused_attention: bool = True,
    again: bool = False,
    averages: int = 1,
) -> Memory:
    """fp32 weights, gradients, two moments of AdamW, moving averages, and what the backward pass must find again.

    `working` is the gradient of a block while it is made. Within 15% of the measured peak of the shipped
    network's size on a CPU (tests/test_plan.py); an allocator that does not give memory back may hold 30% more.

    Args:
        parameters: of the network.
        fused_attention: as on GPUs; without it (CPU) each block keeps its tables of attention weights.
        again: only the input of each block is kept, and the rest is computed again.
        averages: how many moving averages are kept.
    """
    half = BF16 if bf16 else FP32
    copies = parameters * half if bf16 else 0  # autocast keeps a copy of the weights for the length of a step
    state = parameters * FP32
    block = _block_bytes(config, side, text_tokens, half, fused_attention)
    kept = side**2 // config.patch_size**2 * config.width * FP32 if again else block
    activations = batch_size * config.depth * kept + copies
    return Memory(state, state, 2 * state, averages * state, activations, batch_size * block)


def _block_bytes(config, side: int, text_tokens: int, half: int, fused: bool) -> int:
    """What one block keeps of one picture: the residual and norms in fp32, what enters a matrix product in `half`."""
    width, tokens, ratio = config.width, side**2 // config.patch_size**2, config.mlp_ratio
    # Per token and channel: two norms (input and output, fp32) and their casts; q, k, v, the attention's output; what
    # goes through the two gates; the MLP before and after its GELU.
    block = tokens * width * (2 * 2 * FP32 + half * (2 + 4 + 2 + 2 * ratio))
    scores = tokens * tokens
    if isinstance(config, PixArtConfig):
        block += tokens * width * half * 3 + text_tokens * width * half * 3  # x cast, q, output; text, k, v
        scores += tokens * text_tokens
    if not fused:
        block += config.num_heads * scores * half + tokens * width * half * 2  # softmax; scaled queries
    return block
