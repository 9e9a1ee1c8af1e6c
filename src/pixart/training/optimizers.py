"""The optimizer and the learning-rate schedule."""

from dataclasses import dataclass
from typing import Literal

import torch

from pixart.errors import UsageError

TABLES = ("scale_shift_table", "embedding_table.weight")


@dataclass(frozen=True)
class OptimizerConfig:
    """`adamw`, or `came`, which keeps less in memory.

    `learning_rate` None is what suits the start: 1e-3 for a fresh network, 2e-5 for one that `init` names. CAME's third
    beta is the paper's 0.9999
    and its eps its own; nothing corrects for averages that start at zero, so give it a warm-up and a lower rate. The
    rate rises over `warmup_steps` and falls to zero over the last `decay_share` of the run. Gradients are clipped to
    the norm `clip`.
    """

    name: Literal["adamw", "came"] = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    warmup_steps: int = 200
    decay_share: float = 0.35
    clip: float = 1.0

    def __post_init__(self):
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise UsageError(f"optimizer: learning_rate {self.learning_rate} must be between 0 and 1.")
        above = self.clip > 0 and self.eps > 0  # so written, it refuses NaN, which would make all weights NaN
        if not 0 <= self.weight_decay < 1 or not above or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(
                f"optimizer: weight_decay {self.weight_decay} and betas {self.betas} must be from 0 to below 1, clip "
                f"{self.clip} and eps {self.eps} above 0."
            )
        if not 0 <= self.decay_share <= 1 or not 0 <= self.warmup_steps < 2**40:
            raise UsageError(
                f"optimizer: decay_share {self.decay_share} must be from 0 to 1, warmup_steps {self.warmup_steps} not "
                "negative."
            )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Warm up linearly, stay, and fall linearly to zero over the last `decay_share` of the run (WSD schedule)."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(steps * config.decay_share))
    return config.learning_rate * min(warmup, (steps - step) / decay_steps, 1.0)


class Optimizer:
    """A torch optimizer whose state is a flat dictionary of named tensors (no pickle)."""

    def __init__(self, model: torch.nn.Module, config: OptimizerConfig):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Only weights of linear layers and convolutions decay; biases and tables have no scale to hold down.
        decayed = [p for name, p in self.parameters.items() if p.ndim >= 2 and not name.endswith(TABLES)]
        others = [p for name, p in self.parameters.items() if p.ndim < 2 or name.endswith(TABLES)]
        decays = ((decayed, config.weight_decay), (others, 0.0))
        self.torch = _make([{"params": params, "weight_decay": decay} for params, decay in decays if params], config)

    def step(self, learning_rate: float) -> None:
        for group in self.torch.param_groups:
            group["lr"] = learning_rate
        self.torch.step()

    def zero_grad(self) -> None:
        self.torch.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Every state tensor under `<parameter name>|<state name>`."""
        return {
            f"{name}|{key}": value if torch.is_tensor(value) else torch.tensor(value)
            for name, p in self.parameters.items()
            for key, value in self.torch.state.get(p, {}).items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """KeyError where it is another network's."""
        for full_name, value in state.items():
            name, key = full_name.split("|")
            self.torch.state.setdefault(self.parameters[name], {})[key] = value.clone()


def _make(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    rate, betas = config.learning_rate, config.betas
    if config.name == "came":
        from came_pytorch import CAME

        return CAME(groups, lr=rate, betas=(*betas, 0.9999))
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.eps, fused=True)
