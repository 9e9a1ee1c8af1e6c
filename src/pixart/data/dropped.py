"""The rule that a data set may lose a few images, but never quietly a tenth of itself."""

import math
from collections.abc import Iterable
from itertools import islice

from pixart.errors import PixArtError

ALLOWED = 0.01  # share of the images that `extract` and `train` may drop before they stop


def check_dropped(
    dropped: int,
    total: int,
    *,
    allowed: float = ALLOWED,
    examples: Iterable[str] = (),
    unknown: Iterable[str] = (),
    flag: str = "--allow-dropped",
) -> None:
    """Raise PixArtError if more than the share `allowed` (0 to 1) of `total` images was dropped.

    `unknown` ("name: reason") are losses of a number that nobody knows, such as the rest of a damaged shard: they are
    more than any share below 1. The sentence has the counts, the first three of `examples` ("name: reason" of what was
    dropped) and the flag that allows more. Also raises where nothing is left at all, whatever is allowed.
    """
    damaged, named = "; ".join(islice(unknown, 3)), "; ".join(islice(examples, 3))
    if damaged and allowed < 1:
        raise PixArtError(
            f"An unknown number of images is lost ({damaged}), besides {dropped:,} of {total:,} that were dropped. "
            f"Mend or replace what is damaged; {flag} 1 goes on without it."
        )
    if total == 0:
        raise PixArtError("There are no images.")
    which = f" (such as {named})" if named else ""
    if dropped >= total:
        raise PixArtError(f"All {total:,} images were dropped{which}.")
    share = dropped / total
    if share > allowed:
        raise PixArtError(
            f"{dropped:,} of {total:,} images were dropped{which}: {share:.2%}, and {allowed:.2%} is allowed. pixart "
            f"data check shows what is wrong with them; {flag} {math.ceil(100 * share) / 100} goes on without them."
        )
