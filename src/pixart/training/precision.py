"""Number formats of training: autocast to bf16 or fp16, and the loss scale that fp16 needs."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Matrix products in `precision`, all else and the weights in fp32. torch does this on CUDA and on CPUs."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


class LossScale:
    """Keeps small gradients above fp16's smallest number: the loss is multiplied before the backward pass.

    Where a gradient overflows, the update is left out and the scale is halved; after 2,000 good steps it is doubled
    (Micikevicius et al. 1710.03740, section 3.2). With the other precisions the scale is 1 and stays.
    """

    GROW_AFTER = 2000

    def __init__(self, precision: Precision):
        self.moves = precision == "fp16"
        self.scale, self.good_steps = (2.0**16 if self.moves else 1.0), 0

    def unscale(self, parameters: list[torch.nn.Parameter]) -> None:
        """Divide the gradients by the scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.moves and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    def good_step(self) -> None:
        self.good_steps += 1
        if self.moves and self.good_steps % self.GROW_AFTER == 0:
            self.scale *= 2

    def halve(self) -> bool:
        """After an overflow: whether a smaller scale can still help."""
        if not self.moves or self.scale <= 1:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, state: dict[str, float]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
