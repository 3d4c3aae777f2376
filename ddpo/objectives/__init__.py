"""What an objective is: a pure function of log-probabilities and a batch of outcomes, found by file name.

    def ddpo(logp: Float[Tensor, "B T"], batch: Batch, *, clip_range: float = 1e-4) -> Float[Tensor, ""]

It returns the loss to be minimised and never sees a network: the trainer takes its derivative with respect to
`logp` and carries that into the network. Adding one is adding one file here, or in the `objectives` folder of
a plugin.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo import plugins

Loss = Callable[..., Float[Tensor, ""]]

__path__ = [*__path__, *plugins.folders("objectives")[1:]]


@dataclass(frozen=True)
class Batch:
    """What is known of B trajectories of T steps besides their present log-probabilities.

    logp_old    under the policy that sampled them
    advantage   one number a trajectory, clipped
    reward      the weighted sum of all rewards
    group       trajectories of one prompt in one iteration share a number
    stochastic  False for steps without a density; `logp` is 0 there and must not enter the loss
    logp_ref    under the reference; only for an objective that declares `needs=("logp_ref",)`
    """

    logp_old: Float[Tensor, "B T"]
    advantage: Float[Tensor, " B"]
    reward: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    stochastic: Bool[Tensor, " T"]
    logp_ref: Float[Tensor, "B T"] | None = None

    def rows(self, rows: Int[Tensor, " N"]) -> "Batch":
        """The batch of N chosen trajectories."""
        return replace(
            self, logp_old=self.logp_old[rows],
            logp_ref=None if self.logp_ref is None else self.logp_ref[rows],
            advantage=self.advantage[rows], reward=self.reward[rows], group=self.group[rows],
        )  # fmt: skip

    def pairs(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> "Batch":
        """N chosen (sample, step) pairs as N trajectories of one step, for separable objectives."""

        def pick(matrix: Tensor | None) -> Tensor | None:
            return None if matrix is None else matrix[rows, columns][:, None]

        return replace(
            self, logp_old=pick(self.logp_old), logp_ref=pick(self.logp_ref), advantage=self.advantage[rows],
            reward=self.reward[rows], group=self.group[rows], stochastic=self.stochastic[columns[:1]],
        )  # fmt: skip

    def mean(self, terms: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The mean of `terms` over all samples and stochastic steps."""
        return terms[:, self.stochastic].mean()


def declare(
    *, separable: bool = False, needs: tuple[str, ...] = (), on_policy: bool = False
) -> Callable[[Loss], Loss]:
    """What the trainer must know of an objective; without this decorator, the defaults, which are safe.

    separable   a mean over (sample, step) pairs of terms that see one pair each: no second network pass
    needs       which optional parts of the batch are computed for it
    on_policy   only the first update after a rollout has its true gradient
    """

    def decorate(function: Loss) -> Loss:
        function.declared = {"separable": separable, "needs": needs, "on_policy": on_policy}  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return decorate


@dataclass(frozen=True)
class Objective:
    """An objective with its options, ready for the trainer."""

    name: str
    function: Loss
    options: Mapping[str, Any]
    separable: bool = False
    needs: tuple[str, ...] = ()
    on_policy: bool = False

    def __call__(self, logp: Float[Tensor, "B T"], batch: Batch) -> Float[Tensor, ""]:
        return self.function(logp, batch, **self.options)


def build(name: str, **options: Any) -> Objective:
    """Find an objective by name and fill in its options' defaults."""
    function = cast(Loss, plugins.load("objectives", name))
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    return Objective(name, function, {**defaults, **options}, **getattr(function, "declared", {}))
