"""Classifier-free guidance (Ho and Salimans 2022, eq. 6, with scale = 1 + w)."""


def guide(conditional, null, scale: float):
    """Move a prediction away from the null text's: null + scale * (conditional - null).

    Works on numpy arrays and torch tensors of any one shape; velocity, eps and x_0 predictions alike. At scale 1 this
    is the conditional prediction, so a caller who has scale 1 need not compute `null` at all.
    """
    return null + scale * (conditional - null)


def guided(conditional, null, scale: float, rescale: float, channels: int):
    """`guide` on the first `channels` channels of predictions (B, C, h, w); a learned variance after them stays.

    `rescale` is phi of Lin et al. 2023 (arXiv 2305.08891, eq. 14-16): the share to which the guided prediction gets the
    standard deviation of the conditional one, each picture for itself, since strong guidance oversaturates.
    """
    first = conditional[:, :channels]
    moved = guide(first, null[:, :channels], scale)
    if rescale:
        moved = moved * (1 - rescale + rescale * _deviation(first) / _deviation(moved))
    if conditional.shape[1] == channels:
        return moved
    whole = conditional + 0  # a copy; what follows must not write into the network's own answer
    whole[:, :channels] = moved
    return whole


def _deviation(x):
    centred = x - x.mean((1, 2, 3))[:, None, None, None]
    return (centred * centred).mean((1, 2, 3))[:, None, None, None] ** 0.5
