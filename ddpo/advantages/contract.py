"""What an advantage is, and the statistics that all of them take."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6
"""Added to every standard deviation, as in Black et al. 2023; equal rewards give advantages of exactly 0."""


class Advantage(Protocol):
    """Rewards to advantages; `state_dict` holds what the next iteration depends on."""

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]: ...

    def state_dict(self) -> dict[str, list[float]]: ...

    def load_state_dict(self, state: dict[str, list[float]]) -> None: ...


class Stateless:
    """An advantage that remembers nothing between iterations."""

    def state_dict(self) -> dict[str, list[float]]:
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        pass


def mean_of(values: Float[Tensor, " N"]) -> Tensor:
    """Mean that rounding cannot carry outside the values: for equal values it is that value, exactly."""
    return values.mean().clamp(values.min(), values.max()) if len(values) else values.new_zeros(())


def std_of(values: Float[Tensor, " N"]) -> Tensor:
    """Population standard deviation; exactly 0 when all values are equal."""
    return values.std(correction=0) if len(values) and values.min() != values.max() else values.new_zeros(())
