"""torch.compile, block by block: equal blocks share one graph for each size of latents, whatever the number of rows."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOST_SHAPES = 128  # of latents, each of which gets a graph; torch would stop at 8


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile the forward of blocks that take `Block.forward`'s arguments. No graph breaks; each size compiles once.

    Rows are a symbol of the graph, since they change from pass to pass as requests come and go. The other lengths are
    constants of it, so texts must be padded to one length.
    """
    allow_shapes()
    for block in blocks:
        block.forward = _compiled(block, backend)


def allow_shapes() -> None:
    """Let one function have a graph for every size that a model generates or is trained at."""
    torch._dynamo.config.recompile_limit = max(MOST_SHAPES, torch._dynamo.config.recompile_limit)


def _compiled(block: nn.Module, backend: str):
    compiled = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)

    def forward(*arguments):
        for argument in arguments:
            if isinstance(argument, Tensor) and len(argument) > 1:  # one row is a graph of its own
                torch._dynamo.mark_dynamic(argument, 0)
        return compiled(*arguments)

    return forward
