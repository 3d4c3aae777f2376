"""The matrices that objectives are functions of, each entry of one (sample, column) pair.

`terms(rows, columns)` gives named vectors: that called `argument` is what the objective is a
function of, the others are matrices of its batch. Those with a gradient are what an update carries
into the network.
"""

from typing import ClassVar, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.rollout.trajectory import Trajectory


class Terms(Protocol):
    """One rank's trajectories and what is computed of them.

    Row r is sample `trajectory.samples[r]`.
    """

    policy: Policy
    trajectory: Trajectory

    argument: ClassVar[str]
    """The name of the matrix that the objective is a function of."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what a call returns."""
        ...

    def columns(self, batch: Batch) -> list[int]:
        """The columns that enter the loss."""
        ...

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        """The terms of N pairs, with gradients if they are enabled.

        `rows` and `columns` lie on the host, which must know prompts and noise.
        """
        ...
