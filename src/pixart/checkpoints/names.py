"""What each tensor of a PixArt is called in official checkpoints and in Diffusers' `PixArtTransformer2DModel`.

Only names differ: Diffusers splits the fused query-key-value layers and renames the rest (huggingface/diffusers,
`scripts/convert_pixart_alpha_to_diffusers.py`). Names for what it has no class for, PixArt-Σ's query and key norms and
its key-value compression, follow the same pattern.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Official name -> Diffusers names; a fused layer is the Diffusers layers stacked along dimension 0.
LAYERS = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["adaln_single.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["adaln_single.emb.timestep_embedder.linear_2"],
    "t_block.1": ["adaln_single.linear"],
    "y_embedder.y_proj.fc1": ["caption_projection.linear_1"],
    "y_embedder.y_proj.fc2": ["caption_projection.linear_2"],
    "final_layer.linear": ["proj_out"],
}
MICRO_CONDITION_LAYERS = {
    "csize_embedder.mlp.0": ["adaln_single.emb.resolution_embedder.linear_1"],
    "csize_embedder.mlp.2": ["adaln_single.emb.resolution_embedder.linear_2"],
    "ar_embedder.mlp.0": ["adaln_single.emb.aspect_ratio_embedder.linear_1"],
    "ar_embedder.mlp.2": ["adaln_single.emb.aspect_ratio_embedder.linear_2"],
}
BLOCK_LAYERS = {
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}
# Those that only some blocks have.
SIGMA_LAYERS = {
    "attn.q_norm": ["attn1.q_norm"],
    "attn.k_norm": ["attn1.k_norm"],
    "attn.sr": ["attn1.sr"],
    "attn.norm": ["attn1.norm"],
}
PARTS = ("weight", "bias")


def to_diffusers_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Official state dict -> Diffusers state dict; fused tensors are split into views."""
    renamed = {}
    for ours, theirs in tensor_names(depth).items():
        if _is_needed(ours, ours in state):
            renamed.update(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
    return renamed


def to_official_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Diffusers state dict -> official state dict."""
    import torch

    return {
        ours: state[theirs[0]] if len(theirs) == 1 else torch.cat([state[name] for name in theirs])
        for ours, theirs in tensor_names(depth).items()
        if _is_needed(ours, theirs[0] in state)
    }


def tensor_names(depth: int) -> dict[str, list[str]]:
    """Official tensor name -> the Diffusers tensors that make it up, for all that `depth` blocks can have."""
    layers = LAYERS | MICRO_CONDITION_LAYERS
    tables = {"final_layer.scale_shift_table": ["scale_shift_table"]}
    for i in range(depth):
        for ours, theirs in (BLOCK_LAYERS | SIGMA_LAYERS).items():
            layers[f"blocks.{i}.{ours}"] = [f"transformer_blocks.{i}.{name}" for name in theirs]
        tables[f"blocks.{i}.scale_shift_table"] = [f"transformer_blocks.{i}.scale_shift_table"]
    return {f"{ours}.{part}": [f"{name}.{part}" for name in layers[ours]] for ours in layers for part in PARTS} | tables


def _is_needed(name: str, there: bool) -> bool:
    """Whether a tensor belongs to the state: those of the options only if they are there, all others always."""
    layer = name.rpartition(".")[0]
    return there or not (layer in MICRO_CONDITION_LAYERS or layer.endswith(tuple(f".{key}" for key in SIGMA_LAYERS)))
