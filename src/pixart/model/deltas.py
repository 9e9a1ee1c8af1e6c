"""What an adapter does to a weight, as arithmetic that numpy arrays and torch tensors share.

All tensors are matrices: a convolution's kernel (out, in, k, k) is flattened to (out, in·k·k).

    LoRA (arXiv 2106.09685)    lora_B (out, r) @ lora_A (r, in)
    LoHa (arXiv 2108.06098)    (hada_w1_a @ hada_w1_b) * (hada_w2_a @ hada_w2_b), each pair as in LoRA, B first
    LoKr (arXiv 2309.14859)    kron(w1, w2), each a matrix lokr_w1 or a product lokr_w1_a @ lokr_w1_b
    DoRA (arXiv 2402.09353)    any of them with a `magnitude`: the changed weight gets these norms, (out, 1) of its rows
                               or (1, in) of its columns
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Array = Any  # np.ndarray or torch.Tensor, one kind at a time

LORA = ("lora_A", "lora_B")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Delta:
    """A change of the rows `start` to `stop` of a layer's weight: `scale` times the matrix of `tensors`."""

    start: int
    stop: int
    tensors: dict[str, Array]
    scale: float


def matrix(tensors: dict[str, Array]) -> Array:
    """The change (rows, in), not scaled."""
    if "lora_A" in tensors:
        return tensors["lora_B"] @ tensors["lora_A"]
    if "hada_w1_a" in tensors:
        return (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
    first, second = (
        tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]
        for name in ("lokr_w1", "lokr_w2")
    )
    blocks = first[:, None, :, None] * second[None, :, None, :]
    return blocks.reshape(first.shape[0] * second.shape[0], -1)


def shape(tensors: dict[str, Array]) -> tuple[int, int]:
    """The shape of `matrix(tensors)`. Raises ValueError where the tensors do not fit each other."""
    kinds = [kind for kind in (LORA, LOHA, LOKR) if any(name in tensors for name in kind)]
    if len(kinds) != 1 or any(tensor.ndim != 2 for tensor in tensors.values()):
        raise ValueError("tensors of several kinds of adapters, or no matrices")
    pairs = {LORA: [("lora_B", "lora_A")], LOHA: [LOHA[:2], LOHA[2:]], LOKR: []}[kinds[0]]
    sizes = []
    for name in ("lokr_w1", "lokr_w2") if kinds[0] == LOKR else ():
        if name in tensors:
            sizes.append(tuple(tensors[name].shape))
        else:
            pairs.append((f"{name}_a", f"{name}_b"))
    for left, right in pairs:
        if left not in tensors or right not in tensors:
            raise ValueError(f"no {left if left not in tensors else right}")
        (rows, rank), (same, columns) = tensors[left].shape, tensors[right].shape
        if rank != same or rank < 1:
            raise ValueError(f"{left} of {rows} x {rank} and {right} of {same} x {columns}")
        sizes.append((rows, columns))
    if kinds[0] == LOKR:
        (rows, columns), (more_rows, more_columns) = sizes
        sizes = [(rows * more_rows, columns * more_columns)]
    if len(set(sizes)) != 1:
        raise ValueError(f"products of {' and '.join(map(str, sizes))}")
    if MAGNITUDE in tensors and tuple(tensors[MAGNITUDE].shape) not in ((sizes[0][0], 1), (1, sizes[0][1])):
        raise ValueError(f"a magnitude of {tuple(tensors[MAGNITUDE].shape)} for {sizes[0]}")
    return sizes[0]


def changed(
    weight: Array, tensors: dict[str, Array], scale: float, constant: Callable[[Array], Array] = lambda norm: norm
) -> Array:
    """The changed rows of a weight, (rows, in) -> (rows, in).

    `constant` is put around DoRA's norms: while training they take no gradient (2402.09353, section 4.3).
    """
    new = weight + scale * matrix(tensors)
    if MAGNITUDE not in tensors:
        return new
    magnitude = tensors[MAGNITUDE]
    norm = constant((new * new).sum(1 if magnitude.shape[1] == 1 else 0) ** 0.5).reshape(magnitude.shape)
    return new * (magnitude / norm)


def merged(weight: Array, changes: Iterable[tuple[Delta, float]]) -> Array:
    """A weight (out, ...) with changes at their strengths, all of which are relative to the weight as it was."""
    flat = weight.reshape(len(weight), -1)
    new = flat * 1
    for delta, strength in changes:
        rows = flat[delta.start : delta.stop]
        new[delta.start : delta.stop] += strength * (changed(rows, delta.tensors, delta.scale) - rows)
    return new.reshape(weight.shape)
