"""The rule that a data set may lose a few images, but never quietly a tenth of itself."""

from collections.abc import Iterable

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
    damaged = list(unknown)
    if damaged and allowed < 1:
        raise PixArtError(
            f"An unknown number of images is lost ({_first(damaged)}), besides {dropped:,} of {total:,} that were "
            f"dropped. Mend or replace what is damaged; {flag} 1 goes on without it."
        )
    left = total - dropped
    if total > 0 and left > 0 and dropped <= allowed * total:
        return
    if total == 0:
        raise PixArtError("There are no images.")
    first = [text for _, text in zip(range(3), examples, strict=False)]
    named = f" ({'; '.join(first)}{'; ...' if dropped > len(first) else ''})" if first else ""
    if left <= 0:
        raise PixArtError(f"All {total:,} images were dropped{named}.")
    share = _percent(dropped / total)
    raise PixArtError(
        f"{dropped:,} of {total:,} images were dropped{named}: {share}, and {_percent(allowed)} is allowed. "
        f"pixart data check shows what is wrong with them; {flag} {_above(dropped / total)} goes on without them."
    )


def _first(texts: list[str]) -> str:
    return "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _above(share: float) -> str:
    """The smallest share in hundredths that would allow this one."""
    return f"{min(1.0, -(-share * 100 // 1) / 100):.2f}"
