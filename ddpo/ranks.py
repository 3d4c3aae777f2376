"""One process or many: who we are, and the three ways in which ranks speak to each other.

Everything works in one process without any setting up; under accelerate or torchrun it works over the ranks.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor

Item = TypeVar("Item")


def state() -> PartialState:
    """accelerate's view of this process: `process_index`, `num_processes`, `device`, `is_main_process`.

    Without an accelerator, or with ACCELERATE_USE_CPU=true, processes meet on the CPU.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


def share(count: int, rank: int, world: int) -> range:
    """The contiguous block of `count` things that belongs to `rank`; blocks differ by at most one."""
    return range(count * rank // world, count * (rank + 1) // world)


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all ranks, in rank order, on every rank."""
    return list(items) if state().num_processes == 1 else gather_object(list(items))


def sum_(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over all ranks, in place, in one message."""
    if state().num_processes == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def agree(value: Tensor) -> bool:
    """Whether a tensor is the same, bit for bit, on every rank."""
    if state().num_processes == 1:
        return True
    low, high = value.clone(), value.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    return bool((low == high).all())
