"""AdamW whose two averages are kept in 8 bits (Dettmers et al., arXiv 2110.02861): a quarter of AdamW's state.

Why not a library: bitsandbytes 0.50 has no such optimiser on a CPU, and torchao 0.18 keeps its states in tensors of a
class of its own, which safetensors cannot write, and compiles its step with a C++ compiler. Here the codes are plain
uint8 tensors, so a checkpoint needs no pickle.
"""

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 256
SMALLEST = 4096  # tensors with fewer numbers stay in fp32: biases and tables, little to save and much to lose


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (2110.02861, section 2): averages are read from their codes, moved, used in fp32, and coded again.

    States of a large tensor: `exp_avg_code` and `exp_avg_sq_code` (its shape, uint8), `exp_avg_scale` and
    `exp_avg_sq_scale` (one fp32 number for every 256). Others have `exp_avg` and `exp_avg_sq` in fp32. And `step`.
    """

    def __init__(
        self, parameters: list[dict], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: Tensor, group: dict) -> None:
        state, gradient = self.state[parameter], parameter.grad.float()
        state["step"] = state.get("step", torch.zeros(())) + 1
        step, (beta1, beta2) = state["step"].item(), group["betas"]
        mean = _read(state, "exp_avg", gradient, signed=True).lerp_(gradient, 1 - beta1)
        square = _read(state, "exp_avg_sq", gradient, signed=False).lerp_(gradient.square(), 1 - beta2)
        _write(state, "exp_avg", mean, signed=True)
        _write(state, "exp_avg_sq", square, signed=False)
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))


def _read(state: dict, name: str, like: Tensor, *, signed: bool) -> Tensor:
    if f"{name}_code" in state:
        return dequantise(state[f"{name}_code"], state[f"{name}_scale"], signed=signed)
    return state[name] if name in state else torch.zeros_like(like)


def _write(state: dict, name: str, value: Tensor, *, signed: bool) -> None:
    if value.numel() < SMALLEST or value.numel() % BLOCK:
        state[name] = value
    else:
        state[f"{name}_code"], state[f"{name}_scale"] = quantise(value, signed=signed)


def quantise(value: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of `value`) and the largest absolute value of each 256 numbers, fp32.

    The code is that of the level nearest to the number in bfloat16: a table of 65,536 entries says it at once, where
    searching among the levels made the whole step five times as long on a CPU. `value` has a multiple of 256 numbers.
    """
    blocks = value.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1)
    bits = (blocks / scale.clamp_min(1e-30)[:, None]).bfloat16().view(torch.int16)
    code = _code_table(signed).to(value.device).take(bits.long() & 0xFFFF)
    return code.view(value.shape), scale


def dequantise(code: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The numbers that `quantise` has coded, fp32."""
    levels = code_levels(signed).to(code.device)
    return (levels.take(code.long()).view(-1, BLOCK) * scale[:, None]).view(code.shape)


@lru_cache(maxsize=2)
def code_levels(signed: bool) -> Tensor:
    """The 256 numbers that a code can mean, ascending, from -1 or 0 to 1: the dynamic tree (2110.02861, section 1.3).

    Each decade from 1e-6 to 1 is cut into equal parts, twice as many in each as in the decade below, so small numbers
    keep their order of magnitude and large ones are exact to a hundredth.
    """
    positive = [torch.tensor([1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (exponent + (0 if signed else 1)) + 1, dtype=torch.float64)
        positive.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6))
    negative = [-part for part in positive[1:]] if signed else []
    return torch.cat([*positive, *negative, torch.zeros(1)]).double().sort().values.float()


@lru_cache(maxsize=2)
def _code_table(signed: bool) -> Tensor:
    """For the 16 bits of every bfloat16, the code of the nearest level: (65536,) uint8."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float().nan_to_num(0.0)
    levels = code_levels(signed)
    return torch.bucketize(every, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
