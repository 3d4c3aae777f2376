"""One process or many: who we are, and how ranks speak to each other and fail together.

Everything works in one process without any setting up; under accelerate or torchrun it works over
the ranks.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from ddpo.errors import Broken, Stopped, Told, UserError, refusal, where

Item = TypeVar("Item")

SHARED = {"UserError": UserError, "Stopped": Stopped, "OSError": OSError}
"""The errors that keep their kind on their way to the other ranks; any other is a defect, Told."""

before_waiting: list[Callable[[], None]] = []
"""What this rank does before it waits for the others: `lockstep` serves their calls."""

PATIENCE = timedelta(days=365)
"""How long a rank waits in `gather` for one that is still alive: whatever that one has to do."""


class Lost(Stopped):
    """Another rank is gone: it was killed, or left without a word."""


def state() -> PartialState:
    """accelerate's view of this process: `process_index`, `num_processes`, `device` and so on.

    Without an accelerator, or with ACCELERATE_USE_CPU=true, processes meet on the CPU.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    process = PartialState(cpu=on_cpu)
    if process.num_processes > 1:
        words()
    return process


@cache
def words() -> dist.ProcessGroup:
    """The group in which ranks pass objects: over sockets, not the gradients' (NCCL on GPUs).

    The gradients' group gives up after its timeout (10 minutes with NCCL), however busy the missing
    rank is. This one waits as long as the other lives, and notices at once when it dies: its socket
    closes. Made where ranks have just met, by the first call of `state`.
    """
    atexit.register(_part)
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


def _part() -> None:
    """Takes the process groups down, before the interpreter does so in any order.

    Without it one process in five aborts at its end, its work done, and the launcher calls the run
    failed: gloo's threads are still running when their owner is destroyed (torch 2.14).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends this process with `code`, all that Python does at its end done.

    One of several processes then ends at once. torch's libraries have threads that the end of a
    process takes by surprise: now and then it aborts, its work done, and the launcher calls the
    whole run failed. `_part` makes that rare, for scripts that end by themselves; this, impossible.
    """
    if not dist.is_initialized():
        raise SystemExit(code)
    atexit.unregister(_part)
    atexit._run_exitfuncs()  # as multiprocessing ends a child
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def share(count: int, rank: int, world: int) -> range:
    """The contiguous block of `count` things that belongs to `rank`.

    Blocks differ by at most one.
    """
    return range(count * rank // world, count * (rank + 1) // world)


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all ranks, in rank order, on every rank.

    It waits without a timeout for a slow rank.
    """
    if state().num_processes == 1:
        return list(items)
    prepare()
    by_rank: list[list[Item]] = [[] for _ in range(state().num_processes)]
    with talk():
        dist.all_gather_object(by_rank, list(items), group=words())
    return [item for each in by_rank for item in each]


def sum_(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over all ranks, in place, in one message.

    A rank that is late by the process group's timeout (10 minutes with NCCL) ends the run: a
    `gather` goes before where ranks may have been busy with different things.
    """
    if state().num_processes == 1 or not tensors:
        return
    prepare()
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with talk():
        dist.all_reduce(flat)
    for tensor, total in zip(
        tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(total.view_as(tensor))


def agree(value: Tensor) -> bool:
    """Whether a tensor is the same, bit for bit, on every rank."""
    if state().num_processes == 1:
        return True
    prepare()
    low, high = value.clone(), value.clone()
    with talk():
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
    return bool((low == high).all())


def prepare() -> None:
    """`before_waiting`, with which every collective begins, those elsewhere too."""
    for task in before_waiting:
        task()


@contextmanager
def together() -> Iterator[None]:
    """What any rank raises within, all raise at the end.

    So none goes on to wait for one that has left.

    Within it no rank may wait for another, and each may take as long as it likes. All raise the
    same kind, the first rank's that failed, so that they also end in the same way.
    """
    if state().num_processes == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except (Broken, Lost):  # there is nobody to speak to
        raise
    except Exception as error:
        own = error
        if not isinstance(error, UserError | Stopped) and (line := refusal(error)):
            own = UserError(line)
            own.__cause__ = error
    rank = state().process_index
    kind = next((name for name, cls in SHARED.items() if isinstance(own, cls)), "")
    failed = gather([(rank, kind, str(own) if kind else where(own))] if own else [])
    if own and failed[0][0] == rank and (kind or rank == 0):
        raise own
    if failed:
        number, kind, words = failed[0]
        raise SHARED.get(kind, Told)(f"rank {number}: {words}" if number else words) from own


@contextmanager
def talk() -> Iterator[None]:
    """A collective that fails has lost a partner; the backends say so with a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if dist.get_backend() == "nccl":  # to take its groups down is to wait for the one lost
            atexit.unregister(_part)
        raise Lost(
            f"lost another process of this run ({' '.join(str(error).split())[:100]})"
        ) from error
