"""Classifier-free guidance (Ho and Salimans 2022, eq. 6, with scale = 1 + w)."""


def guide(conditional, null, scale: float):
    """Move a prediction away from the null text's: null + scale * (conditional - null).

    Works on numpy arrays and torch tensors of any one shape; velocity, eps and x_0 predictions alike. At scale 1 this
    is the conditional prediction, so a caller who has scale 1 need not compute `null` at all.
    """
    return null + scale * (conditional - null)
