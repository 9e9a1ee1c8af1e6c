"""The autoencoder's decoder, strip by strip: the same picture as whole, to rounding, in about half the memory.

At full size one activation of the released autoencoder takes 1 GB for 1024 x 1024 pixels, and a residual block holds
three at once: its input, the input normalised, and that after SiLU. Here the last two exist for a few rows at a time.
A group norm needs its mean and deviation over the whole picture, which tiles do not have; here they are computed first,
so strips differ from the whole in the order of sums only. The networks are Diffusers' (models/autoencoders/vae.py,
models/resnet.py), used by their attributes.
"""

import torch
from torch import Tensor, nn

ROWS = 32  # of a strip; more gain no speed, and fewer lose some


def decode_in_strips(vae: nn.Module, latent: Tensor) -> Tensor:
    """`vae.decode` for a latent (1, C, h, w), already divided by `scaling_factor` -> pixels (1, 3, 8h, 8w)."""
    decoder = vae.decoder
    x = latent if vae.post_quant_conv is None else vae.post_quant_conv(latent)
    x = decoder.mid_block(decoder.conv_in(x), None)
    for block in decoder.up_blocks:
        if type(block).__name__ != "UpDecoderBlock2D":
            x = block(x, None)  # one with attention, which is no matter of rows
            continue
        for resnet in block.resnets:
            x = _residual(x, resnet)
        for upsampler in block.upsamplers or ():
            x = _upsampled(x, upsampler.conv)
    scale, shift = _norm(x, decoder.conv_norm_out)
    return _convolved(decoder.conv_out, x, lambda rows: nn.functional.silu(torch.addcmul(shift, rows, scale)))


def _residual(x: Tensor, resnet: nn.Module) -> Tensor:
    """`ResnetBlock2D` without a timestep. The second half overwrites the first."""
    scale, shift = _norm(x, resnet.norm1)
    h = _convolved(resnet.conv1, x, lambda rows: nn.functional.silu(torch.addcmul(shift, rows, scale)))
    scale, shift = _norm(h, resnet.norm2)
    above = h[:, :, :0]  # the row over the strip, before it was overwritten
    for top in range(0, h.shape[2], ROWS):
        bottom = min(top + ROWS, h.shape[2])
        rows = torch.cat([above, h[:, :, top : bottom + 1]], dim=2)
        above = h[:, :, bottom - 1 : bottom].clone()
        rows = nn.functional.silu(torch.addcmul(shift, rows, scale))
        straight = x[:, :, top:bottom]
        if resnet.conv_shortcut is not None:
            straight = resnet.conv_shortcut(straight)
        more = (int(top == 0), int(bottom == h.shape[2]))
        h[:, :, top:bottom] = (straight + _rows(resnet.conv2, rows, more)) / resnet.output_scale_factor
    return h


def _upsampled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Every pixel as 2 x 2, then the convolution."""
    out = x.new_empty(1, conv.out_channels, 2 * x.shape[2], 2 * x.shape[3])
    half = ROWS // 2
    for top in range(0, x.shape[2], half):
        bottom = min(top + half, x.shape[2])
        above, below = int(top > 0), int(bottom < x.shape[2])
        rows = nn.functional.interpolate(x[:, :, top - above : bottom + below], scale_factor=2.0, mode="nearest")
        rows = rows[:, :, above : rows.shape[2] - below]  # one of the two rows that each neighbour became
        out[:, :, 2 * top : 2 * bottom] = _rows(conv, rows, (1 - above, 1 - below))
    return out


def _convolved(conv: nn.Conv2d, x: Tensor, before) -> Tensor:
    """conv(before(x)), where `before` looks at each pixel by itself."""
    out = x.new_empty(1, conv.out_channels, *x.shape[2:])
    for top in range(0, x.shape[2], ROWS):
        bottom = min(top + ROWS, x.shape[2])
        more = (int(top == 0), int(bottom == x.shape[2]))
        rows = before(x[:, :, top - 1 + more[0] : bottom + 1 - more[1]])
        out[:, :, top:bottom] = _rows(conv, rows, more)
    return out


def _rows(conv: nn.Conv2d, rows: Tensor, more: tuple[int, int]) -> Tensor:
    """A 3 x 3 convolution of rows that have their neighbours above and below; `more` rows of zeros stand for edges."""
    return nn.functional.conv2d(nn.functional.pad(rows, (1, 1, *more)), conv.weight, conv.bias)


def _norm(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies each channel of x (1, C, H, W) by, and what it adds: (1, C, 1, 1) each."""
    # One group at a time: no fp32 copy of all of it exists.
    figures = [torch.var_mean(group.float(), correction=0) for group in x.reshape(norm.num_groups, -1)]
    variance, mean = (torch.stack(values) for values in zip(*figures, strict=True))
    each = x.shape[1] // norm.num_groups
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps).repeat_interleave(each)
    shift = norm.bias.float() - mean.repeat_interleave(each) * scale
    return scale.to(x.dtype)[None, :, None, None], shift.to(x.dtype)[None, :, None, None]
