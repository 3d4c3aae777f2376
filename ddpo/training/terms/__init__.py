"""The matrices that objectives are functions of: each entry one (sample, column) pair and one network call.

`terms(rows, columns)` gives named vectors, of which the first is the objective's argument and the others are
fields of its batch; those with a gradient are what an update carries into the network.
"""

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.rollout.trajectory import Trajectory


class Terms(Protocol):
    """One rank's trajectories and what is computed of them; row r is sample `trajectory.samples[r]`."""

    policy: Policy
    trajectory: Trajectory

    @property
    def names(self) -> tuple[str, ...]:
        """Of what a call returns, in its order."""
        ...

    def columns(self, batch: Batch) -> list[int]:
        """The columns that enter the loss."""
        ...

    def __call__(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        """Of N pairs, with gradients if they are enabled."""
        ...
