"""What an objective is: a pure function of a small matrix and a batch of outcomes.

    def ddpo(
        logp: Float[Tensor, "B T"], batch: Batch, *, clip_range: float = 1e-4
    ) -> Float[Tensor, ""]

It returns the loss to be minimized and never sees a network: the trainer takes its derivative with
respect to the matrix and carries that into the network. The matrix holds log-probabilities of
denoising steps (B, T) or, where declared, denoising errors (B, K). Adding an objective is adding
one file here, or in the `objectives` folder of a plugin.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, nearest, where
from ddpo.plugins.ranges import AtLeastOne, NonNegativeFloat, PositiveFloat, UnitFloat  # noqa: F401 - for options

Loss = Callable[..., Float[Tensor, ""]]
Report = Callable[..., Mapping[str, float]]

__path__ = [*__path__, *plugins.folders("objectives")[1:]]


MATRICES = {"log-probabilities": ("logp_ref", "kl"), "denoising errors": ("errors_ref",)}
"""What an objective may declare in `needs`, by what it is a function of."""


class MissingMatrix(LookupError):
    """An objective reads a matrix that its batch does not hold; the argument is its name."""


@dataclass(frozen=True)
class Batch:
    """What is known of B trajectories besides the matrix that the objective is a function of.

    advantage   one number per trajectory, clipped
    reward      the weighted sum of all rewards (with advantage.per_reward: of their advantages); a
                gated sample has the lowest of its group, or, where that is all gated, of all that
                passed
    group       trajectories of one prompt in one iteration share a number
    present     False for samples that take no part in the update, whose advantage and reward mean
                nothing; an objective is never given one
    stochastic  False for columns that must not enter the loss: steps without a density or left out
    matrices    by name, (B, T) or (B, K); objectives read them as `batch.logp_old` and so on
    all_reward  every reward of the iteration, whatever part of it this batch is: for statistics
    all_group   their groups
    """

    advantage: Float[Tensor, " B"]
    reward: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    present: Bool[Tensor, " B"]
    stochastic: Bool[Tensor, " T"]
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    all_reward: Float[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0))
    all_group: Int[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def logp_old(self) -> Float[Tensor, "B T"]:
        """Log-probabilities under the policy that sampled.

        There are none beside denoising errors.
        """
        return self.matrix("logp_old")

    @property
    def logp_ref(self) -> Float[Tensor, "B T"]:
        """Log-probabilities under the reference, for `needs=("logp_ref",)`."""
        return self.matrix("logp_ref")

    @property
    def kl(self) -> Float[Tensor, "B T"]:
        """KL of each step to the reference, with its derivative, for `needs=("kl",)`."""
        return self.matrix("kl")

    @property
    def errors_ref(self) -> Float[Tensor, "B K"]:
        """Denoising errors of the reference on the same noise, for `needs=("errors_ref",)`."""
        return self.matrix("errors_ref")

    def matrix(self, name: str) -> Tensor:
        """Raises MissingMatrix, of which `Objective` makes one line that names the remedy."""
        if name not in self.matrices:
            raise MissingMatrix(name)
        return self.matrices[name]

    def with_matrices(self, **matrices: Tensor) -> "Batch":
        """The batch with these matrices too, or in the place of its own."""
        return replace(self, matrices={**self.matrices, **matrices})

    def rows(self, rows: Int[Tensor, " N"]) -> "Batch":
        """The batch of N chosen trajectories."""
        return replace(
            self, **self._outcomes(rows), matrices=self._each(lambda matrix: matrix[rows])
        )

    def pairs(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> "Batch":
        """N chosen (sample, step) pairs as N trajectories of one step, for separable objectives."""
        return replace(
            self,
            **self._outcomes(rows),
            matrices=self._each(lambda matrix: matrix[rows, columns][:, None]),
            stochastic=self.stochastic[columns[:1]],
        )

    def blocks(self, logp: Float[Tensor, "B T"], size: int) -> tuple[Float[Tensor, "B M"], "Batch"]:
        """Macro-actions: `size` stochastic steps in a row as one, with added log-probs and KLs.

        A ratio is then that of a whole block: size 1 is one ratio per step, T one per trajectory
        (Chai et al. 2024).
        """
        block = torch.arange(int(self.stochastic.sum()), device=logp.device) // size
        count = int(block.max()) + 1

        def add_up(matrix: Float[Tensor, "B T"]) -> Float[Tensor, "B M"]:
            return matrix.new_zeros(len(matrix), count).index_add(
                1, block, matrix[:, self.stochastic]
            )

        every = torch.ones(count, dtype=torch.bool, device=logp.device)
        return add_up(logp), replace(self, matrices=self._each(add_up), stochastic=every)

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
        """The mean of `terms` over all rows and stochastic columns.

        0, with its graph, over no row.
        """
        chosen = terms[:, self.stochastic]
        return chosen.sum() / max(chosen.numel(), 1)

    def _outcomes(self, rows: Int[Tensor, " N"]) -> dict[str, Tensor]:
        """What there is one number of per trajectory, of the chosen ones."""
        return {
            name: getattr(self, name)[rows] for name in ("advantage", "reward", "group", "present")
        }

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The matrices, changed."""
        return {name: change(matrix) for name, matrix in self.matrices.items()}


def declare(
    *,
    separable: bool = False,
    needs: tuple[str, ...] = (),
    on_policy: bool = False,
    compares: bool = False,
    denoising_errors: bool = False,
    trust_region: str | None = None,
    report: Report | None = None,
) -> Callable[[Loss], Loss]:
    """What the trainer must know of an objective.

    Without this decorator the defaults hold, which are safe.

    separable         a mean over (sample, column) pairs of terms that see one pair each: no second
                      pass
    needs             the matrices that are computed for it, of logp_ref and kl, or errors_ref
    on_policy         only the first update after a rollout has its true gradient
    compares          it compares samples of one prompt, so there must be at least two
    denoising_errors  its matrix holds these instead of log-probabilities
    trust_region      the option whose value bounds |ratio - 1|: the ratio gate takes a tenth of it
                      as its limit, and clip_frac counts the pairs beyond it
    report            (batch, *, options) -> metrics of its own, once per iteration
    """
    declared = {
        "separable": separable,
        "needs": needs,
        "on_policy": on_policy,
        "compares": compares,
        "denoising_errors": denoising_errors,
        "trust_region": trust_region,
        "report": report,
    }

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
    trust_region: str | None = None
    report: Report | None = None
    kl_weight: float = 0.0
    block_size: int = 1

    @property
    def ratio_bound(self) -> float | None:
        """The value of its trust region, which bounds |ratio - 1|; None where it declares none."""
        return None if self.trust_region is None else self.options[self.trust_region]

    def __call__(self, matrix: Float[Tensor, "B T"], batch: Batch) -> Float[Tensor, ""]:
        """The loss.

        Raises UserError when the function raises or returns anything but one number.
        """
        if self.block_size > 1:
            matrix, batch = batch.blocks(matrix, self.block_size)
        loss = self._ask(self.function, matrix, batch)
        if not isinstance(loss, Tensor) or loss.shape != ():
            returned = (
                f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise UserError(
                f"objective {self.name} returned {returned}; return one number, as with .mean()"
            )
        return loss + self.kl_weight * batch.mean(batch.kl) if self.kl_weight else loss

    def metrics(self, batch: Batch) -> Mapping[str, float]:
        """What it reports of an iteration, under `objective/`."""
        reported = self._ask(self.report, batch) if self.report else {}
        return {f"objective/{name}": value for name, value in reported.items()}

    def _ask(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What a function of the objective returns; whatever it raises, as one line."""
        try:
            return function(*arguments, **self.options)
        except MissingMatrix as missing:
            raise UserError(self._missing(str(missing))) from missing
        except Exception as error:
            raise UserError(f"objective {self.name} raised {where(error)}") from error

    @property
    def _works_on(self) -> str:
        return "denoising errors" if self.denoising_errors else "log-probabilities"

    def _missing(self, matrix: str) -> str:
        reads = f"objective {self.name} reads batch.{matrix}"
        if matrix in MATRICES[self._works_on]:
            remedy = f'declare it: @declare(needs=("{matrix}",))'
            return f"{reads}, which is computed only on demand; {remedy}"
        remedy = f"there may be {', '.join(MATRICES[self._works_on])}"
        return f"{reads}, which {self._works_on} do not have; {remedy}"

    def check(self) -> None:
        """Raises UserError for a declaration that means nothing."""
        known = MATRICES[self._works_on]
        for name in self.needs:
            if name not in known:
                raise UserError(
                    f"objective {self.name} needs {name!r}, which there is not beside "
                    f"{self._works_on}{nearest(name, known)}"
                )
        if self.trust_region is not None and self.trust_region not in self.options:
            raise UserError(
                f"objective {self.name} declares trust_region={self.trust_region!r}, "
                f"which is none of its options{nearest(self.trust_region, self.options)}"
            )


def build(name: str, *, kl_weight: float = 0.0, block_size: int = 1, **options: Any) -> Objective:
    """Find an objective by name and fill in its options' defaults.

    Raises UserError for what cannot be built.
    """
    function = cast(Loss, plugins.load("objectives", name))
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    declared = getattr(function, "declared", {})
    objective = Objective(name, function, {**defaults, **options}, **declared)
    objective.check()
    for switch, value, idle in (("kl_weight", kl_weight, 0.0), ("block_size", block_size, 1)):
        if objective.denoising_errors and value != idle:
            raise UserError(
                f"objective.{switch}: {name} works on denoising errors, not on the steps of a "
                "trajectory; leave it out"
            )
    needs = [*objective.needs, *(["kl"] if kl_weight else [])]
    return replace(
        objective,
        kl_weight=kl_weight,
        block_size=block_size,
        separable=objective.separable and block_size == 1,
        needs=tuple(dict.fromkeys(needs)),
    )
