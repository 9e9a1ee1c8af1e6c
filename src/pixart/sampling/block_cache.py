"""Caching of blocks between steps: what the middle blocks add to the tokens changes slowly from one step to the next.

So they are computed at some steps only, and what they add is guessed at the others. That the change of a group of
blocks is what to keep is from Δ-DiT (arXiv 2406.01125), which like FORA (arXiv 2407.01425) keeps it as it was; to carry
it on along a line is from TaylorSeer (arXiv 2503.06923), of order one.
"""

from typing import Any

EDGE = 2  # blocks at either end that are computed at every step, where the network has so many


class BlockCache:
    """A `Route` (see `pixart.model.pixart`) for the steps of one drawing, in their order.

    The middle blocks are computed at the first two steps and then at every `every`-th.
    """

    def __init__(self, every: int):
        self.every = every
        self.step = -1
        self.computed: list[int] = []  # the last two steps at which the middle blocks were computed
        self.changes: list[Any] = []  # and what they added then, (B, N, D) each

    def through(self, x, blocks: range, run):
        self.step += 1
        edge = min(EDGE, (len(blocks) - 1) // 2)
        end = len(blocks) - edge
        x = run(x, blocks[:edge])
        if len(self.changes) < 2 or self.step - self.computed[-1] >= self.every:
            after = run(x, blocks[edge:end])
            self.computed, self.changes = [*self.computed[-1:], self.step], [*self.changes[-1:], after - x]
            x = after
        else:
            before, last = self.changes
            ahead = (self.step - self.computed[1]) / (self.computed[1] - self.computed[0])
            x = x + last + ahead * (last - before)
        return run(x, blocks[end:])
