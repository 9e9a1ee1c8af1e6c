"""What is trained of a network: everything, or the parameters whose names match. An option of every task.

Adapters (LoRA, DoRA, LoKr) have their place here too: `apply` replaces layers of `model` by adapted ones, trains only
what they add, and every task goes on as it is.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from pixart.errors import UsageError


@dataclass(frozen=True)
class Trainable:
    """`parameters`: patterns of names, such as "blocks.*.attn.*"; empty: all."""

    parameters: tuple[str, ...] = ()


def apply(model: torch.nn.Module, trainable: Trainable) -> None:
    """Freeze what is not trained. Raises UsageError for a pattern that matches nothing."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in trainable.parameters:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"trainable: no parameter is called {pattern!r}; the first ones are {', '.join(names[:5])}."
            )
    if trainable.parameters:
        for name, parameter in model.named_parameters():
            if not any(fnmatchcase(name, pattern) for pattern in trainable.parameters):
                parameter.requires_grad_(False)
