"""From rewards to advantages: what a sample's reward is compared with, and in which unit.

    def own(
        reward: Float[Tensor, " B"],
        keys: Sequence[str],
        group: Int[Tensor, " B"],
        *,
        power: float = 1.0,
    ) -> Float[Tensor, " B"]: ...

An advantage is a function that returns Float[Tensor, " B"], or a class with __init__(*, **options)
and the same __call__. It gets the rewards of an iteration (gathered over ranks, so that every rank
computes the same), the keys of their prompts, and a number per group: the samples of one prompt in
one iteration. Samples without a reward are not among them. A class that remembers something from
one iteration to the next has `state_dict()`, which JSON can hold, and `load_state_dict(state)`.
`compares = True` says that it compares samples of one prompt, so there must be at least two. Adding
an advantage is adding one file here, or in the `advantages` folder of a plugin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, where

__path__ = [*__path__, *plugins.folders("advantages")[1:]]

EPSILON = 1e-6
"""Added to every standard deviation, as in Black et al. 2023; equal rewards give advantages of
exactly 0."""


@dataclass(frozen=True)
class Advantage:
    """An advantage with its options, ready for the trainer.

    Its memory, if it has one, begins empty.
    """

    name: str
    compute: Any

    def __call__(
        self, reward: Float[Tensor, " B"], keys: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """B finite advantages. Raises UserError when it raises or returns anything else."""
        try:
            advantage = self.compute(reward, keys, group)
        except Exception as error:
            raise UserError(f"advantage {self.name} raised {where(error)}") from error
        if not isinstance(advantage, Tensor) or advantage.shape != reward.shape:
            is_tensor = isinstance(advantage, Tensor)
            returned = f"shape {tuple(advantage.shape)}" if is_tensor else type(advantage).__name__
            raise UserError(
                f"advantage {self.name} returned {returned} for {len(reward)} rewards; "
                "return one number for each"
            )
        if count := int((~advantage.isfinite()).sum()):
            raise UserError(
                f"advantage {self.name} returned {count} of {len(reward)} numbers that are not "
                "finite; add ddpo.advantages.EPSILON to what it divides by"
            )
        return advantage

    def state_dict(self) -> dict[str, Any]:
        """What the next iteration depends on."""
        return self.compute.state_dict() if hasattr(self.compute, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if hasattr(self.compute, "load_state_dict"):
            self.compute.load_state_dict(state)


def load(name: str) -> Any:
    """The function or class of that name. Raises UserError where there is none."""
    return plugins.load("advantages", name)


def build(name: str, **options: Any) -> Advantage:
    """Find an advantage by name and give it its options.

    Raises UserError where it cannot be built.
    """
    target = load(name)
    if not isinstance(target, type):
        return Advantage(name, partial(target, **options))
    try:
        return Advantage(name, target(**options))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"advantage {name} cannot be built: {where(error)}") from error


def mean_of(values: Float[Tensor, " N"]) -> Tensor:
    """Mean that rounding cannot carry outside the values: equal values give that value, exactly."""
    return values.mean().clamp(values.min(), values.max()) if len(values) else values.new_zeros(())


def std_of(values: Float[Tensor, " N"]) -> Tensor:
    """Population standard deviation; exactly 0 when all values are equal."""
    return (
        values.std(correction=0)
        if len(values) and values.min() != values.max()
        else values.new_zeros(())
    )
