"""CAME (Luo et al., arXiv 2307.02047): AdamW's quality with Adafactor's memory.

A matrix (n, m) keeps its momentum and four vectors, two of n and two of m numbers, instead of two matrices.
"""

import torch
from torch import Tensor


class Came(torch.optim.Optimizer):
    """Algorithm 2 of the paper, with decoupled weight decay; step by step the authors' package `came-pytorch`.

    Tensors of fewer than two dimensions keep their mean square whole and have no confidence step, as there. Kernels of
    four dimensions are factored over the last two. States: `exp_avg`, and `square_row`, `square_column`,
    `instability_row`, `instability_column` (or `square`), all fp32.

    Args:
        betas: decay of the momentum, of the mean square, of the instability.
        clip_threshold: an update of a larger root mean square is scaled down to this one.
    """

    def __init__(
        self,
        parameters: list[dict],
        *,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "clip_threshold": clip_threshold, "weight_decay": 0.0}
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: Tensor, group: dict) -> None:
        beta_momentum, beta_square, beta_instability = group["betas"]
        eps_square, eps_instability = group["eps"]
        state, gradient = self.state[parameter], parameter.grad.float()
        if not state:
            state.update(_fresh(gradient))
        factored = gradient.ndim >= 2

        square = gradient.square() + eps_square
        if factored:
            update = gradient * _inverse_root(state, "square", square, beta_square)
        else:
            state["square"].lerp_(square, 1 - beta_square)
            update = gradient * state["square"].rsqrt()
        update /= (update.square().mean().sqrt() / group["clip_threshold"]).clamp(min=1.0)

        momentum = state["exp_avg"].lerp_(update, 1 - beta_momentum)
        if factored:
            # Confidence: where the update strays far from its own average, the step is shorter.
            instability = (update - momentum).square() + eps_instability
            update = momentum * _inverse_root(state, "instability", instability, beta_instability)
        else:
            update = momentum
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def _fresh(gradient: Tensor) -> dict[str, Tensor]:
    state = {"exp_avg": torch.zeros_like(gradient)}
    if gradient.ndim < 2:
        return state | {"square": torch.zeros_like(gradient)}
    for name in ("square", "instability"):
        state[f"{name}_row"] = torch.zeros_like(gradient[..., 0])
        state[f"{name}_column"] = torch.zeros_like(gradient[..., 0, :])
    return state


def _inverse_root(state: dict, name: str, value: Tensor, beta: float) -> Tensor:
    """Take `value` into its averages over rows and columns; 1 / sqrt of the matrix of rank one that they stand for."""
    row, column = state[f"{name}_row"], state[f"{name}_column"]
    row.lerp_(value.mean(-1), 1 - beta)
    column.lerp_(value.mean(-2), 1 - beta)
    return (row / row.mean(-1, keepdim=True)).rsqrt()[..., None] * column.rsqrt()[..., None, :]
