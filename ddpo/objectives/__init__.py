"""What an objective is: a pure function of a small matrix and a batch of outcomes, found by file name.

    def ddpo(logp: Float[Tensor, "B T"], batch: Batch, *, clip_range: float = 1e-4) -> Float[Tensor, ""]

It returns the loss to be minimised and never sees a network: the trainer takes its derivative with respect to
the matrix and carries that into the network. The matrix holds log-probabilities of denoising steps (B, T) or,
where declared, denoising errors (B, K). Adding an objective is adding one file here, or in the `objectives`
folder of a plugin.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, where
from ddpo.plugins.ranges import AtLeastOne, NonNegativeFloat, PositiveFloat, UnitFloat  # noqa: F401 - for options

Loss = Callable[..., Float[Tensor, ""]]
Report = Callable[..., Mapping[str, float]]

__path__ = [*__path__, *plugins.folders("objectives")[1:]]


@dataclass(frozen=True)
class Batch:
    """What is known of B trajectories besides the matrix that the objective is a function of.

    logp_old    (B, T) under the policy that sampled them; (B, K) of zeros beside denoising errors
    advantage   one number a trajectory, clipped
    reward      the weighted sum of all rewards (with advantage.per_reward: of each one's advantage); a gated
                sample has the lowest of its group, or, where that is all gated, of all that passed
    group       trajectories of one prompt in one iteration share a number
    stochastic  False for columns that must not enter the loss: steps without a density or left out
    logp_ref    (B, T) under the reference; only for an objective that declares `needs=("logp_ref",)`
    kl          (B, T) KL of each step to the reference, with its derivative; for `needs=("kl",)`
    errors_ref  (B, K) denoising errors of the reference on the same noise; for `needs=("errors_ref",)`
    all_reward  every reward of the iteration, whatever part of it this batch is: for statistics
    all_group   their groups
    """

    logp_old: Float[Tensor, "B T"]
    advantage: Float[Tensor, " B"]
    reward: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    stochastic: Bool[Tensor, " T"]
    logp_ref: Float[Tensor, "B T"] | None = None
    kl: Float[Tensor, "B T"] | None = None
    errors_ref: Float[Tensor, "B K"] | None = None
    all_reward: Float[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0))
    all_group: Int[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def rows(self, rows: Int[Tensor, " N"]) -> "Batch":
        """The batch of N chosen trajectories."""
        return replace(
            self, **self._matrices(lambda matrix: matrix[rows]),
            advantage=self.advantage[rows], reward=self.reward[rows], group=self.group[rows],
        )  # fmt: skip

    def pairs(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> "Batch":
        """N chosen (sample, step) pairs as N trajectories of one step, for separable objectives."""
        return replace(
            self, **self._matrices(lambda matrix: matrix[rows, columns][:, None]),
            advantage=self.advantage[rows], reward=self.reward[rows], group=self.group[rows],
            stochastic=self.stochastic[columns[:1]],
        )  # fmt: skip

    def blocks(self, logp: Float[Tensor, "B T"], size: int) -> tuple[Float[Tensor, "B M"], "Batch"]:
        """Macro-actions: `size` stochastic steps in a row as one, their log-probabilities and KLs added up.

        A ratio is then that of a whole block: 1 is a ratio a step, T one a trajectory (Chai et al. 2024).
        """
        block = torch.arange(int(self.stochastic.sum()), device=logp.device) // size
        count = int(block.max()) + 1

        def add_up(matrix: Float[Tensor, "B T"]) -> Float[Tensor, "B M"]:
            return matrix.new_zeros(len(matrix), count).index_add(1, block, matrix[:, self.stochastic])

        every = torch.ones(count, dtype=torch.bool, device=logp.device)
        return add_up(logp), replace(self, **self._matrices(add_up), stochastic=every)

    def comparisons(self, ties: bool = False) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Every pair of samples of one prompt: rows of the better ones, rows of the worse ones.

        `ties` adds pairs of equal reward, each once.
        """
        same = self.group[:, None] == self.group
        difference = self.reward[:, None] - self.reward
        chosen = same & (difference > 0)
        if ties:
            chosen |= (same & (difference == 0)).triu(1)
        better, worse = chosen.nonzero().unbind(1)
        return better, worse

    def mean(self, terms: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The mean of `terms` over all rows and stochastic columns; 0, with its graph, over no row."""
        chosen = terms[:, self.stochastic]
        return chosen.sum() / max(chosen.numel(), 1)

    def _matrices(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The matrices that are there, changed."""
        found = {name: getattr(self, name) for name in ("logp_old", "logp_ref", "kl", "errors_ref")}
        return {name: change(matrix) for name, matrix in found.items() if matrix is not None}


def declare(
    *,
    separable: bool = False,
    needs: tuple[str, ...] = (),
    on_policy: bool = False,
    compares: bool = False,
    denoising_errors: bool = False,
    report: Report | None = None,
) -> Callable[[Loss], Loss]:
    """What the trainer must know of an objective; without this decorator, the defaults, which are safe.

    separable         a mean over (sample, column) pairs of terms that see one pair each: no second pass
    needs             which optional parts of the batch are computed for it: logp_ref, kl, errors_ref
    on_policy         only the first update after a rollout has its true gradient
    compares          it compares samples of one prompt, so there must be at least two
    denoising_errors  its matrix holds these instead of log-probabilities
    report            (batch, *, options) -> metrics of its own, once an iteration
    """
    declared = {
        "separable": separable, "needs": needs, "on_policy": on_policy, "compares": compares,
        "denoising_errors": denoising_errors, "report": report,
    }  # fmt: skip

    def decorate(function: Loss) -> Loss:
        function.declared = declared  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return decorate


@dataclass(frozen=True)
class Objective:
    """An objective with its options and the switches that all share, ready for the trainer.

    kl_weight   of the mean closed-form KL of a step to the reference, added to the loss
    block_size  denoising steps that share one ratio
    """

    name: str
    function: Loss
    options: Mapping[str, Any]
    separable: bool = False
    needs: tuple[str, ...] = ()
    on_policy: bool = False
    compares: bool = False
    denoising_errors: bool = False
    report: Report | None = None
    kl_weight: float = 0.0
    block_size: int = 1

    def __call__(self, matrix: Float[Tensor, "B T"], batch: Batch) -> Float[Tensor, ""]:
        """The loss. Raises UserError when the function raises or returns anything but one number."""
        if self.block_size > 1:
            matrix, batch = batch.blocks(matrix, self.block_size)
        try:
            loss = self.function(matrix, batch, **self.options)
        except Exception as error:
            raise UserError(f"objective {self.name} raised {where(error)}") from error
        if not isinstance(loss, Tensor) or loss.shape != ():
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"objective {self.name} returned {found}; return one number, as with .mean()")
        if not self.kl_weight:
            return loss
        assert batch.kl is not None
        return loss + self.kl_weight * batch.mean(batch.kl)

    def metrics(self, batch: Batch) -> Mapping[str, float]:
        """What it reports of an iteration, under `objective/`."""
        found = self.report(batch, **self.options) if self.report else {}
        return {f"objective/{name}": value for name, value in found.items()}


def build(name: str, *, kl_weight: float = 0.0, block_size: int = 1, **options: Any) -> Objective:
    """Find an objective by name and fill in its options' defaults. Raises UserError for what cannot be."""
    function = cast(Loss, plugins.load("objectives", name))
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    found = Objective(name, function, {**defaults, **options}, **getattr(function, "declared", {}))
    for switch, value, idle in (("kl_weight", kl_weight, 0.0), ("block_size", block_size, 1)):
        if found.denoising_errors and value != idle:
            raise UserError(
                f"objective.{switch}: {name} works on denoising errors, not on the steps of a "
                "trajectory; leave it out"
            )
    return replace(
        found, kl_weight=kl_weight, block_size=block_size, separable=found.separable and block_size == 1,
        needs=tuple(dict.fromkeys([*found.needs, *(["kl"] if kl_weight else [])])),
    )  # fmt: skip
