"""One process or many: what torchrun has started trains as one. One process is the case of a world of size 1.

Data parallel (DDP): every process holds the full model. Fully sharded (FSDP2, `torch.distributed.fsdp.fully_shard`):
every process holds a part of each weight, its gradient, its average and its optimiser state.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pixart.errors import PixArtError, UsageError
from pixart.training.rows import MicrobatchSlice

Parallel = Literal["auto", "none", "ddp", "fsdp"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Result = TypeVar("Result")

# What torch's messages have in common when a process at the other end is gone (gloo, NCCL, the rendezvous).
LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "ProcessGroup", "TCPStore")


@dataclass(frozen=True)
class World:
    """This process among those that train together. Process 0, the main one, alone writes and reports."""

    device: torch.device
    rank: int = 0
    size: int = 1
    # A gloo group beside the one that carries gradients: it has patience for what only process 0 does.
    patient: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def slices(self, accumulate: int) -> list[MicrobatchSlice]:
        """The parts of each global batch that this process takes, one after the other."""
        return [MicrobatchSlice(self.rank * accumulate + turn, self.size * accumulate) for turn in range(accumulate)]

    def agree(self, loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """The mean loss over all processes, and whether any of them has to stop: the same answer for all."""
        if self.size == 1:
            return loss, stop
        both = torch.tensor([loss.item() / self.size, float(stop)], dtype=torch.float64)
        dist.all_reduce(both, group=self.patient)
        return both[0], bool(both[1])

    def from_all(self, value: Result) -> list[Result]:
        """What each process has, in the order of their ranks. Plain Python values."""
        if self.size == 1:
            return [value]
        values: list[Result | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.patient)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.patient)

    def once(self, error: PixArtError) -> BaseException:
        """What to raise for what all have found out together: process 0 says it, the others end with its exit code."""
        return error if self.main else SystemExit(error.exit_code)

    def main_first(self, act: Callable[[], Result]) -> Result:
        """`act` by process 0 and then by the others, who find on the disk what it made; if it fails, they end too."""
        if self.main:
            done = False
            try:
                result = act()
                done = True
            finally:
                self.from_all(done)
            return result
        if not self.from_all(True)[0]:
            raise SystemExit(1)  # process 0 says why
        return act()


def alone(device: DeviceName = "auto") -> World:
    """One process. Raises UsageError where the device is not there."""
    return World(_device(device, local_rank=0))


@contextlib.contextmanager
def joined(parallel: Parallel, device: DeviceName) -> Iterator[World]:
    """Join the processes that torchrun has started with this one; none where it was not torchrun.

    Raises:
        UsageError: `parallel` is none with several processes; the device is not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if size == 1:
        yield alone(device)
        return
    if parallel == "none":
        raise UsageError(f"loop.parallel is none, but torchrun started {size} processes. Give ddp or fsdp.")
    mine = _device(device, local_rank=int(os.environ.get("LOCAL_RANK", 0)))
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    dist.init_process_group("nccl" if mine.type == "cuda" else "gloo", device_id=mine if mine.type == "cuda" else None)
    try:
        yield World(mine, rank, size, dist.new_group(backend="gloo", timeout=timedelta(days=2)))
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def translate_peer_failure(world: World, run: Path) -> Iterator[None]:
    """One sentence for a process that has died, instead of torch's traceback."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not any(mark in str(error) for mark in LOST):
            raise
        raise PixArtError(
            f"Process {world.rank} of {world.size} has lost another one, which died or cannot be reached, and stops. "
            f"The newest checkpoint in {run} is intact: give the same command again to continue from it."
        ) from None


def broadcast_parameters(model: nn.Module, world: World) -> None:
    """Give all processes the weights of process 0: two kinds of processors may make other ones from one seed."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def wrap_parallel(model: nn.Module, world: World, parallel: Parallel) -> nn.Module:
    """The model to call in the loss. FSDP cuts the parameters of `model` itself into shards; DDP wraps it."""
    if world.size == 1:
        return model
    if parallel == "fsdp":
        return _shard(model)
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def _shard(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in getattr(model, "blocks", ()):
        if hasattr(block, "cross_attn"):  # called before its block, for the keys and values of the text
            fully_shard(block.cross_attn.kv_linear)
        fully_shard(block)
    return fully_shard(model)


@contextlib.contextmanager
def gradients(model: nn.Module, *, exchanged: bool) -> Iterator[None]:
    """A backward pass of the wrapped `model`: gradients go to the other processes only after the last of a step."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not exchanged:
        with model.no_sync():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(exchanged)
    yield


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards; all processes must call this. One that is not sharded is returned as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, other: Tensor | None) -> Tensor:
    """This process's shards of a full tensor, sharded as `other` is; the tensor itself where that is not sharded."""
    if not hasattr(other, "full_tensor") or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def _device(device: DeviceName, *, local_rank: int) -> torch.device:
    """Raises UsageError where the device is not there."""
    from pixart.runtime.device import choose_device, find_devices

    found = choose_device(find_devices(), device)
    if found.type != "cuda":
        return torch.device(found.type)
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda", found.index)
    if local_rank >= torch.cuda.device_count():
        raise UsageError(f"Process {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}.")
    return torch.device("cuda", local_rank)
