"""Classifier-free guidance (Ho and Salimans 2022, eq. 6, with scale = 1 + w)."""


def guide(conditional, unconditional, scale: float):
    """Move a prediction away from the unconditional one: unconditional + scale * (conditional - unconditional).

    Works on numpy arrays and torch tensors of any one shape; velocity, eps and x_0 predictions alike. At scale 1 this
    is the conditional prediction, so a caller who has scale 1 need not compute `unconditional` at all.
    """
    return unconditional + scale * (conditional - unconditional)


def guided(conditional, unconditional, scale: float, rescale: float, channels: int):
    """`guide` on the first `channels` channels of predictions (B, C, h, w); a learned variance after them stays.

    `rescale` is phi of Lin et al. 2023 (arXiv 2305.08891, eq. 14-16): the share to which the guided prediction gets the
    standard deviation of the conditional one, each image for itself, since strong guidance oversaturates.
    """
    first = conditional[:, :channels]
    moved = guide(first, unconditional[:, :channels], scale)
    if rescale:
        moved = moved * (1 - rescale + rescale * _deviation(first) / _deviation(moved))
    if conditional.shape[1] == channels:
        return moved
    result = conditional + 0  # a copy, since the network's own output must not be written to
    result[:, :channels] = moved
    return result


def _deviation(x):
    centred = x - x.mean((1, 2, 3))[:, None, None, None]
    return (centred * centred).mean((1, 2, 3))[:, None, None, None] ** 0.5
