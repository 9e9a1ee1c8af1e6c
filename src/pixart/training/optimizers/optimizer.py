"""The optimiser and the learning-rate schedule."""

from dataclasses import dataclass
from typing import Literal

import torch

from pixart.errors import UsageError
from pixart.training.optimizers.adamw8bit import AdamW8bit
from pixart.training.optimizers.came import Came

TABLES = ("scale_shift_table", "embedding_table.weight")


@dataclass(frozen=True)
class OptimizerConfig:
    """`adamw`; `adamw8bit` and `came`, which keep less in memory; `muon` for the matrices of the blocks.

    With Muon the rest has AdamW. `learning_rate` is AdamW's; Muon's update is scaled to AdamW's root mean square, so
    that one rate serves both. CAME's third beta is the paper's 0.9999 and its eps its own; its first steps are long
    (its averages start at zero and nothing corrects for that), so give it a warm-up and a lower rate. `fused` is
    AdamW's step in one kernel.
    """

    name: Literal["adamw", "adamw8bit", "came", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    warmup_steps: int = 200
    decay_share: float = 0.35
    clip: float = 1.0
    fused: bool = True

    def __post_init__(self):
        above = self.clip > 0 and self.eps > 0  # so written, it refuses NaN, which would make all weights NaN
        if not 0 < self.learning_rate < 1 or not 0 <= self.weight_decay < 1 or not above:
            raise UsageError(
                f"optimizer: learning_rate {self.learning_rate} must be between 0 and 1, weight_decay "
                f"{self.weight_decay} from 0 to below 1, clip {self.clip} and eps {self.eps} above 0."
            )
        if not 0 <= self.decay_share <= 1 or self.warmup_steps < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(
                f"optimizer: decay_share {self.decay_share} must be from 0 to 1, warmup_steps {self.warmup_steps} not "
                f"negative, betas {self.betas} from 0 to below 1."
            )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Warm up linearly, stay, and fall linearly to zero over the last `decay_share` of the run (WSD schedule)."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(steps * config.decay_share))
    decay = min(1.0, (steps - step) / decay_steps)
    return config.learning_rate * min(warmup, decay)


def _make(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    rate, betas, eps = config.learning_rate, config.betas, config.eps
    match config.name:
        case "came":
            return Came(groups, lr=rate, betas=(*betas, 0.9999))
        case "adamw8bit":
            return AdamW8bit(groups, lr=rate, betas=betas, eps=eps)
        case "adamw" | "muon":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=config.fused)


class Optimizer:
    """One or two torch optimisers behind one face, whose state is a flat dictionary of named tensors (no pickle)."""

    def __init__(self, model: torch.nn.Module, config: OptimizerConfig):
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {
            name
            for name, p in self.parameters.items()
            if config.name == "muon" and p.ndim == 2 and name.startswith("blocks.") and not name.endswith(TABLES)
        }
        rest = {name: p for name, p in self.parameters.items() if name not in matrices}
        decayed = {name for name, p in rest.items() if p.ndim >= 2 and not name.endswith(TABLES)}
        # Only weights of linear layers and convolutions decay; biases and tables have no scale to hold down.
        groups = [
            {"params": [p for name, p in rest.items() if name in decayed], "weight_decay": config.weight_decay},
            {"params": [p for name, p in rest.items() if name not in decayed], "weight_decay": 0.0},
        ]
        self.parts = [_make([group for group in groups if group["params"]], config)]
        if matrices:
            self.parts.append(
                torch.optim.Muon(
                    [self.parameters[name] for name in self.parameters if name in matrices],
                    lr=config.learning_rate,
                    weight_decay=config.weight_decay,
                    momentum=0.95,
                    nesterov=True,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def step(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Every state tensor under `<parameter name>|<state name>`."""
        return {
            f"{name}|{key}": value if torch.is_tensor(value) else torch.tensor(value)
            for name, p in self.parameters.items()
            for part in self.parts
            for key, value in part.state.get(p, {}).items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        for full_name, value in state.items():
            name, key = full_name.split("|")
            p = self.parameters[name]
            owner[p].state.setdefault(p, {})[key] = value.clone()
