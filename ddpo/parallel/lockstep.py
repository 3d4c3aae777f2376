"""Calls that all ranks must make together, where each has its own number of them.

A network whose weights are sharded gathers them from all ranks whenever it computes. A rank that is
done before the others, and waits to hear from them, makes a call of no account for each of theirs.
So ranks announce each call; `ranks.gather` and its like begin by serving those of the others.
"""

from collections.abc import Callable
from enum import IntEnum

import torch
import torch.distributed as dist

from ddpo.parallel import ranks


class Kind(IntEnum):
    """What a rank is about to do; larger numbers win where some have nothing to do."""

    NOTHING, FORWARD, FORWARD_WITH_GRAPH, BACKWARD = range(4)


class Lockstep:
    """`make(kind)` is this rank's part in a call of another's.

    Ranks that do compute do the same thing at a time: phases are parted by `ranks.gather`, and
    within one each works on its own share in the same way.
    """

    def __init__(self, make: Callable[[Kind], None]) -> None:
        self._make, self._serving = make, False
        self.served = 0

    def announce(self, kind: Kind) -> None:
        """Before a call of one's own."""
        if not self._serving:
            self._agreed(kind)

    def serve(self) -> None:
        """The calls of the others, until none has any left."""
        while kind := self._agreed(Kind.NOTHING):
            self._serving = True
            try:
                self._make(kind)
            finally:
                self._serving = False
            self.served += 1

    def _agreed(self, kind: Kind) -> Kind:
        number = torch.tensor(int(kind))
        with ranks.talk():
            dist.all_reduce(number, dist.ReduceOp.MAX, group=ranks.words())
        return Kind(int(number))
