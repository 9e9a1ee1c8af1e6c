"""From the class-conditional DiT of stage 1 to the PixArt of stage 2 (arXiv 2310.00426, section 2.3).

A DiT block has its own modulation layer; a PixArt block only a table, added to what the one `t_block` makes of the
timestep. The tables are set so that at one chosen timestep every block is modulated exactly as in the DiT without a
class. With cross-attention silent (its projection starts at zero), both networks then predict the same there.

The paper leaves two things open, and we choose:

- *What "without class" means.* A DiT sees timestep plus class in training, or timestep plus the null class, never the
  timestep alone. So the default, "null", is the timestep plus the null embedding of every class kind; "timestep" is
  there for comparison.
- *Where `t_block` comes from.* It is the mean of the blocks' modulation layers. Of all single layers it is the one
  nearest to them in the squared sense, so away from the chosen timestep the modulation moves as the average block's
  does, and the tables stay as small as they can be.
"""

from typing import Literal

import torch

from pixart.errors import UsageError
from pixart.model.dit import DiT
from pixart.model.pixart import PixArt

SHARED_SIZES = (
    "in_channels",
    "out_channels",
    "width",
    "depth",
    "num_heads",
    "patch_size",
    "mlp_ratio",
    "sample_size",
    "position_scale",
)


@torch.no_grad()
def reparameterize(dit: DiT, pixart: PixArt, timestep: float, class_free: Literal["null", "timestep"] = "null") -> None:
    """Fill `pixart` from `dit` so that both predict the same at `timestep`, whatever the text (to 1e-5 in fp32).

    The text's layers keep their fresh weights, apart from `cross_attn.proj`, which is set to zero.

    Args:
        dit: trained with the same sizes.
        pixart: overwritten in place.
        timestep: 0..1000, where both agree. The paper takes 500 under DDPM's linear betas; a rectified flow has the
            signal-to-noise ratio of that at sigma 0.775, timestep 775.
        class_free: what the DiT's condition is without a class: timestep plus null classes, or the timestep alone.

    Raises:
        UsageError: the two networks differ in a size that they must share, or `class_free` is neither of the two.
    """
    for name in SHARED_SIZES:
        theirs, ours = getattr(dit.config, name), getattr(pixart.config, name)
        if theirs != ours:
            raise UsageError(
                f"The DiT has {name} {theirs} and the PixArt {ours}; they must be equal to start one from the other."
            )
    if class_free not in ("null", "timestep"):
        raise UsageError(f"class_free is {class_free!r}; choose 'null' or 'timestep'.")

    pixart.x_embedder.load_state_dict(dit.x_embedder.state_dict())
    pixart.t_embedder.load_state_dict(dit.t_embedder.state_dict())
    pixart.final_layer.linear.load_state_dict(dit.final_layer.linear.state_dict())
    for ours, theirs in zip(pixart.blocks, dit.blocks, strict=True):
        ours.attn.load_state_dict(theirs.attn.state_dict())
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
        torch.nn.init.zeros_(ours.cross_attn.proj.weight)
        torch.nn.init.zeros_(ours.cross_attn.proj.bias)

    layers = [block.adaLN_modulation[1] for block in dit.blocks]
    pixart.t_block[1].weight.copy_(torch.stack([layer.weight for layer in layers]).mean(0))
    pixart.t_block[1].bias.copy_(torch.stack([layer.bias for layer in layers]).mean(0))

    device = dit.x_embedder.proj.weight.device
    time = dit.t_embedder(torch.tensor([float(timestep)], device=device))  # (1, D)
    condition = time
    if class_free == "null":
        for embedder in dit.y_embedders:
            condition = condition + embedder.embedding_table.weight[-1]
    shared = pixart.t_block(time)  # (1, 6·D)
    for ours, theirs in zip(pixart.blocks, dit.blocks, strict=True):
        ours.scale_shift_table.copy_((theirs.adaLN_modulation(condition) - shared).view(6, -1))
    # PixArt's last layer adds its table to the timestep embedding itself, once for shift and once for scale.
    pixart.final_layer.scale_shift_table.copy_(dit.final_layer.adaLN_modulation(condition).view(2, -1) - time)
