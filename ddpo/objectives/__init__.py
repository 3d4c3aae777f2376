"""What an objective is: a pure function of a small matrix and a batch of outcomes.

    def ddpo(
        logp: Float[Tensor, "B T"], batch: Batch, *, clip_range: float = 1e-4
    ) -> Float[Tensor, ""]

It returns the loss to be minimized and never sees a network: the trainer takes its derivative with
respect to the matrix and carries that into the network. The matrix holds log-probabilities of
denoising steps (B, T) or, where declared, denoising errors (B, K) or rewards that have a graph
(B, K). Adding an objective is adding one file here, or in the `objectives` folder of a plugin.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, nearest, where
from ddpo.objectives._matrices import MATRICES, Batch, MissingMatrix, Replay
from ddpo.plugins.ranges import (  # noqa: F401 - for options
    AtLeastOne,
    Finite,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)

Loss = Callable[..., Float[Tensor, ""]]
Report = Callable[..., Mapping[str, float]]
Share = Callable[..., float]

__path__ = [*__path__, *plugins.folders("objectives")[1:]]


def declare(
    *,
    separable: bool = False,
    needs: tuple[str, ...] | Callable[..., tuple[str, ...]] = (),
    on_policy: bool = False,
    compares: bool = False,
    denoising_errors: bool = False,
    replay: Callable[..., Replay] | None = None,
    trust_region: str | None = None,
    uniform_over_steps: bool | Callable[..., bool] = False,
    follows_advantage: bool = False,
    report: Report | None = None,
    mixes: str | None = None,
    old_policy: Share | None = None,
) -> Callable[[Loss], Loss]:
    """What the trainer must know of an objective.

    Without this decorator the defaults hold, which are safe.

    separable         a mean over (sample, column) pairs of terms that see one pair each: no second
                      pass
    needs             the matrices that are computed for it, of logp_ref and kl, or errors_ref; or a
                      function of its options that says which
    on_policy         only the first update after a rollout has its true gradient
    compares          it compares samples of one prompt, so there must be at least two
    denoising_errors  its matrix holds these instead of log-probabilities
    replay            its matrix holds rewards that have a graph; called with its options, this says
                      which steps the graph goes through
    trust_region      the option whose value bounds |ratio - 1|: the ratio gate takes a tenth of it
                      as its limit, and clip_frac counts the pairs beyond it
    uniform_over_steps  at the weights that sampled, where every ratio is 1, its derivative is the
                      same for all steps of an image: the first update's gradient can be collected
                      while images are sampled; or a function of its options that says so
    follows_advantage its derivative is 0 for a sample whose advantage is 0, whatever its ratios:
                      such samples are left out of the update's network calls
    report            (batch, *, options) -> metrics of its own, once per iteration
    mixes             the option that mixes residuals for absolute_plus and absolute_minus
    old_policy        (iteration, *, options) -> the share that the old policy keeps of itself
                      after an iteration, counted from 0; with it, the old policy samples
    """
    declared = {
        "separable": separable,
        "needs": needs,
        "on_policy": on_policy,
        "compares": compares,
        "denoising_errors": denoising_errors,
        "replay": replay,
        "trust_region": trust_region,
        "uniform_over_steps": uniform_over_steps,
        "follows_advantage": follows_advantage,
        "report": report,
        "mixes": mixes,
        "old_policy": old_policy,
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
    replay: Callable[..., Replay] | None = None
    trust_region: str | None = None
    uniform_over_steps: bool = False
    follows_advantage: bool = False
    report: Report | None = None
    mixes: str | None = None
    old_policy: Share | None = None
    kl_weight: float = 0.0
    block_size: int = 1

    @property
    def pathwise(self) -> Replay | None:
        """What of a rollout it differentiates; None where it is not a function of rewards."""
        return None if self.replay is None else self.replay(**self.options)

    def draws(self, count: int) -> int:
        """The columns of a matrix that has no steps: its replays, or `count` draws of noise."""
        replay = self.pathwise
        return count if replay is None else replay.columns

    @property
    def scores_steps(self) -> bool:
        """Whether it is a function of the log-probabilities of the sampled steps."""
        return self.replay is None and not self.denoising_errors

    @property
    def ratio_bound(self) -> float | None:
        """The value of its trust region, which bounds |ratio - 1|; None where it declares none."""
        return None if self.trust_region is None else self.options[self.trust_region]

    @property
    def mixture(self) -> float:
        """The value of the option that mixes residuals; 1 where none does."""
        return 1.0 if self.mixes is None else self.options[self.mixes]

    def kept_of_old(self, iteration: int) -> float:
        """The share that the old policy keeps of itself after an iteration, counted from 0."""
        assert self.old_policy is not None
        return self.old_policy(iteration, **self.options)

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
    def works_on(self) -> str:
        """What its matrix holds: log-probabilities, denoising errors or rewards."""
        if self.replay is not None:
            return "rewards"
        return "denoising errors" if self.denoising_errors else "log-probabilities"

    def _missing(self, matrix: str) -> str:
        reads = f"objective {self.name} reads batch.{matrix}"
        if matrix in MATRICES[self.works_on]:
            remedy = f'declare it: @declare(needs=("{matrix}",))'
            return f"{reads}, which is computed only on demand; {remedy}"
        remedy = f"there may be {', '.join(MATRICES[self.works_on])}"
        return f"{reads}, which {self.works_on} do not have; {remedy}"

    def check(self) -> None:
        """Raises UserError for a declaration that means nothing."""
        known = MATRICES[self.works_on]
        for name in self.needs:
            if name not in known:
                raise UserError(
                    f"objective {self.name} needs {name!r}, which there is not beside "
                    f"{self.works_on}{nearest(name, known)}"
                )
        named = {"trust_region": self.trust_region, "mixes": self.mixes}
        for declared, option in named.items():
            if option is not None and option not in self.options:
                raise UserError(
                    f"objective {self.name} declares {declared}={option!r}, "
                    f"which is none of its options{nearest(option, self.options)}"
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
    declared, options = dict(getattr(function, "declared", {})), {**defaults, **options}
    for told in ("needs", "uniform_over_steps"):
        if callable(declared.get(told)):
            declared[told] = declared[told](**options)
    objective = Objective(name, function, options, **declared)
    objective.check()
    works_on = objective.works_on
    for switch, refused in (
        ("kl_weight", bool(kl_weight) and "kl" not in MATRICES[works_on]),
        ("block_size", block_size != 1 and not objective.scores_steps),
    ):
        if refused:
            raise UserError(
                f"objective.{switch}: {name} works on {works_on}, not on the steps of a "
                "trajectory; leave it out"
            )
    needs = [*objective.needs, *(["kl"] if kl_weight else [])]
    return replace(
        objective,
        kl_weight=kl_weight,
        block_size=block_size,
        follows_advantage=objective.follows_advantage and not kl_weight,
        separable=objective.separable and block_size == 1,
        needs=tuple(dict.fromkeys(needs)),
    )
