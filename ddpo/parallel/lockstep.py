"""Calls that all ranks must make together, where each has its own number of them.

A network whose weights are sharded gathers them from all ranks whenever it computes. A rank that is
done before the others, and waits to hear from them, makes a call of no account for each of theirs.
So ranks announce each call; `ranks.gather` and its like begin by serving those of the others.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.distributed as dist

from ddpo.parallel import ranks


class Kind(IntEnum):
    """What a rank is about to do; larger numbers come first."""

    NOTHING, FORWARD, FORWARD_WITH_GRAPH, BACKWARD = range(4)


class Call(NamedTuple):
    """`weights` is the number of the weights in force, where these are cut, too."""

    kind: Kind
    weights: int = 0


NUMBERS = 2**16
"""Weights that can be told apart."""


class Lockstep:
    """`make(call)` is this rank's part in a call of another's.

    Ranks that are at the same place of a phase make the same call together. Where they are not,
    since one has something more to measure, say, those with the smaller number help first.
    """

    def __init__(self, make: Callable[[Call], None]) -> None:
        self._make = make
        self.served = 0

    def announce(self, call: Call) -> None:
        """Before a call of one's own; returns when it is this call's turn."""
        while (agreed := self._agreed(call)) != call:
            self._make(agreed)
            self.served += 1

    def serve(self) -> None:
        """The calls of the others, until none has any left."""
        self.announce(Call(Kind.NOTHING))

    def _agreed(self, call: Call) -> Call:
        number = torch.tensor(call.kind * NUMBERS + call.weights)
        with ranks.talk():
            dist.all_reduce(number, dist.ReduceOp.MAX, group=ranks.words())
        kind, weights = divmod(int(number), NUMBERS)
        return Call(Kind(kind), weights)
